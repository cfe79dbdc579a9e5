"""The consumer: log -> store, exactly once.

Order of one round:  poll -> decode -> dead letters stored -> apply(batch, expected position) -> positions remembered.
The position that counts is the one inside the store, written with the events. At start, at a new assignment and after a
conflict the consumer asks the store where it is and seeks there; what Kafka thinks is committed is only published.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from hymirec.config import StreamConfig
from hymirec.errors import (
    EventError,
    HyMiRecError,
    PositionConflictError,
    PositionOutOfRangeError,
    SourceUnavailableError,
    StoreUnavailableError,
    TopicRecreatedError,
)
from hymirec.history import Entry, HistoryStore, PartitionBatch
from hymirec.streaming.decode import decode
from hymirec.streaming.source import DeadLetters, EventLog, EventSource, Message

log = logging.getLogger(__name__)
TOPIC_CHECK_SECONDS = 5.0
BACKOFF_SECONDS = 1.0
LAG_SECONDS = 2.0
OnApplied = Callable[[Sequence[str]], None]


@dataclass
class ConsumerStatus:
    """A snapshot. `ready` is false while anything in `problems` (partition, or "store", "log") stands."""

    ready: bool = False
    alive: bool = True
    heartbeat: float = 0.0
    positions: dict[int, int] = field(default_factory=dict)
    lag: dict[int, int] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)


class HistoryConsumer:
    """Owns one thread that owns one source. `on_applied` gets the users that a batch touched, on that thread."""

    def __init__(
        self,
        event_log: EventLog,
        store: HistoryStore,
        config: StreamConfig,
        on_applied: OnApplied | None = None,
        group: bool = False,
    ) -> None:
        self._log, self._store, self._config = event_log, store, config
        self._on_applied = on_applied or (lambda users: None)
        self._group = group
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._status = ConsumerStatus()
        self._counts: Counter[str] = Counter()
        self._positions: dict[int, int | None] = {}
        self._stopped: set[int] = set()
        self._topic_id = ""
        self._letters: DeadLetters | None = None
        self._checked = self._lagged = 0.0
        self._thread = threading.Thread(target=self._run, name="history-consumer", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self, timeout: float = 10.0) -> None:
        """Finish the batch in progress and end the thread."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout)

    def status(self) -> ConsumerStatus:
        """A snapshot that nobody changes any more."""
        with self._lock:
            s = self._status
            alive = self._thread.is_alive()
            return ConsumerStatus(
                s.ready and alive,
                alive,
                s.heartbeat,
                dict(s.positions),
                dict(s.lag),
                dict(s.problems),
                dict(self._counts),
            )

    def _run(self) -> None:
        source: EventSource | None = None
        while not self._stop.is_set():
            try:
                if source is None:
                    source = self._log.source(self._group)
                    self._positions.clear()
                    self._checked = 0.0
                self._round(source)
                self._resolved("log", "store")
            except StoreUnavailableError as e:
                self._problem("store", e)
                self._forget()
            except (SourceUnavailableError, OSError) as e:
                self._problem("log", e)
                self._close(source)
                source = None
            except HyMiRecError as e:
                self._problem("consumer", e)
                self._forget()
        self._close(source)
        if self._letters is not None:
            self._letters.close()

    def _close(self, source: EventSource | None) -> None:
        if source is not None:
            try:
                source.close()
            except Exception:
                log.exception("closing the log failed")

    def _problem(self, what: str, error: Exception) -> None:
        log.error("%s: %s", what, error)
        with self._lock:
            self._status.problems[what] = str(error)
            self._status.ready = False
            self._status.heartbeat = time.time()
        self._stop.wait(BACKOFF_SECONDS)

    def _resolved(self, *what: str) -> None:
        with self._lock:
            for name in what:
                self._status.problems.pop(name, None)
            self._status.heartbeat = time.time()
            self._status.ready = not self._status.problems

    def _forget(self) -> None:
        """Believe nothing: the next round asks the store for every position."""
        self._positions.clear()

    def _round(self, source: EventSource) -> None:
        self._check_topic(source)
        self._adopt(source)
        try:
            messages = source.poll(self._config.poll_seconds, self._config.batch_events)
        except PositionOutOfRangeError as e:
            self._stop_partition(source, e.partition, e)
            return
        by_partition: dict[int, list[Message]] = {}
        for message in messages:
            by_partition.setdefault(message.partition, []).append(message)
        for partition, batch in by_partition.items():
            # A partition that was assigned while polling has no position yet; it is sought and read again.
            if partition in self._positions and partition not in self._stopped:
                self._apply(source, partition, batch)
        self._measure(source)

    def _check_topic(self, source: EventSource) -> None:
        now = time.monotonic()
        if now - self._checked < TOPIC_CHECK_SECONDS and self._topic_id:
            return
        found = source.topic_id()
        if self._topic_id and found != self._topic_id:
            # Positions of the old topic mean nothing in the new one: look at each partition again.
            self._forget()
            self._stopped.clear()
        self._topic_id, self._checked = found, now

    def _adopt(self, source: EventSource) -> None:
        """Seek partitions that are new here to the position in the store."""
        assigned = source.assigned()
        for gone in set(self._positions) - set(assigned):
            del self._positions[gone]
        fresh = [p for p in assigned if p not in self._positions and p not in self._stopped]
        if not fresh:
            return
        stored = self._store.positions(self._config.topic)
        for partition in fresh:
            position = stored.get(partition)
            try:
                if position is None:
                    source.seek(partition, source.beginning(partition))
                    self._positions[partition] = None
                    continue
                if position.topic_id != self._topic_id:
                    raise TopicRecreatedError(self._recreated(partition, position.topic_id, position.offset))
                self._check_range(source, partition, position.offset)
                source.seek(partition, position.offset)
                self._positions[partition] = position.offset
            except (PositionOutOfRangeError, TopicRecreatedError) as e:
                self._stop_partition(source, partition, e)
                continue
            self._resolved(str(partition))

    def _check_range(self, source: EventSource, partition: int, offset: int) -> None:
        low, high = source.beginning(partition), source.end(partition)
        if not low <= offset <= max(low, high):
            raise PositionOutOfRangeError(
                f"{self._config.topic}[{partition}]: the stored position is {offset}, the log holds {low} to {high}; "
                f"{self._resolution(partition)}",
                partition,
            )

    def _recreated(self, partition: int, old: str, offset: int) -> str:
        return (
            f"{self._config.topic}[{partition}]: position {offset} belongs to topic id {old}, the topic now has id "
            f"{self._topic_id}: it was deleted and created again; {self._resolution(partition)}"
        )

    def _resolution(self, partition: int) -> str:
        return (
            "this partition stands still. Go on where you decide: `hymirec history reset-position --config FILE "
            f"--partition {partition} --offset N`, then restart the history writer"
        )

    def _stop_partition(self, source: EventSource, partition: int, error: Exception) -> None:
        self._stopped.add(partition)
        self._positions.pop(partition, None)
        source.pause(partition)
        log.error("partition %d stopped: %s", partition, error)
        with self._lock:
            self._status.problems[str(partition)] = str(error)
            self._status.ready = False

    def _apply(self, source: EventSource, partition: int, messages: Sequence[Message]) -> None:
        entries: list[Entry] = []
        now = int(time.time())
        for message in messages:
            try:
                entries.append(decode(message.value, message.offset, now))
            except EventError as e:
                self._letters = self._letters or self._log.dead_letters()
                self._letters.send(message, e.reason, str(e))
                self._counts[f"rejected_{e.reason}"] += 1
        next_offset = messages[-1].offset + 1
        batch = PartitionBatch(
            self._config.topic, self._topic_id, partition, self._positions[partition], next_offset, entries
        )
        try:
            result = self._store.apply(batch)
        except PositionConflictError as e:
            log.warning("%s", e)
            self._counts["conflicts"] += 1
            del self._positions[partition]
            return
        except TopicRecreatedError as e:
            self._stop_partition(source, partition, e)
            return
        self._positions[partition] = next_offset
        self._counts.update(applied=result.applied, duplicates=result.duplicates, erased=result.erased)
        with self._lock:
            self._status.positions[partition] = next_offset
        source.commit({partition: next_offset})
        if result.users:
            self._on_applied(result.users)

    def _measure(self, source: EventSource) -> None:
        now = time.monotonic()
        if now - self._lagged < LAG_SECONDS:
            return
        self._lagged = now
        lag = {p: max(0, source.end(p) - (o or 0)) for p, o in self._positions.items()}
        with self._lock:
            self._status.lag = lag
            self._status.positions.update({p: o for p, o in self._positions.items() if o is not None})

"""The consumer: log -> store, exactly once.

Order of one round:  poll -> it is still the same topic -> decode -> dead letters stored -> apply(batch, expected
position) -> positions remembered -> flush when it is due -> written positions published.
The position that counts is the one inside the store, written with the events. At start, at a new assignment, after a
conflict and after any trouble the consumer asks the store where it is and seeks there; what Kafka thinks is committed
is only published. A partition that cannot go on stands still and says why; the others go on.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace

from hymirec.config import StreamConfig
from hymirec.errors import (
    CodecMissingError,
    HyMiRecError,
    LogDamagedError,
    PoisonedError,
    PositionConflictError,
    PositionOutOfRangeError,
    SourceUnavailableError,
    StoreDamagedError,
    StoreUnavailableError,
    TopicRecreatedError,
    UnsupportedFormatError,
)
from hymirec.history import HistoryStore, PartitionBatch
from hymirec.streaming.decode import DecodedBatch, decode_all
from hymirec.streaming.source import DeadLetters, EventLog, EventSource, Message
from hymirec.telemetry import APPLY_EVENTS, APPLY_SECONDS, EVENT_VISIBLE_SECONDS, Observe, unobserved

log = logging.getLogger(__name__)
TOPIC_CHECK_SECONDS = 5.0
BACKOFF_SECONDS = 1.0
LAG_SECONDS = 2.0
# A partition is judged by so many of its last messages.
JUDGED_MESSAGES = 1_000
# What an operator or time may mend; such a partition is looked at again at every topic check.
MENDABLE = (TopicRecreatedError, PositionOutOfRangeError)
OnApplied = Callable[[Sequence[str]], None]


@dataclass
class ConsumerStatus:
    """A snapshot. `ready` is false while anything in `problems` (a partition, "store", "log", "consumer") stands.

    `positions` are next offsets, applied and readable in this process. With `history.flush_events` some of it may not
    be written yet, and when it cannot be they go back. `lag` counts messages. `heartbeat` is in seconds since 1970;
    `taken` is when the log took the newest applied message, in milliseconds since then, where the log says so.
    `handled` counts messages that were taken from the log and applied, whatever became of them.
    `counts`: applied, duplicates, erased, suppressed, conflicts, unknown_action, future_ts, rejected_<reason>.
    """

    ready: bool = False
    alive: bool = True
    heartbeat: float = 0.0
    topic_id: str = ""
    positions: dict[int, int] = field(default_factory=dict)
    lag: dict[int, int] = field(default_factory=dict)
    taken: dict[int, int] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)
    handled: int = 0
    counts: dict[str, int] = field(default_factory=dict)

    @property
    def heartbeat_age(self) -> float:
        """Seconds since the thread last finished a round or said what hinders it."""
        return time.time() - self.heartbeat


class HistoryConsumer:
    """Owns one thread that owns one source. `on_applied` gets the users that a batch touched, on that thread.

    `group` False: this is the only writer and reads all partitions, those added later included. True: one of several
    writers; the group assigns partitions.
    """

    def __init__(
        self,
        event_log: EventLog,
        store: HistoryStore,
        config: StreamConfig,
        on_applied: OnApplied | None = None,
        group: bool = False,
        topic_check_seconds: float = TOPIC_CHECK_SECONDS,
        observe: Observe = unobserved,
    ) -> None:
        self._log, self._store, self._config = event_log, store, config
        self._on_applied = on_applied or (lambda users: None)
        self._group = group
        self._topic_check_seconds = topic_check_seconds
        self._observe = observe
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._status = ConsumerStatus(heartbeat=time.time())
        self._counts: Counter[str] = Counter()
        self._positions: dict[int, int | None] = {}
        self._published: dict[int, int] = {}
        # Where a partition was sought and has delivered nothing yet; and holes that were read twice.
        self._sought: dict[int, int] = {}
        self._holes: dict[int, tuple[int, int]] = {}
        self._stopped: dict[int, HyMiRecError] = {}
        # Messages, and how many of them cannot be used, of a partition's last batches.
        self._judged: dict[int, deque[tuple[int, int]]] = {}
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
        alive = self._thread.is_alive()
        with self._lock:
            s = self._status
            return replace(
                s,
                ready=s.ready and alive,
                alive=alive,
                topic_id=self._topic_id,
                positions=dict(s.positions),
                lag=dict(s.lag),
                taken=dict(s.taken),
                problems=dict(s.problems),
                counts=dict(self._counts),
            )

    def wait_for(self, places: Sequence[tuple[int, int]], timeout: float) -> bool:
        """Wait until messages (partition, offset), as `EventProducer.send` returns them, are applied and readable."""
        deadline = time.monotonic() + timeout
        while True:
            with self._lock:
                if all(self._status.positions.get(partition, 0) > offset for partition, offset in places):
                    return True
            if time.monotonic() > deadline:
                return False
            time.sleep(0.005)

    def _run(self) -> None:
        source: EventSource | None = None
        try:
            while not self._stop.is_set():
                try:
                    self._flush(source, due=True)
                    if source is None:
                        self._forget()
                        self._checked = 0.0
                        source = self._log.source(self._group)
                    self._round(source)
                    self._resolved("log", "store", "consumer")
                except StoreUnavailableError as e:
                    self._forget()
                    self._problem("store", e)
                except (SourceUnavailableError, OSError) as e:
                    self._problem("log", e)
                    self._close(source)
                    source = None
                except CodecMissingError:
                    # After this a Kafka client's next poll may never return.
                    raise
                except HyMiRecError as e:
                    self._forget()
                    self._problem("consumer", e)
        except BaseException as e:
            self._problem("consumer", e)
            raise
        finally:
            with suppress(HyMiRecError, OSError):
                # What cannot be written now is read again from the log.
                self._flush(source, due=False)
            self._close(source)
            self._close_letters()

    def _flush(self, source: EventSource | None, due: bool) -> None:
        """Have the store write what waits, and publish the positions that are written."""
        self._store.flush(due)
        written = self._store.written(self._config.topic)
        news = {p: o for p, o in written.items() if p in self._positions and o != self._published.get(p)}
        if news and source is not None:
            source.commit(news)
            self._published.update(news)

    def _close_letters(self) -> None:
        if self._letters is not None:
            self._letters.close()
            self._letters = None

    def _close(self, source: EventSource | None) -> None:
        if source is not None:
            # It is given up because it failed, or the process ends: how it closes changes nothing.
            with suppress(Exception):
                source.close()

    def _problem(self, what: str, error: BaseException) -> None:
        with self._lock:
            known = self._status.problems.get(what)
            self._status.problems[what] = str(error)
            self._status.ready = False
            self._status.heartbeat = time.time()
        if known != str(error):
            log.error("%s: %s", what, error)
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
        self._sought.clear()

    def _round(self, source: EventSource) -> None:
        self._check_topic(source)
        self._adopt(source)
        try:
            messages = source.poll(self._config.poll_seconds, self._config.batch_events)
        except (PositionOutOfRangeError, LogDamagedError) as e:
            # Others may have been read past what was returned.
            self._forget()
            known = self._topic_id
            self._check_topic(source, now=True)
            # A new topic of this name explains everything, and is told when its partitions are adopted.
            if self._topic_id == known:
                self._stop_partition(source, e.partition, e)
            return
        if messages and source.topic_id() != self._topic_id:
            # A client reads on in a topic that was created again, at the old one's offset. What it is asked after it
            # was read tells: no id comes back.
            self._checked = 0.0
            return
        by_partition: dict[int, list[Message]] = {}
        for message in messages:
            by_partition.setdefault(message.partition, []).append(message)
        for partition, batch in by_partition.items():
            # A partition that was assigned while polling has no position yet; it is sought and read again.
            if partition in self._positions and partition not in self._stopped:
                self._apply(source, partition, batch)
        self._flush(source, due=True)
        self._measure(source)

    def _check_topic(self, source: EventSource, now: bool = False) -> None:
        if not now and self._topic_id and time.monotonic() - self._checked < self._topic_check_seconds:
            return
        found = source.topic_id()
        if self._topic_id and found != self._topic_id:
            # Positions of the old topic mean nothing in the new one: look at each partition again.
            self._forget()
            self._stopped.clear()
        self._topic_id, self._checked = found, time.monotonic()
        self._stopped = {p: e for p, e in self._stopped.items() if not isinstance(e, MENDABLE)}
        poisoned = {p: e.position for p, e in self._stopped.items() if isinstance(e, PoisonedError)}
        if poisoned:
            # Where an operator has moved the position, there is another message to look at.
            stored = self._store.positions(self._config.topic)
            for partition, position in poisoned.items():
                moved = stored.get(partition)
                if (None if moved is None else moved.offset) != position:
                    del self._stopped[partition]

    def _adopt(self, source: EventSource) -> None:
        """Seek partitions that are new here to the position in the store."""
        assigned = source.assigned()
        for void in (set(self._positions) - set(assigned)) | source.waiting():
            self._positions.pop(void, None)
        for gone in set(self._stopped) - set(assigned):
            del self._stopped[gone]
        self._disown(assigned)
        fresh = [p for p in assigned if p not in self._positions and p not in self._stopped]
        if not fresh:
            return
        # Whoever had them before may have stored letters since ours were looked at.
        self._close_letters()
        stored = self._store.positions(self._config.topic)
        for partition in fresh:
            position = stored.get(partition)
            try:
                if position is None:
                    start = source.beginning(partition)
                else:
                    start = position.offset
                    if position.topic_id != self._topic_id:
                        raise TopicRecreatedError(self._recreated(partition, position.topic_id, start))
                    self._check_range(source, partition, start)
                source.seek(partition, start)
            except (PositionOutOfRangeError, TopicRecreatedError) as e:
                self._stop_partition(source, partition, e)
                continue
            self._positions[partition] = None if position is None else start
            self._sought[partition] = self._published[partition] = start
            self._judged.pop(partition, None)
            with self._lock:
                self._status.positions[partition] = start
            self._resolved(str(partition))

    def _disown(self, assigned: Sequence[int]) -> None:
        """What is said of partitions that another writer has now is void."""
        with self._lock:
            for told in (self._status.positions, self._status.lag, self._status.taken):
                for gone in set(told) - set(assigned):
                    del told[gone]
            for name in [name for name in self._status.problems if name.isdigit() and int(name) not in assigned]:
                del self._status.problems[name]

    def _check_range(self, source: EventSource, partition: int, offset: int) -> None:
        low, high = source.beginning(partition), source.end(partition)
        if not low <= offset <= max(low, high):
            raise PositionOutOfRangeError(
                f"{self._config.topic}[{partition}]: the stored position is {offset}, the log holds {low} to {high}",
                partition,
            )

    def _recreated(self, partition: int, old: str, offset: int) -> str:
        return (
            f"{self._config.topic}[{partition}]: position {offset} belongs to topic id {old}, the topic now has id "
            f"{self._topic_id}: it was deleted and created again"
        )

    def _stop_partition(self, source: EventSource, partition: int, error: HyMiRecError) -> None:
        self._stopped[partition] = error
        self._positions.pop(partition, None)
        if partition in source.assigned():
            source.pause(partition)
        text = f"{error}; this partition stands still. {self._resolution(partition, error)}"
        with self._lock:
            known = self._status.problems.get(str(partition))
            self._status.problems[str(partition)] = text
            self._status.ready = False
        if known != text:
            log.error("partition %d stopped: %s", partition, text)

    def _resolution(self, partition: int, error: HyMiRecError) -> str:
        if isinstance(error, StoreDamagedError | UnsupportedFormatError):
            return "Mend the store as said, then restart the history writer"
        if isinstance(error, PoisonedError):
            return (
                "Nothing of this batch was stored. Correct the sender, or update this program and restart the history "
                "writer. To have all of it as dead letters, set stream.max_rejected_share to 1; to pass over it: "
                f"`hymirec history reset-position --config FILE --partition {partition} --offset N`"
            )
        return (
            "Say where to go on: `hymirec history reset-position --config FILE "
            f"--partition {partition} --offset N` (an embedded store must have no writer meanwhile)"
        )

    def _apply(self, source: EventSource, partition: int, messages: Sequence[Message]) -> None:
        expected = self._positions[partition]
        start = self._sought.pop(partition, None)
        if start is not None and self._hole(partition, start, messages[0].offset):
            return
        if expected is not None and messages[0].offset < expected:
            messages = [m for m in messages if m.offset >= expected]
        if not messages:
            return
        decoded = decode_all(messages)
        if poisoned := self._judge(partition, messages, decoded):
            self._stop_partition(source, partition, PoisonedError(poisoned, expected))
            return
        counts = self._letters_of(decoded)
        next_offset = messages[-1].offset + 1
        batch = PartitionBatch(self._config.topic, self._topic_id, partition, expected, next_offset, decoded.entries)
        begun = time.perf_counter()
        try:
            result = self._store.apply(batch)
        except PositionConflictError as e:
            log.warning("%s", e)
            self._counts["conflicts"] += 1
            del self._positions[partition]
            return
        except (TopicRecreatedError, StoreDamagedError, UnsupportedFormatError) as e:
            self._stop_partition(source, partition, e)
            return
        self._measure_batch(messages, time.perf_counter() - begun)
        self._positions[partition] = next_offset
        counts.update(
            applied=result.applied, duplicates=result.duplicates, erased=result.erased, suppressed=result.suppressed
        )
        with self._lock:
            self._counts.update(counts)
            self._status.handled += len(messages)
            self._status.positions[partition] = next_offset
            if messages[-1].log_ms:
                self._status.taken[partition] = messages[-1].log_ms
            self._status.heartbeat = time.time()
        if result.users:
            self._on_applied(result.users)

    def _hole(self, partition: int, start: int, first: int) -> bool:
        """Whether the first message behind a seek is not the one sought, for the first time.

        Compaction and transactions leave holes in a log, and a client that hands out what it had fetched before the
        seek looks the same: the partition is sought once more, and a hole that is still there is one of the log.
        """
        if first <= start or self._holes.get(partition) == (start, first):
            return False
        self._holes[partition] = (start, first)
        del self._positions[partition]
        return True

    def _judge(self, partition: int, messages: Sequence[Message], decoded: DecodedBatch) -> str | None:
        """What is wrong with a partition of whose last messages too many cannot be used; None: go on."""
        last = self._judged.setdefault(partition, deque())
        bad = len(decoded.rejected) + sum(rejected for _, rejected in last)
        total = len(messages) + sum(count for count, _ in last)
        if total >= JUDGED_MESSAGES and decoded.rejected and bad > self._config.max_rejected_share * total:
            message, error = decoded.rejected[0]
            return (
                f"{self._config.topic}[{partition}]: {bad} of the last {total} messages cannot be used; "
                f"the one at offset {message.offset}: {error.reason}, {error}"
            )
        last.append((len(messages), len(decoded.rejected)))
        while total - last[0][0] >= JUDGED_MESSAGES:
            total -= last.popleft()[0]
        return None

    def _letters_of(self, decoded: DecodedBatch) -> Counter[str]:
        """What was put right or cannot be used, counted; the latter is stored as dead letters before this returns."""
        counts = decoded.notes
        for message, error in decoded.rejected:
            self._letters = self._letters or self._log.dead_letters()
            self._letters.send(message, error.reason, str(error))
            counts[f"rejected_{error.reason}"] += 1
        return counts

    def _measure_batch(self, messages: Sequence[Message], seconds: float) -> None:
        """Its size, how long the store took, and how long ago the log took the oldest of its messages."""
        self._observe(APPLY_EVENTS, len(messages))
        self._observe(APPLY_SECONDS, seconds)
        if messages[0].log_ms:
            self._observe(EVENT_VISIBLE_SECONDS, max(0.0, time.time() - messages[0].log_ms / 1000))

    def _measure(self, source: EventSource) -> None:
        now = time.monotonic()
        if now - self._lagged < LAG_SECONDS:
            return
        self._lagged = now
        lag = {
            p: max(0, source.end(p) - (self._sought.get(p, 0) if o is None else o)) for p, o in self._positions.items()
        }
        with self._lock:
            self._status.lag = lag

"""Stores against a plain model, through whatever Hypothesis thinks of: logs, crashes, zombies, full disks;
with batches written at once and with batches that wait in memory.

After every step each position and each history must be what the model says. HYMIREC_MACHINE_RUNS sets how many runs of
up to 30 steps each store gets; `make faults` asks for 2,000 in all.
"""

from __future__ import annotations

import os
import resource
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import redis
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from hymirec.config import HistoryConfig
from hymirec.errors import PositionConflictError, StoreUnavailableError, TopicRecreatedError
from hymirec.history import Entry, PartitionBatch, Position, RawStore, open_store
from hymirec.history.redis import RedisStore
from hymirec.history.verify import Placed, fold

RUNS = int(os.environ.get("HYMIREC_MACHINE_RUNS", "12"))
STEPS = 30
TOPIC, PARTITIONS, USERS = "events", 3, 4
DAY, BEGIN = 86_400, 20_000
PARTITION, USER = st.integers(0, PARTITIONS - 1), st.integers(0, USERS - 1)
Snapshot = tuple[dict[int, Position], int]
Bounds = dict[str, int | None]
KEPT = {"max_events", "dedup_horizon", "max_age_days", "cached_events", "flush_events", "flush_seconds"}


class Memory:
    """Nothing outlives a crash."""

    def __init__(self, bounds: Bounds) -> None:
        self.config = HistoryConfig(store="memory", **bounds)  # type: ignore[arg-type]
        self.store: RawStore = open_store(self.config)

    def crash(self, cut: int) -> None:
        """The process is gone."""
        self.store = open_store(self.config)

    @contextmanager
    def full(self) -> Iterator[bool]:
        """Yields whether writes fail now."""
        yield False

    def end(self) -> None:
        """Remove everything."""
        self.store.close()


class RocksDB(Memory):
    """A crash is a copy of the directory as it lies there, its newest write-ahead log cut short."""

    def __init__(self, bounds: Bounds) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="store-machine-"))
        self.lives = 0
        self._open(bounds)

    def _open(self, bounds: Bounds) -> None:
        self.path = self.root / str(self.lives)
        self.config = HistoryConfig(store="rocksdb", path=str(self.path), sync=False, **bounds)  # type: ignore[arg-type]
        self.store = open_store(self.config)

    def crash(self, cut: int) -> None:
        self.lives += 1
        after = self.root / str(self.lives)
        while not self._copied(after):
            shutil.rmtree(after, ignore_errors=True)
        self.store.close()
        shutil.rmtree(self.path)
        newest = max(after.glob("*.log"), key=lambda path: path.name)
        os.truncate(newest, max(0, newest.stat().st_size - cut))
        self._open(self.config.model_dump(include=KEPT))

    def _copied(self, target: Path) -> bool:
        """Copy the directory; False when a compaction in the background changed it meanwhile: no crash sees that."""
        before = self._files()
        with suppress(shutil.Error):
            shutil.copytree(self.path, target, ignore=shutil.ignore_patterns("LOCK", "LOG*"))
            return self._files() == before
        return False

    def _files(self) -> dict[str, int]:
        with suppress(FileNotFoundError):
            return {path.name: path.stat().st_size for path in self.path.iterdir() if not path.name.startswith("LOG")}
        return {}

    @contextmanager
    def full(self) -> Iterator[bool]:
        """Files may not grow: the kernel refuses what goes beyond the log's present size and a few bytes."""
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        room = max(path.stat().st_size for path in self.path.glob("*.log")) + 10
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
        try:
            yield True
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    def end(self) -> None:
        super().end()
        shutil.rmtree(self.root)


class Redis(Memory):
    """A crash loses what the client knows; the server stays. Nothing waits in memory."""

    def __init__(self, bounds: Bounds, url: str) -> None:
        bounds = {**bounds, "flush_events": 0}
        self._client: Any = redis.Redis.from_url(url)
        self._client.flushall()
        self.config = HistoryConfig(store="redis", url=url, shards=3, **bounds)  # type: ignore[arg-type]
        self.store = open_store(self.config)

    def crash(self, cut: int) -> None:
        self.store.close()
        self.store = open_store(self.config)

    @contextmanager
    def full(self) -> Iterator[bool]:
        self._client.config_set("maxmemory", "1")
        try:
            yield True
        finally:
            self._client.config_set("maxmemory", "0")

    def end(self) -> None:
        super().end()
        self._client.close()


class CrashError(Exception):
    """In the place of a SIGKILL between two transactions."""


class StoreMachine(RuleBasedStateMachine):
    """A log of three partitions, its one reader, and what the store must hold."""

    backend_of: Callable[[Bounds], Memory]

    @initialize(
        max_events=st.integers(1, 200),
        horizon=st.integers(1, 8) | st.integers(1, 150),
        max_age=st.none() | st.integers(1, 60),
        cached=st.sampled_from([0, 1, 50, 1_000_000, 1_000_000]),
        waiting=st.sampled_from([0, 1, 100, 1_000_000]),
    )
    def begin(self, max_events: int, horizon: int, max_age: int | None, cached: int, waiting: int) -> None:
        """Bounds are small, so that they are met."""
        bounds = {"max_events": max_events, "dedup_horizon": horizon}
        memory = {"cached_events": cached, "flush_events": waiting, "flush_seconds": 3600}
        self.backend = type(self).backend_of({**bounds, "max_age_days": max_age, **memory})
        self.bounds = {**bounds, "max_age": None if max_age is None else max_age * DAY}
        self.topic_id, self.clock, self.events, self.day = "id-0", 1_000, 0, BEGIN + 100
        # None: poison, which takes an offset and gives no entry.
        self.log: list[list[Entry | None]] = [[] for _ in range(PARTITIONS)]
        self.at: dict[int, Position] = {}
        self.placed: list[Placed] = []
        # Shards (of Redis) that a broken-off batch left ahead of their partition: (partition, shard) -> offset.
        self.ahead: dict[tuple[int, int], int] = {}
        self.snapshots: list[Snapshot] = [({}, 0)]
        self.zombies: list[RawStore] = []

    @property
    def store(self) -> RawStore:
        """As it is open now."""
        return self.backend.store

    def _add(self, partition: int, user: int, **values: int) -> None:
        self.clock += 1
        log = self.log[partition]
        log.append(Entry(len(log), f"u{user}", log_ms=self.day * DAY * 1000 + self.clock, **values))

    @rule(
        partition=PARTITION,
        users=st.lists(USER, min_size=1, max_size=4),
        count=st.integers(1, 90),
        ts=st.integers(0, 150),
        step=st.integers(-1, 1),
    )
    def produce(self, partition: int, users: list[int], count: int, ts: int, step: int) -> None:
        """In order of time, in the opposite order, or all at once; before or behind what is there already."""
        for i in range(count):
            self.events += 1
            self._add(
                partition,
                users[i % len(users)],
                key=self.events,
                ts=ts + 100 + step * i,
                action=i % 7,
                event_hash=self.events,
            )

    @rule(partition=PARTITION, newest=st.sampled_from([1, 4, 30, 10_000]), data=st.data())
    def duplicate(self, partition: int, newest: int, data: st.DataObject) -> None:
        """Any earlier messages come again, behind or in another partition."""
        known = [entry for log in self.log for entry in log if entry is not None and entry.key is not None]
        if known:
            for entry in data.draw(st.lists(st.sampled_from(known[-newest:]), min_size=1, max_size=20)):
                values = {"key": entry.key, "ts": entry.ts, "action": entry.action, "event_hash": entry.event_hash}
                self._add(partition, int(entry.user_id[1:]), **values)

    @rule(partition=PARTITION)
    def poison(self, partition: int) -> None:
        """A message that goes to the dead letters."""
        self.log[partition].append(None)

    @rule(partition=PARTITION, user=USER)
    def erase(self, partition: int, user: int) -> None:
        """An erasure is a message."""
        self._add(partition, user)

    @rule()
    def clock_back(self) -> None:
        """The log's clock is set back."""
        self.clock = max(0, self.clock - 500)

    @rule(days=st.integers(1, 40))
    def days_pass(self, days: int) -> None:
        """Events grow old."""
        self.day += days

    def _batch(self, partition: int, most: int) -> PartitionBatch:
        position = self.at.get(partition)
        start = 0 if position is None else position.offset
        taken = self.log[partition][start : start + most]
        entries = [entry for entry in taken if entry is not None]
        expected = None if position is None else start
        return PartitionBatch(TOPIC, self.topic_id, partition, expected, start + len(taken), entries)

    def _shard(self, user_id: str) -> int:
        return self.store._shard(user_id) if isinstance(self.store, RedisStore) else 0

    def _place(self, batch: PartitionBatch, shards: set[int] | None = None) -> None:
        """What the store now holds of a batch: all, or that of some shards."""
        for entry in batch.entries:
            shard = self._shard(entry.user_id)
            if (shards is None or shard in shards) and entry.offset >= self.ahead.get((batch.partition, shard), 0):
                self.placed.append(Placed(self.topic_id, batch.partition, entry))
        if shards is None:
            self.at[batch.partition] = Position(self.topic_id, batch.next_offset)
        self.snapshots.append((dict(self.at), len(self.placed)))

    @rule(partition=PARTITION, most=st.integers(1, 150))
    def consume(self, partition: int, most: int) -> None:
        """The next messages, those of one batch."""
        batch = self._batch(partition, most)
        self.store.apply(batch)
        self._place(batch)

    @rule(partition=PARTITION, most=st.integers(1, 150), shift=st.sampled_from([-3, -1, 1, 4]))
    def stale_batch(self, partition: int, most: int, shift: int) -> None:
        """A writer that expects another position writes nothing."""
        batch = self._batch(partition, most)
        wrong = PartitionBatch(
            TOPIC, self.topic_id, partition, (batch.expected or 0) + shift, batch.next_offset, batch.entries
        )
        with pytest.raises(PositionConflictError):
            self.store.apply(wrong)

    @precondition(lambda self: isinstance(self.store, RedisStore) and len(self.zombies) < 2)
    @rule(partition=PARTITION)
    def rebalance(self, partition: int) -> None:
        """Another writer takes over; the old one believes for a while that it still owns the partition."""
        self.store.positions(TOPIC)
        old = self.backend.store
        self.backend.store = open_store(self.backend.config)
        self.zombies.append(old)
        batch = self._batch(partition, 50)
        if batch.entries:
            self.store.apply(batch)
            with pytest.raises(PositionConflictError):
                old.apply(batch)
            self._place(batch)

    @precondition(lambda self: isinstance(self.store, RedisStore))
    @rule(partition=PARTITION, survive=st.integers(1, 2))
    def killed_between_shards(self, partition: int, survive: int) -> None:
        """Some shards have the batch, the partition's position stays."""
        batch, done = self._batch(partition, 100), []
        original = self.store._apply_shard  # type: ignore[attr-defined]

        def killing(shard: int, *rest: Any) -> Any:
            if len(done) == survive:
                raise CrashError
            result = original(shard, *rest)
            done.append(shard)
            return result

        if len({self._shard(entry.user_id) for entry in batch.entries}) <= survive:
            return
        self.store._apply_shard = killing  # type: ignore[attr-defined]
        with pytest.raises(CrashError):
            self.store.apply(batch)
        self._place(batch, set(done))
        for shard in done:
            self.ahead[partition, shard] = max(self.ahead.get((partition, shard), 0), batch.next_offset)
        self.backend.crash(0)

    @rule()
    def flush(self) -> None:
        """What waited in memory is written, of all partitions."""
        self.store.flush()
        assert self.store.written(TOPIC).items() <= {p: at.offset for p, at in self.at.items()}.items()

    @rule(cut=st.one_of(st.just(0), st.integers(0, 5_000)))
    def crash(self, cut: int) -> None:
        """The state is that after a whole batch; with nothing cut off the newest that was written."""
        written = self.store.written(TOPIC)
        self.backend.crash(cut)
        if type(self.backend) is Memory:
            self.at, self.placed, self.snapshots = {}, [], [({}, 0)]
        elif type(self.backend) is RocksDB:
            waits = self.backend.config.flush_events > 0
            self._take_back(self.snapshots[-1:] if cut == 0 and not waits else self.snapshots[::-1])
            if cut == 0:
                assert all(self.at[partition].offset >= offset for partition, offset in written.items())
            # An operator's decision may be lost with the rest; it is taken again.
            for partition in [p for p, position in self.at.items() if position.topic_id != self.topic_id]:
                self._reset(partition, Position(self.topic_id, 0))

    def _write(self, batch: PartitionBatch) -> None:
        self.store.apply(batch)
        self.store.flush()

    def _take_back(self, states: list[Snapshot]) -> None:
        """The store holds what one of these states is."""
        for at, length in states:
            if self.store.positions(TOPIC) == at and self._holds(self.placed[:length]):
                break
        else:
            raise AssertionError("the store is in a state that no sequence of whole batches made")
        self.at, self.placed = dict(at), self.placed[:length]
        self.snapshots.append((dict(at), length))

    @rule(partition=PARTITION, most=st.integers(1, 150))
    def disk_full(self, partition: int, most: int) -> None:
        """The batch is refused whole, with all that waited; later it goes through."""
        batch = self._batch(partition, most)
        if batch.next_offset == (batch.expected or 0):
            return
        written = self.store.written(TOPIC)
        with self.backend.full() as full:
            if full:
                with pytest.raises(StoreUnavailableError):
                    self._write(batch)
        if full and self.backend.config.flush_events:
            self._take_back(self.snapshots[::-1])
            assert all(self.at[p].offset == offset for p, offset in written.items())
            batch = self._batch(partition, most)
        self.store.apply(batch)
        self._place(batch)

    @rule()
    def topic_recreated(self) -> None:
        """Nothing of the new topic is applied before an operator decides."""
        self.topic_id = f"id-{int(self.topic_id[3:]) + 1}"
        self.log = [[] for _ in range(PARTITIONS)]
        for partition, position in dict(self.at).items():
            late = [Entry(0, "u0", 1, 1, 1, 1)]
            with pytest.raises(TopicRecreatedError):
                self.store.apply(PartitionBatch(TOPIC, self.topic_id, partition, position.offset, 1, late))
        for partition in range(PARTITIONS):
            self._reset(partition, Position(self.topic_id, 0))

    @rule(partition=PARTITION, back=st.integers(0, 60))
    def go_back(self, partition: int, back: int) -> None:
        """An operator has messages applied again; event ids and tombstones keep them from counting twice."""
        position = self.at.get(partition)
        self._reset(partition, None if position is None else Position(self.topic_id, max(0, position.offset - back)))

    def _reset(self, partition: int, position: Position | None) -> None:
        self.store.reset_position(TOPIC, partition, position)
        self.at.pop(partition, None)
        if position is not None:
            self.at[partition] = position
        self.ahead = {place: offset for place, offset in self.ahead.items() if place[0] != partition}
        self.snapshots.append((dict(self.at), len(self.placed)))

    def _holds(self, placed: list[Placed]) -> bool:
        now = self.day * DAY
        expected = fold(placed, **self.bounds, now=now)  # type: ignore[arg-type]
        for user in range(USERS):
            rows = expected.get(f"u{user}", [])
            for limit in (None, 5):
                with mock.patch("time.time", return_value=now):
                    found = self.store.read(f"u{user}", limit)
                got = list(zip(found.ts.tolist(), found.keys.tolist(), found.actions.tolist(), strict=True))
                if (got, found.count) != (rows if limit is None else rows[-limit:], len(rows)):
                    return False
        return True

    @invariant()
    def the_store_is_what_the_model_says(self) -> None:
        """Positions and histories."""
        if hasattr(self, "backend"):
            assert self.store.positions(TOPIC) == self.at
            assert self._holds(self.placed)
            assert all(offset <= self.at[p].offset for p, offset in self.store.written(TOPIC).items())

    def teardown(self) -> None:
        """Leave nothing behind."""
        if hasattr(self, "backend"):
            self.backend.end()
            for store in self.zombies:
                store.close()


@pytest.mark.parametrize("kind", ["memory", "rocksdb", pytest.param("redis", marks=pytest.mark.redis)])
def test_a_store_is_its_model_whatever_happens(kind: str, request: pytest.FixtureRequest) -> None:
    class Machine(StoreMachine):
        pass

    if kind == "redis":
        url = request.getfixturevalue("redis_server").url
        Machine.backend_of = staticmethod(lambda bounds: Redis(bounds, url))  # type: ignore[assignment]
    else:
        Machine.backend_of = Memory if kind == "memory" else RocksDB  # type: ignore[assignment]
    options = settings(
        max_examples=RUNS,
        stateful_step_count=STEPS,
        deadline=None,
        phases=[Phase.reuse, Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(Machine, settings=options)

"""The RocksDB store against what one would write at first: one value a user, read, changed and written; Redis lists.

Ingest: real events in order of time, from empty; and events of random users, the worst order there is, to histories of
1,000 and of 10,000 events. Batches of 2,000, each written when applied, or (`waiting`) 20,000 events at once, with
the position, as both stores can do; the last of them within the time. Both peers keep no event ids, so unlike ours they
count a repeated event twice. Nobody waits for the disk. Reads: the newest 1,000 events of users who have as many.
"""

from __future__ import annotations

import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import redis
from bench_kit import Figure, compare_timed, main, value
from past_events import past_events
from rocksdict import Options, Rdict, WriteBatch, WriteOptions
from services import RedisServer

from hymirec.config import HistoryConfig
from hymirec.history import Entry, PartitionBatch, RawStore, open_store
from hymirec.history.record import RECORD

BATCH, BATCHES, READS = 2_000, 10, 2_000
WAITING = BATCH * BATCHES
REAL_EVENTS, REAL_ROUNDS = 300_000, 3
# Users of histories of so many events.
LENGTHS = {1_000: 2_000, 10_000: 200}


class Events:
    """Events of random users, one offset after the other."""

    def __init__(self, users: int, seed: int = 1) -> None:
        self._rng, self._users, self.offset = random.Random(seed), users, 0

    def take(self, count: int, user: Callable[[int], int] | None = None) -> list[Entry]:
        """The next events."""
        entries = []
        for _ in range(count):
            i, who = self.offset, self._rng.randrange(self._users) if user is None else user(self.offset)
            entries.append(Entry(i, f"user-{who}", self._rng.getrandbits(64), i, 2, self._rng.getrandbits(64), i))
            self.offset += 1
        return entries


class Ours:
    """The store; so many events wait in memory."""

    def __init__(self, directory: Path, waiting: int = 0) -> None:
        directory.mkdir(exist_ok=True)
        self._path, self._waiting = directory / "ours", waiting
        self._position: int | None = None
        self._open()

    def _open(self) -> None:
        config = {"path": str(self._path), "sync": False, "flush_events": self._waiting, "flush_seconds": 3600.0}
        self._store: RawStore = open_store(HistoryConfig.model_validate(config))

    def copy(self, directory: Path, waiting: int) -> Ours:
        """The same histories in another store."""
        self._store.close()
        shutil.copytree(self._path, directory / "ours")
        self._open()
        other = Ours(directory, waiting)
        other._position = self._position
        return other

    def apply(self, entries: Sequence[Entry]) -> None:
        """One batch."""
        following = entries[-1].offset + 1
        self._store.apply(PartitionBatch("events", "id", 0, self._position, following, entries))
        self._position = following

    def flush(self) -> None:
        """Write what waits."""
        self._store.flush()

    def read(self, user: str) -> int:
        """Newest 1,000."""
        return len(self._store.read(user, 1_000))


class OneValue:
    """All events of a user in one value of RocksDB; a write touches a user once, and so many events make one."""

    def __init__(self, directory: Path, waiting: int = 0) -> None:
        directory.mkdir(exist_ok=True)
        self._changed: dict[bytes, bytearray] = {}
        self._waiting, self._events, self._last = waiting, 0, 0
        self._db = Rdict(str(directory / "peer"), options=Options(raw_mode=True))
        self._options = WriteOptions()
        self._options.sync = False

    def apply(self, entries: Sequence[Entry]) -> None:
        """Read, change, write."""
        changed = self._changed
        for entry in entries:
            key = entry.user_id.encode()
            if key not in changed:
                changed[key] = bytearray(self._db.get(key) or b"")
            changed[key] += np.array((entry.key, entry.ts, entry.action), RECORD).tobytes()
        self._events, self._last = self._events + len(entries), entries[-1].offset
        if self._events >= self._waiting:
            self.flush()

    def flush(self) -> None:
        """Write what waits."""
        batch = WriteBatch(raw_mode=True)
        for key, content in self._changed.items():
            batch.put(key, bytes(content[-10_000 * RECORD.itemsize :]))
        batch.put(b"position", str(self._last).encode())
        self._db.write(batch, write_opt=self._options)
        self._changed, self._events = {}, 0

    def read(self, user: str) -> int:
        """Newest 1,000."""
        content = self._db.get(user.encode())
        assert isinstance(content, bytes)
        return len(np.frombuffer(content[-1_000 * RECORD.itemsize :], RECORD))


class RedisLists:
    """A list a user, one pipeline a batch."""

    def __init__(self, url: str) -> None:
        self._client = redis.Redis.from_url(url)

    def apply(self, entries: Sequence[Entry]) -> None:
        """Push all, and wait."""
        pipe = self._client.pipeline(transaction=True)
        for entry in entries:
            pipe.rpush(entry.user_id, np.array((entry.key, entry.ts, entry.action), RECORD).tobytes())
        pipe.set("position", entries[-1].offset)
        pipe.execute()

    def flush(self) -> None:
        """Nothing waits."""


def filled(writer: Ours | OneValue, events: Events, length: int, users: int) -> None:
    """Give every user a history."""
    for start in range(0, length * users, 50_000):
        writer.apply(events.take(min(50_000, length * users - start), lambda offset: offset % users))


def ingest(writer: Ours | OneValue | RedisLists, events: Events) -> Callable[[], float]:
    """Seconds of some batches, without making the events."""

    def run() -> float:
        batches = [events.take(BATCH) for _ in range(BATCHES)]
        start = time.perf_counter()
        for batch in batches:
            writer.apply(batch)
        writer.flush()
        return time.perf_counter() - start

    return run


def reads(writer: Ours | OneValue, users: int) -> list[float]:
    """Microseconds of reads of random users."""
    rng, found = random.Random(2), []
    for user in [f"user-{rng.randrange(users)}" for _ in range(READS)]:
        start = time.perf_counter_ns()
        count = writer.read(user)
        found.append((time.perf_counter_ns() - start) / 1e3)
        assert count == 1_000
    return found[READS // 10 :]


def real(events: Sequence[Entry], directory: Path) -> Iterator[Figure]:
    """Everything from empty, once a round."""
    fresh = iter(range(1_000))

    def run(make: Callable[[Path], Ours | OneValue | RedisLists]) -> Callable[[], float]:
        def seconds() -> float:
            writer = make(directory / str(next(fresh)))
            start = time.perf_counter()
            for batch in range(0, len(events), BATCH):
                writer.apply(events[batch : batch + BATCH])
            writer.flush()
            return time.perf_counter() - start

        return seconds

    name = f"ingest of {len(events):,} real events in order of time"
    yield compare_timed(f"{name}, against one value a user", run(Ours), run(OneValue), 5, REAL_ROUNDS)
    ours = run(lambda place: Ours(place, WAITING))
    yield compare_timed(f"{name}, waiting, against one value a user", ours, run(OneValue), 5, REAL_ROUNDS)
    theirs = run(lambda place: OneValue(place, WAITING))
    yield compare_timed(f"{name}, waiting, against one value a user, waiting", ours, theirs, 0, REAL_ROUNDS)
    server = RedisServer(directory / "redis").start()
    try:
        lists = run(lambda _: RedisLists(server.url))
        yield compare_timed(f"{name}, against redis-py pipelined", run(Ours), lists, 10, REAL_ROUNDS)
        yield compare_timed(f"{name}, waiting, against redis-py pipelined", ours, lists, 10, REAL_ROUNDS)
    finally:
        server.kill()


def figures() -> Iterator[Figure]:
    """Real events; both lengths; reads and Redis with the shorter one."""
    with tempfile.TemporaryDirectory() as place:
        yield from real(past_events(REAL_EVENTS), Path(place))
    for length, users in LENGTHS.items():
        directory = Path(tempfile.mkdtemp(prefix="bench-store-"))
        ours, peer, mine, theirs = Ours(directory), OneValue(directory), Events(users), Events(users)
        filled(ours, mine, length, users)
        filled(peer, theirs, length, users)
        name = f"ingest of {BATCHES * BATCH:,} events to {users:,} histories of {length:,}"
        yield compare_timed(f"{name}, against one value a user", ingest(ours, mine), ingest(peer, theirs), 5)
        later = ours.copy(directory / "waiting", WAITING)
        peer_later = OneValue(directory / "waiting", WAITING)
        others = Events(users)
        filled(peer_later, others, length, users)
        every = Events(users, seed=2)
        every.offset = mine.offset
        name_later = f"{name}, waiting"
        yield compare_timed(f"{name_later}, against one value a user", ingest(later, every), ingest(peer, theirs), 5)
        coalescing = ingest(peer_later, others)
        yield compare_timed(f"{name_later}, against one value a user, waiting", ingest(later, every), coalescing, 0)
        if length == min(LENGTHS):
            yield from against_redis(ours, mine, name, directory / "redis", users)
            yield from against_redis(later, every, name_later, directory / "redis-waiting", users)
            own, other = reads(ours, users), reads(peer, users)
            for percent, goal in ((50, 40.0), (99, 100.0)):
                what = f"one value a user: {np.percentile(other, percent):.0f}"
                what = f"read of the newest 1,000 events, p{percent} ({what})"
                yield value(what, float(np.percentile(own, percent)), 0, goal, "us", at_least=False)
        shutil.rmtree(directory, ignore_errors=True)


def against_redis(ours: Ours, mine: Events, name: str, directory: Path, users: int) -> Iterator[Figure]:
    """A Redis on this machine that appends to its file every second."""
    server = RedisServer(directory).start()
    try:
        peer = ingest(RedisLists(server.url), Events(users))
        yield compare_timed(f"{name}, against redis-py pipelined", ingest(ours, mine), peer, 10)
    finally:
        server.kill()


if __name__ == "__main__":
    main(figures)

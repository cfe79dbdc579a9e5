"""What every store promises, checked on each."""

from __future__ import annotations

import contextlib
import resource
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hymirec.config import HistoryConfig
from hymirec.errors import (
    PositionConflictError,
    StoreDamagedError,
    StoreUnavailableError,
    TopicRecreatedError,
    UnsupportedFormatError,
)
from hymirec.history import Entry, PartitionBatch, Position, RawStore, open_store
from hymirec.history.memory import MemoryStore
from hymirec.history.pages import Changes
from hymirec.history.record import seal, unseal
from hymirec.history.rocksdb import RocksDBStore

Opener = Callable[..., RawStore]
TOPIC = "events"


# What is applied waits in memory until somebody says `flush`.
WAITING: dict[str, Any] = {"flush_events": 1_000_000, "flush_seconds": 3600.0}


@pytest.fixture(
    params=[
        "memory",
        "memory, waiting",
        "rocksdb",
        "rocksdb, waiting",
        pytest.param("redis", marks=pytest.mark.redis),
        pytest.param("redis, cluster", marks=pytest.mark.redis),
    ]
)
def opener(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Opener]:
    """Opens a store; again with the same data (memory: the same object)."""
    kind, _, how = request.param.partition(", ")
    extra: dict[str, Any] = dict(WAITING) if how == "waiting" else {}
    if kind == "rocksdb":
        extra |= {"path": str(tmp_path / "store"), "sync": False}
    if kind == "redis":
        server = request.getfixturevalue("redis_cluster" if how == "cluster" else "redis_server")
        server.flush()
        extra = {"url": server.url, "cluster": how == "cluster", "shards": 4}
    opened: list[RawStore] = []

    def open_again(**changes: Any) -> RawStore:
        if kind == "memory" and opened:
            return opened[0]
        if opened:
            opened.pop().close()
        opened.append(open_store(HistoryConfig(store=kind, **extra, **changes)))
        return opened[0]

    yield open_again
    for store in opened:
        store.close()


def event(offset: int, user: str = "u", key: int = 1, ts: int = 100, id_: int | None = None) -> Entry:
    return Entry(offset, user, key, ts, 2, offset + 10**6 if id_ is None else id_)


def batch(entries: list[Entry], expected: int | None, next_offset: int, partition: int = 0) -> PartitionBatch:
    return PartitionBatch(TOPIC, "id-1", partition, expected, next_offset, entries)


def test_an_unknown_user_has_an_empty_history(opener: Opener) -> None:
    history = opener().read("nobody")
    assert len(history) == history.count == 0


def test_events_and_position_are_there_together_and_after_reopening(opener: Opener) -> None:
    store = opener()
    result = store.apply(batch([event(0, key=7, ts=5), event(1, "v", 8), event(2, key=9, ts=6)], None, 3))
    assert (result.applied, sorted(result.users)) == (3, ["u", "v"])
    store = opener()
    assert store.positions(TOPIC) == {0: Position("id-1", 3)}
    history = store.read("u")
    assert history.keys.tolist() == [7, 9]
    assert history.ts.tolist() == [5, 6]
    assert history.actions.tolist() == [2, 2]


def test_a_batch_that_was_applied_is_not_applied_again(opener: Opener) -> None:
    store = opener()
    late = batch([event(0), event(1)], None, 2)
    store.apply(late)
    with contextlib.suppress(PositionConflictError):
        assert store.apply(late).applied == 0
    assert store.read("u").count == 2
    assert store.positions(TOPIC)[0].offset == 2


def test_an_event_id_counts_once(opener: Opener) -> None:
    store = opener()
    store.apply(batch([event(0, id_=5), event(1, id_=5)], None, 2))
    result = store.apply(batch([event(2, id_=5), event(3, id_=6)], 2, 4))
    assert (result.applied, result.duplicates) == (1, 1)
    assert store.read("u").count == 2


def test_late_events_are_read_in_order_of_time_and_ties_in_order_of_the_log(opener: Opener) -> None:
    store = opener()
    store.apply(batch([event(0, key=1, ts=50), event(1, key=2, ts=10), event(2, key=3, ts=50)], None, 3))
    store.apply(batch([event(3, key=4, ts=20), event(4, key=5, ts=50)], 3, 5))
    assert store.read("u").keys.tolist() == [2, 4, 1, 3, 5]


def test_a_limit_keeps_the_newest_and_says_how_many_there_are(opener: Opener) -> None:
    store = opener()
    store.apply(batch([event(i, key=i, ts=i) for i in range(200)], None, 200))
    history = store.read("u", limit=3)
    assert history.keys.tolist() == [197, 198, 199]
    assert history.count == 200
    assert len(store.read("u", limit=0)) == 0


def test_a_history_is_bounded(opener: Opener) -> None:
    store = opener(max_events=100)
    for start in range(0, 1000, 50):
        store.apply(batch([event(i, key=i, ts=i) for i in range(start, start + 50)], start or None, start + 50))
    assert store.read("u").keys.tolist() == list(range(900, 1000))


def test_no_event_is_read_that_is_older_than_the_bound_and_whole_pages_of_them_leave_the_store(opener: Opener) -> None:
    store, day = opener(max_age_days=30), 86_400
    now = int(time.time())
    old = [Entry(i, "u", i, now - 90 * day + i, 2, i, (now - 90 * day) * 1000) for i in range(200)]
    store.apply(batch(old, None, 200))
    assert (store.read("u").count, len(store.dump("u"))) == (0, 7)
    # An hour beside the bound: none gets too old while the test runs.
    since = now - 40 * day + 3600
    young = [Entry(i, "u", i, since + (i - 200) * day // 5, 2, i, now * 1000) for i in range(200, 300)]
    for entry in young:
        store.apply(batch([entry], entry.offset, entry.offset + 1))
    history = store.read("u")
    assert history.keys.tolist() == [i for i in range(200, 300) if young[i - 200].ts >= now - 30 * day]
    assert history.count == len(history)
    assert store.read("u", 3).keys.tolist() == [297, 298, 299]
    # Of five pages two went when the fifth was begun; the third would go with the sixth.
    assert len(store.dump("u")) == 1 + 2 * 2
    assert opener(max_age_days=30).read("u").count == history.count


def test_appending_reads_and_writes_as_much_to_a_long_history_as_to_a_short_one() -> None:
    touched: dict[int, int] = {}
    for length in (100, 10_000):
        store = MemoryStore(HistoryConfig(store="memory", max_age_days=9, cached_events=0))
        day = [int(time.time()) - i % 2 for i in range(length + 200)]
        store.apply(batch([event(i, key=i, ts=day[i]) for i in range(length)], None, length))
        read, commit, sizes = store._get_many, store._commit, [0]

        def counting(keys: Sequence[bytes], read: Any = read, sizes: list[int] = sizes) -> Sequence[bytes | None]:
            values = read(keys)
            sizes[0] += sum(len(value or b"") for value in values)
            return values  # type: ignore[no-any-return]

        def writing(changes: Changes, commit: Any = commit, sizes: list[int] = sizes) -> None:
            sizes[0] += sum(map(len, changes.puts.values()))
            commit(changes)

        store._appender._get_many, store._commit = counting, writing  # type: ignore[method-assign]
        for i in range(length, length + 192):
            store.apply(batch([event(i, ts=day[i])], i, i + 1))
        touched[length] = sizes[0]
    # The shorter one has fewer event ids than the horizon at first.
    assert touched[10_000] < 8 * touched[100]


def test_erasure_is_at_once_and_what_comes_later_starts_afresh(opener: Opener) -> None:
    store = opener()
    store.apply(batch([event(i, key=i) for i in range(150)] + [event(150, "v")], None, 151))
    result = store.apply(batch([event(151, key=7), Entry(152, "u"), event(153, key=8)], 151, 154))
    assert result.erased == 1
    assert store.read("u").keys.tolist() == [8]
    assert store.read("v").count == 1
    assert opener().read("u").keys.tolist() == [8]


def test_a_topic_that_was_created_again_is_refused(opener: Opener) -> None:
    store = opener()
    store.apply(batch([event(0)], None, 1))
    with pytest.raises(TopicRecreatedError, match="deleted and created again"):
        store.apply(PartitionBatch(TOPIC, "id-2", 0, 1, 2, [event(1)]))
    assert store.read("u").count == 1
    store.reset_position(TOPIC, 0, Position("id-2", 0))
    store.apply(PartitionBatch(TOPIC, "id-2", 0, 0, 1, [event(0, id_=99)]))
    assert store.read("u").count == 2


def test_partitions_have_positions_of_their_own(opener: Opener) -> None:
    store = opener()
    store.apply(batch([event(0, "a")], None, 1))
    store.apply(batch([event(0, "b", id_=4), event(1, "c")], None, 2, partition=3))
    assert {p: position.offset for p, position in store.positions(TOPIC).items()} == {0: 1, 3: 2}
    assert store.positions("other") == {}
    store.reset_position(TOPIC, 3, None)
    assert list(store.positions(TOPIC)) == [0]


def test_a_batch_without_usable_messages_moves_the_position(opener: Opener) -> None:
    store = opener()
    store.apply(batch([], None, 5))
    store.apply(batch([], 5, 9))
    store.apply(batch([event(9)], 9, 2000))
    assert opener().positions(TOPIC)[0].offset == 2000


@pytest.mark.parametrize("user", ["ü ☕", "a\0b", "x" * 500, "m", "h\x00\x01"])
def test_any_user_id_keeps_its_own_history(opener: Opener, user: str) -> None:
    store = opener()
    store.apply(batch([event(0, user, 5), event(1, "other", 6)], None, 2))
    assert store.read(user).keys.tolist() == [5]


def test_what_is_kept_of_a_user_is_dumped_and_restored_as_it_is(opener: Opener) -> None:
    store = opener()
    store.apply(batch([event(i, "a*[", key=i) for i in range(150)] + [event(150, "a", 9), Entry(151, "c")], None, 152))
    assert sorted(store.users()) == ["a", "a*["]
    values, other = store.dump("a*["), store.dump("a")
    # A head with the last page in it, two pages of records and two of event ids.
    assert (len(values), len(other), len(store.dump("c"))) == (5, 1, 1)
    assert dict(store.tombstones()) == store.dump("c")
    store.restore("a*[", {})
    assert (store.dump("a*["), store.read("a*[").count) == ({}, 0)
    store.restore("a*[", values)
    assert store.dump("a*[") == values
    assert store.read("a*[").keys.tolist() == list(range(150))
    assert (store.dump("a"), store.read("a").count) == (other, 1)
    # Also when the head is damaged, all of it goes.
    store.restore("a*[", values | {b"ma*[": b"damaged, and long enough"})
    store.restore("a*[", {})
    assert (store.dump("a*["), store.dump("a")) == ({}, other)


@pytest.mark.parametrize("page", range(2))
def test_a_page_that_is_gone_is_told_and_the_next_user_s_is_not_read_for_it(opener: Opener, page: int) -> None:
    store = opener()
    store.apply(
        batch([event(i, "a", key=i) for i in range(150)] + [event(150 + i, "b") for i in range(150)], None, 300)
    )
    values = store.dump("a")
    records = sorted(key for key in values if key[:1] == b"h")
    store.restore("a", {key: value for key, value in values.items() if key != records[page]})
    with pytest.raises(StoreDamagedError, match="page of user 'a' is missing"):
        store.read("a")
    assert store.read("b").count == 150


def test_a_store_says_what_it_takes(opener: Opener) -> None:
    store = opener()
    store.apply(batch([event(0)], None, 1))
    store.flush()
    before = store.stored_bytes()
    # So many that what a Redis server frees meanwhile, buffers of connections (1 MB was seen), is little beside it.
    users = 20_000
    store.apply(batch([event(i, f"user-{i}", i) for i in range(1, users + 1)], 1, users + 1))
    store.flush()
    # Of what any store keeps of an event with its id, or of a user, this is the least.
    assert store.stored_bytes() - before > users * 21
    assert sum(1 for _ in store.users()) == users + 1


def test_tombstones_can_be_brought_along(opener: Opener) -> None:
    store = opener()
    store.apply(batch([Entry(9, "u")], None, 10))
    buried = dict(store.tombstones())
    store.restore("u", {})
    assert dict(store.tombstones()) == {}
    store.bury(buried)
    store.reset_position(TOPIC, 0, None)
    result = store.apply(batch([event(8)], None, 9))
    assert (result.suppressed, result.applied) == (1, 0)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 30), st.integers(0, 40), st.booleans()), max_size=60),
    st.data(),
)
def test_any_cut_into_batches_equals_a_plain_fold(
    opener: Opener, messages: list[tuple[int, int, int, bool]], data: st.DataObject
) -> None:
    store = opener()
    # The store lives through all examples: each has users and a topic of its own.
    topic = prefix = f"{uuid.uuid4().hex}-"
    expected: dict[str, list[tuple[int, int]]] = {}
    seen: dict[str, set[int]] = {}
    entries: list[Entry] = []
    for i, (user, ts, id_, erase) in enumerate(messages):
        name = f"{prefix}{user}"
        if erase and id_ % 8 == 0:
            entries.append(Entry(i, name))
            expected[name], seen[name] = [], set()
            continue
        entries.append(Entry(i, name, 1000 + i, ts, 1, id_))
        if id_ not in seen.setdefault(name, set()):
            seen[name].add(id_)
            expected.setdefault(name, []).append((ts, 1000 + i))
    done = 0
    while done < len(entries):
        step = data.draw(st.integers(1, len(entries) - done))
        part = entries[done : done + step]
        store.apply(PartitionBatch(topic, "id-1", 0, done or None, done + step, part))
        done += step
    for name, events in expected.items():
        history = store.read(name)
        ordered = sorted(events, key=lambda pair: pair[0])
        assert list(zip(history.ts.tolist(), history.keys.tolist(), strict=True)) == ordered


def waiting_store(path: Path, **changes: Any) -> RawStore:
    return open_store(HistoryConfig(store="rocksdb", path=str(path), sync=False, **(WAITING | changes)))


def written(path: Path) -> dict[bytes, bytes]:
    """What another process sees of a store."""
    reader = RocksDBStore(HistoryConfig(store="rocksdb", path=str(path)), read_only=True)
    found = dict(reader._scan(b""))
    reader.close()
    return found


def test_what_waits_is_read_here_at_once_and_elsewhere_after_the_flush(tmp_path: Path) -> None:
    store = waiting_store(tmp_path / "store")
    store.apply(batch([event(i, key=i) for i in range(100)], None, 100))
    store.flush()
    store.apply(batch([event(100, key=100), event(101, "v", key=101)], 100, 102))
    assert (store.positions(TOPIC)[0].offset, store.written(TOPIC)) == (102, {0: 100})
    assert (store.read("u").keys.tolist(), store.read("v").count) == (list(range(101)), 1)
    with contextlib.closing(RocksDBStore(HistoryConfig(path=str(tmp_path / "store")), read_only=True)) as reader:
        assert (reader.positions(TOPIC)[0].offset, reader.read("u").count, reader.read("v").count) == (100, 100, 0)
    store.flush(due=True)
    assert store.written(TOPIC) == {0: 100}
    store.flush()
    assert store.written(TOPIC) == {0: 102}
    with contextlib.closing(RocksDBStore(HistoryConfig(path=str(tmp_path / "store")), read_only=True)) as reader:
        assert (reader.positions(TOPIC)[0].offset, reader.read("u").count, reader.read("v").count) == (102, 101, 1)
    store.close()


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"flush_events": 20}, id="so many events wait"),
        pytest.param({"flush_seconds": 0.001}, id="so long"),
        pytest.param({"cached_events": 1_600}, id="so many users"),
    ],
)
def test_what_waits_is_written_when(tmp_path: Path, changes: dict[str, Any]) -> None:
    store = waiting_store(tmp_path / "store", **changes)
    for i in range(0, 20, 5):
        store.apply(batch([event(j, f"u{j}") for j in range(i, i + 5)], i or None, i + 5))
        time.sleep(0.002)
    store.flush(due=True)
    assert store.written(TOPIC) == {0: 20}
    store.close()


def test_an_erasure_is_written_at_once(tmp_path: Path) -> None:
    store = waiting_store(tmp_path / "store")
    store.apply(batch([event(i, key=i) for i in range(100)], None, 100))
    store.apply(batch([Entry(100, "u"), event(101, "v")], 100, 102))
    assert store.read("u").count == 0
    assert not [key for key in written(tmp_path / "store") if key[:1] in b"mhd" and b"u" in key]
    assert store.written(TOPIC) == {0: 102}
    store.close()


@settings(max_examples=15, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 60), st.integers(1, 80)), min_size=1, max_size=12), st.data()
)
def test_what_is_written_is_the_same_byte_for_byte_however_long_it_waited(
    steps: list[tuple[int, int, int]], data: st.DataObject
) -> None:
    """Pages that fall out of the bounds before they were ever written included."""
    bounds: dict[str, Any] = {"store": "memory", "max_events": 150, "dedup_horizon": 70}
    at_once, later = MemoryStore(HistoryConfig(**bounds)), MemoryStore(HistoryConfig(**bounds, **WAITING))
    done = 0
    for user, first_id, count in steps:
        entries = [event(done + i, f"u{user}", key=i, id_=first_id + done // 2 + i) for i in range(count)]
        if first_id == 0:
            entries.append(Entry(done + count, f"u{user}"))
        following = done + len(entries)
        for store in (at_once, later):
            store.apply(batch(entries, done or None, following, partition=0))
        done = following
        for name in range(4):
            assert later.read(f"u{name}").keys.tolist() == at_once.read(f"u{name}").keys.tolist()
        if data.draw(st.booleans()):
            later.flush()
            assert later._values == at_once._values
    later.flush()
    assert later._values == at_once._values


def test_what_cannot_be_written_is_dropped_with_its_positions_and_applied_again(tmp_path: Path) -> None:
    store = waiting_store(tmp_path / "store")
    store.apply(batch([event(0)], None, 1))
    store.flush()
    store.apply(batch([event(1)], 1, 2))
    store.apply(batch([event(0, "v", id_=7)], None, 1, partition=1))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    room = max(path.stat().st_size for path in (tmp_path / "store").glob("*.log")) + 10
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
    try:
        with pytest.raises(StoreUnavailableError, match="Free space"):
            store.flush()
        assert {p: position.offset for p, position in store.positions(TOPIC).items()} == {0: 1}
        assert (store.read("u").count, store.read("v").count) == (1, 0)
        # Until a write succeeds nothing waits: the trouble is told with every batch.
        with pytest.raises(StoreUnavailableError, match="Free space"):
            store.apply(batch([event(1)], 1, 2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    with pytest.raises(PositionConflictError):
        store.apply(batch([event(1, "v", id_=8)], 1, 2, partition=1))
    store.apply(batch([event(1)], 1, 2))
    assert store.written(TOPIC) == {0: 2}
    store.apply(batch([event(0, "v", id_=7)], None, 1, partition=1))
    assert (store.read("u").count, store.read("v").count) == (2, 1)
    store.close()


def test_a_damaged_page_drops_what_waits_and_leaves_what_is_written() -> None:
    store = MemoryStore(HistoryConfig(store="memory", **WAITING))
    store.apply(batch([event(0), event(1, "v")], None, 2))
    store.restore("v", {key: value[:-1] + b"\0" for key, value in store.dump("v").items()})
    store.apply(batch([event(2)], 2, 3))
    with pytest.raises(StoreDamagedError):
        store.apply(batch([event(3), event(4, "v")], 3, 5))
    assert (store.positions(TOPIC)[0].offset, store.read("u").count) == (2, 1)


def test_a_second_opener_of_rocksdb_is_told_that_there_is_one_writer(tmp_path: Path) -> None:
    config = HistoryConfig(store="rocksdb", path=str(tmp_path / "store"))
    store = open_store(config)
    with pytest.raises(StoreUnavailableError, match="one writer"):
        open_store(config)
    store.close()


def test_rocksdb_refuses_a_batch_that_the_disk_has_no_room_for_and_takes_it_later(tmp_path: Path) -> None:
    store = open_store(HistoryConfig(store="rocksdb", path=str(tmp_path / "store"), sync=False))
    store.apply(batch([event(0)], None, 1))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    room = max(path.stat().st_size for path in (tmp_path / "store").glob("*.log")) + 10
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
    try:
        for _ in range(2):
            with pytest.raises(StoreUnavailableError, match="Free space"):
                store.apply(batch([event(1)], 1, 2))
            # Reads go on.
            assert store.read("u").count == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert store.positions(TOPIC)[0].offset == 1
    store.apply(batch([event(1)], 1, 2))
    assert store.read("u").count == 2
    store.close()


@pytest.mark.redis
def test_a_redis_that_may_evict_is_refused(redis_server: Any) -> None:
    client = redis.Redis.from_url(redis_server.url)
    client.config_set("maxmemory-policy", "allkeys-lru")
    try:
        with pytest.raises(StoreUnavailableError, match="noeviction"):
            open_store(HistoryConfig(store="redis", url=redis_server.url))
    finally:
        client.config_set("maxmemory-policy", "noeviction")


@pytest.mark.redis
def test_a_redis_shard_that_is_ahead_skips_what_it_has(redis_server: Any) -> None:
    redis.Redis.from_url(redis_server.url).flushall()
    config = HistoryConfig(store="redis", url=redis_server.url, shards=2)
    store = open_store(config)
    entries = [event(i, f"user{i % 7}", key=i) for i in range(50)]
    store.apply(batch(entries[:10], None, 10))

    # A crash after the first shard's transaction: the other shard is behind.
    class CrashError(Exception):
        pass

    original, calls = store._apply_shard, []  # type: ignore[attr-defined]

    def crashing(*arguments: Any) -> Any:
        if calls:
            raise CrashError
        calls.append(1)
        return original(*arguments)

    store._apply_shard = crashing  # type: ignore[attr-defined]
    with pytest.raises(CrashError):
        store.apply(batch(entries[10:50], 10, 50))
    again = open_store(config)
    position = again.positions(TOPIC)[0].offset
    assert position == 10
    again.apply(batch(entries[position:50], position, 50))
    total = [again.read(f"user{i}").keys.tolist() for i in range(7)]
    assert total == [[i for i in range(50) if i % 7 == user] for user in range(7)]


def test_a_flipped_bit_is_an_error_and_never_other_data() -> None:
    value = seal(np.arange(26, dtype=np.uint8).tobytes())
    for position in range(len(value)):
        broken = bytearray(value)
        broken[position] ^= 4
        with pytest.raises((StoreDamagedError, UnsupportedFormatError)):
            unseal(bytes(broken), "page")


def test_a_newer_format_is_refused_untouched() -> None:
    import xxhash

    body = b"\x02" + b"future"
    with pytest.raises(UnsupportedFormatError, match="format version 2"):
        unseal(body + xxhash.xxh3_64_digest(body), "page")


@pytest.mark.parametrize("reopened", [False, True])
def test_what_was_erased_leaves_rocksdb_s_files_in_time(tmp_path: Path, reopened: bool) -> None:
    path, user = tmp_path / "store", "somebody-" + "x" * 40
    config = HistoryConfig(store="rocksdb", path=str(path), erased_hours=2 / 3600)
    store = open_store(config)
    assert isinstance(store, RocksDBStore)
    many = [event(i, user if i % 2 else f"other-{i % 10}", i) for i in range(2_000)]
    store.apply(batch(many, None, 2_000))
    assert not (path / "erased-since").exists()
    store.apply(batch([Entry(2_000, user)], 2_000, 2_001))
    assert (path / "erased-since").exists()
    assert any(user.encode() in log.read_bytes() for log in path.glob("*.log"))
    if reopened:
        store.close()
        store = open_store(config)
        assert isinstance(store, RocksDBStore)
    due, deadline = float((path / "erased-since").read_text()) + 1, time.monotonic() + 20
    others = {i: store.read(f"other-{i}").keys.tolist() for i in range(0, 10, 2)}
    while (path / "erased-since").exists():
        store.flush(due=True)
        assert time.monotonic() < deadline
        time.sleep(0.05)
    # Not before half of the window was over.
    assert time.time() >= due
    files = store._db.live_files()
    assert sum(file["num_deletions"] for file in files) == 0
    assert sum(file["num_entries"] for file in files) == sum(1 for _ in store._scan(b""))
    assert not any(user.encode() in log.read_bytes() for log in path.glob("*.log"))
    assert {i: store.read(f"other-{i}").keys.tolist() for i in range(0, 10, 2)} == others
    assert store.read(user).count == 0
    # And again for the next one.
    store.apply(batch([Entry(2_001, "other-2")], 2_001, 2_002))
    assert (path / "erased-since").exists()
    store.close()


def test_closing_a_store_breaks_a_rewrite_off_and_it_is_due_again(tmp_path: Path) -> None:
    config = HistoryConfig(store="rocksdb", path=str(tmp_path / "store"), erased_hours=1e-9, sync=False)
    store = open_store(config)
    for start in range(0, 60_000, 20_000):
        entries = [event(i, f"u{i % 3000}", i) for i in range(start, start + 20_000)]
        store.apply(batch(entries, start or None, start + 20_000))
    store.apply(batch([Entry(60_000, "u7")], 60_000, 60_001))
    store.flush(due=True)
    store.close()
    store = open_store(config)
    assert store.read("u7").count == 0
    assert store.read("u8").count == 20
    while (tmp_path / "store" / "erased-since").exists():
        store.flush(due=True)
        time.sleep(0.02)
    assert store.read("u8").count == 20
    store.close()

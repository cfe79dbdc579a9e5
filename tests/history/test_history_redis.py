"""What only the Redis store must bear: lost writes, late writers, two partitions with one user."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import redis
from services import RedisClusterServers, RedisServer
from stream_logs import LogUnderTest

from hymirec.catalog.events import Event
from hymirec.config import HistoryConfig
from hymirec.errors import PositionConflictError, StoreUnavailableError, TopicRecreatedError
from hymirec.history import Entry, HistoryStore, PartitionBatch, open_store
from hymirec.streaming import HistoryConsumer, event_message

pytestmark = pytest.mark.redis
TOPIC = "events"


def fresh(server: RedisServer, shards: int = 4) -> HistoryStore:
    server.flush()
    return another(server, shards)


def another(server: RedisServer, shards: int = 4) -> HistoryStore:
    return open_store(HistoryConfig(store="redis", url=server.url, shards=shards))


def batch(start: int, stop: int, expected: int | None, partition: int = 0, users: int = 6) -> PartitionBatch:
    entries = [Entry(i, f"u{i % users}", i, i, 1, i * 10 + partition, 1 + i) for i in range(start, stop)]
    return PartitionBatch(TOPIC, "id", partition, expected, stop, entries)


def total(store: HistoryStore, users: int = 6) -> int:
    return sum(store.read(f"u{user}").count for user in range(users))


def test_a_server_that_came_back_without_its_last_writes_is_found_and_the_hole_is_filled(
    redis_server: RedisServer,
) -> None:
    store = fresh(redis_server)
    store.apply(batch(0, 20, None))
    client = redis.Redis.from_url(redis_server.url)
    saved = {key: client.dump(key) for key in client.scan_iter()}
    store.apply(batch(20, 40, 20))
    client.flushall()
    for key, value in saved.items():
        client.restore(key, 0, value)
    # One user only: the shard that is touched must notice by itself.
    with pytest.raises(PositionConflictError, match="lost writes"):
        store.apply(PartitionBatch(TOPIC, "id", 0, 40, 41, [Entry(40, "u1", 40, 40, 1, 400)]))
    position = store.positions(TOPIC)[0].offset
    assert position == 20
    store.apply(batch(20, 41, 20))
    assert total(store) == 41
    store.close()


def test_a_late_writer_is_refused_and_finds_its_events_there(redis_server: RedisServer) -> None:
    late = fresh(redis_server)
    late.apply(batch(0, 10, None))
    newer = another(redis_server)
    assert newer.positions(TOPIC)[0].offset == 10
    newer.apply(batch(10, 30, 10))
    with pytest.raises(PositionConflictError):
        late.apply(batch(10, 20, 10))
    assert total(late) == 30
    assert late.positions(TOPIC)[0].offset == 30
    late.apply(batch(30, 40, 30))
    with pytest.raises(PositionConflictError):
        newer.apply(batch(30, 35, 30))
    assert total(newer) == 40
    assert newer.read("u0").keys.tolist() == list(range(0, 40, 6))


def test_a_reset_that_was_broken_off_is_told_and_skips_nothing_of_the_new_topic(redis_server: RedisServer) -> None:
    store = fresh(redis_server)
    store.apply(batch(0, 40, None))
    # The operator's process died after half of the shards.
    client = redis.Redis.from_url(redis_server.url)
    for shard in (0, 1):
        client.delete(b"{s%d}p%s:0" % (shard, TOPIC.encode()))
    entries = [Entry(i, f"u{i % 6}", i, i, 1, 1_000 + i) for i in range(30)]
    created_again = PartitionBatch(TOPIC, "id-2", 0, None, 30, entries)
    again = another(redis_server)
    with pytest.raises(TopicRecreatedError):
        again.apply(created_again)
    assert total(again) == 40
    again.reset_position(TOPIC, 0, None)
    assert again.apply(created_again).applied == 30
    assert total(again) == 70


def test_a_user_with_events_in_two_partitions_loses_none_to_two_writers(redis_server: RedisServer) -> None:
    stores = [fresh(redis_server, shards=1), another(redis_server, shards=1)]
    failures: list[Exception] = []

    def write(partition: int) -> None:
        try:
            for start in range(0, 60, 5):
                stores[partition].apply(batch(start, start + 5, start or None, partition, users=1))
        except Exception as e:  # noqa: BLE001 - told by the main thread
            failures.append(e)

    threads = [threading.Thread(target=write, args=(partition,)) for partition in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # With every batch changing the same user, a writer may give up; it then reads its position and goes on.
    for partition, store in enumerate(stores):
        found = store.positions(TOPIC).get(partition)
        start = None if found is None else found.offset
        if (start or 0) < 60:
            store.apply(batch(start or 0, 60, start, partition, users=1))
    assert all(isinstance(failure, PositionConflictError) for failure in failures)
    assert stores[0].read("u0").count == 120


def test_a_dead_server_is_unavailable_and_the_password_is_not_told(tmp_path_factory: pytest.TempPathFactory) -> None:
    server = RedisServer(tmp_path_factory.mktemp("redis"), appendfsync="always").start()
    store = another(server)
    store.apply(batch(0, 10, None))
    server.kill()
    with pytest.raises(StoreUnavailableError, match="Redis at 127"):
        store.apply(batch(10, 20, 10))
    with pytest.raises(StoreUnavailableError):
        store.read("u1")
    url = server.url.replace("redis://", "redis://:secret@")
    with pytest.raises(StoreUnavailableError) as raised:
        open_store(HistoryConfig(store="redis", url=url))
    assert "secret" not in str(raised.value)
    server.start()
    assert store.positions(TOPIC)[0].offset == 10
    store.apply(batch(10, 20, 10))
    assert total(store) == 20
    server.stop()


def test_a_node_of_a_cluster_that_is_killed_stops_writing_until_it_is_back_and_loses_nothing(
    tmp_path: Path, redis_cluster: RedisClusterServers
) -> None:
    redis_cluster.flush()
    log = LogUnderTest("file", tmp_path, None)
    history = HistoryConfig(store="redis", url=redis_cluster.url, cluster=True, shards=8)
    store = open_store(history)
    consumer = HistoryConsumer(log.open(), store, log.config)
    consumer.start()

    def send(numbers: range) -> list[tuple[int, int]]:
        return (
            log.open()
            .producer()
            .send([event_message(Event(event_id=f"e{i}", user_id=f"u{i % 6}", item_id=str(i), ts=i)) for i in numbers])
        )

    try:
        assert consumer.wait_for(send(range(100)), 20)
        node = redis_cluster.nodes[1]
        node.kill()
        places = send(range(100, 200))
        assert not consumer.wait_for(places, 3)
        assert "store" in consumer.status().problems
        node.start()
        assert consumer.wait_for(places, 30)
        assert total(store) == 200
        # Another process finds the same.
        other = open_store(history)
        assert [other.read(f"u{user}").ts.tolist() for user in range(6)] == [list(range(u, 200, 6)) for u in range(6)]
        other.close()
    finally:
        consumer.stop()
        store.close()

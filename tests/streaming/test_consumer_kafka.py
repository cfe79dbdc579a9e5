"""The consumer on a real Kafka broker, with both clients, into RocksDB and Redis."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import redis
from patience import until
from services import KafkaBroker, RedisServer
from stream_logs import LogUnderTest

from hymirec.catalog.events import Event
from hymirec.catalog.keys import item_key
from hymirec.config import HistoryConfig
from hymirec.history import HistoryStore, open_store
from hymirec.streaming import HistoryConsumer, event_message, open_log

pytestmark = pytest.mark.kafka
USERS = 7
GROUPS = [("kafka-python", "classic"), ("confluent", "classic"), ("confluent", "consumer")]


def message(i: int) -> tuple[str, bytes]:
    return event_message(Event(event_id=f"e{i}", user_id=f"u{i % USERS}", item_id=str(i), ts=1000 + i))


def everything(store: HistoryStore) -> list[list[int]]:
    return [store.read(f"u{user}").keys.tolist() for user in range(USERS)]


def expected(count: int) -> list[list[int]]:
    return [[item_key(i) for i in range(user, count, USERS)] for user in range(USERS)]


@pytest.mark.parametrize("kind", ["kafka-python", "confluent"])
def test_a_broker_killed_and_a_topic_created_again_lose_and_double_nothing(
    kind: str, tmp_path: Path, kafka_broker: KafkaBroker
) -> None:
    log = LogUnderTest(kind, tmp_path, kafka_broker)
    store = open_store(HistoryConfig(store="rocksdb", path=str(tmp_path / "store"), sync=False))
    consumer = HistoryConsumer(log.open(), store, log.config, topic_check_seconds=0.5)
    consumer.start()
    assert consumer.wait_for(log.open().producer().send([message(i) for i in range(100)] + [("u1", b"{poison")]), 30)
    assert consumer.status().counts["rejected_malformed"] == 1
    if kind == "confluent":
        kafka_broker.kill()
        time.sleep(0.5)
        kafka_broker.start()
    assert consumer.wait_for(log.open().producer().send([message(i) for i in range(100, 200)]), 40)
    until(lambda: consumer.status().ready)
    assert everything(store) == expected(200)

    log.recreate()
    # Filled beyond the old positions before the consumer can look: only the topic's id tells.
    log.open().producer().send([message(i) for i in range(200, 500)])
    # While the topic is away the log itself may be a problem, too.
    until(lambda: set(consumer.status().problems) == {"0", "1"})
    assert all("created again" in problem for problem in consumer.status().problems.values())
    consumer.stop()
    # The operator decides to go on at the new topic's beginning.
    for partition in (0, 1):
        store.reset_position(log.topic, partition, None)
    again = HistoryConsumer(log.open(), store, log.config)
    again.start()
    places = log.open().producer().send([message(i) for i in range(500, 600)])
    assert again.wait_for(places, 30)
    until(lambda: sum(store.read(f"u{user}").count for user in range(USERS)) == 600)
    assert everything(store) == expected(600)
    again.stop()
    store.close()


@pytest.mark.redis
@pytest.mark.parametrize(("kind", "protocol"), GROUPS)
def test_a_group_of_writers_on_redis_hands_over_and_keeps_every_event_once(
    kind: str, protocol: str, tmp_path: Path, kafka_broker: KafkaBroker, redis_server: RedisServer
) -> None:
    redis.Redis.from_url(redis_server.url).flushall()
    log = LogUnderTest(kind, tmp_path, kafka_broker, partitions=4)
    log.config = log.config.model_copy(update={"group_protocol": protocol})
    producer = log.open().producer()
    history = HistoryConfig(store="redis", url=redis_server.url, shards=8)

    def writer() -> HistoryConsumer:
        consumer = HistoryConsumer(log.open(), open_store(history), log.config, group=True)
        consumer.start()
        return consumer

    one = writer()
    producer.send([message(i) for i in range(200)])
    until(lambda: one.status().counts.get("applied") == 200)
    two = writer()
    sent = 200
    deadline = time.monotonic() + 90
    while not (one.status().positions and two.status().positions and len(one.status().positions) < 4):
        # Events keep coming while partitions move.
        producer.send([message(i) for i in range(sent, sent + 20)])
        sent += 20
        assert time.monotonic() < deadline, "the group did not share its partitions"
        time.sleep(0.05)
    store = open_store(history)
    one.stop()
    producer.send([message(i) for i in range(sent, sent + 200)])
    sent += 200
    until(lambda: sum(store.read(f"u{user}").count for user in range(USERS)) >= sent, 90)
    assert everything(store) == expected(sent)
    until(lambda: len(two.status().positions) == 4, 90)
    assert two.status().ready
    two.stop()
    store.close()


@pytest.mark.redis
@pytest.mark.parametrize(("kind", "protocol"), GROUPS)
def test_a_named_writer_that_comes_back_has_its_partitions_again_and_the_others_never_stop(
    kind: str, protocol: str, tmp_path: Path, kafka_broker: KafkaBroker, redis_server: RedisServer
) -> None:
    redis_server.flush()
    log = LogUnderTest(kind, tmp_path, kafka_broker, partitions=4)
    # Longer than the restart below; where the broker keeps the time, a member that leaves says that it comes back.
    log.config = log.config.model_copy(update={"group_protocol": protocol, "session_timeout_seconds": 30.0})
    history = HistoryConfig(store="redis", url=redis_server.url, shards=4)

    def writer(name: str) -> HistoryConsumer:
        stream = log.config.model_copy(update={"member": name})
        consumer = HistoryConsumer(open_log(stream), open_store(history), stream, group=True)
        consumer.start()
        return consumer

    def partitions(consumer: HistoryConsumer) -> list[int]:
        return sorted(consumer.status().positions)

    one, two = writer("one"), writer("two")
    until(lambda: len(partitions(one)) == len(partitions(two)) == 2)
    before, others = partitions(one), partitions(two)
    producer = log.open().producer()
    producer.send([message(i) for i in range(100)])
    one.stop()
    # While it is away nobody reads its partitions, and the other one goes on with its own.
    places = producer.send([message(i) for i in range(100, 200)])
    assert two.wait_for([place for place in places if place[0] in others], 20)
    assert partitions(two) == others
    again = writer("one")
    try:
        assert again.wait_for([place for place in places if place[0] in before], 20)
        assert partitions(again) == before
        assert partitions(two) == others
        store = open_store(history)
        assert everything(store) == expected(200)
        store.close()
    finally:
        again.stop()
        two.stop()


@pytest.mark.redis
@pytest.mark.parametrize(("kind", "protocol"), GROUPS)
def test_of_two_writers_of_one_name_one_goes_on_without_a_name(
    kind: str, protocol: str, tmp_path: Path, kafka_broker: KafkaBroker, redis_server: RedisServer
) -> None:
    redis_server.flush()
    log = LogUnderTest(kind, tmp_path, kafka_broker, partitions=4)
    log.config = log.config.model_copy(update={"group_protocol": protocol, "member": "one"})
    history = HistoryConfig(store="redis", url=redis_server.url, shards=4)
    writers = [HistoryConsumer(log.open(), open_store(history), log.config, group=True) for _ in range(2)]
    try:
        writers[0].start()
        until(lambda: len(writers[0].status().positions) == 4)
        writers[1].start()
        producer, sent, deadline = log.open().producer(), 0, time.monotonic() + 60

        def shared() -> bool:
            held = [set(writer.status().positions) for writer in writers]
            return not held[0] & held[1] and len(held[0] | held[1]) == 4 and all(w.status().ready for w in writers)

        while not (shared() and all(len(writer.status().positions) == 2 for writer in writers)):
            producer.send([message(i) for i in range(sent, sent + 10)])
            sent += 10
            assert time.monotonic() < deadline, [writer.status() for writer in writers]
            time.sleep(0.1)
        store = open_store(history)
        until(lambda: sum(store.read(f"u{user}").count for user in range(USERS)) >= sent)
        assert everything(store) == expected(sent)
        store.close()
    finally:
        for writer in writers:
            writer.stop()

"""The services that tests stand on are real and come back after a kill."""

from __future__ import annotations

import pytest
import redis
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from services import KafkaBroker, RedisServer


@pytest.mark.kafka
def test_a_killed_broker_comes_back_with_its_topics_and_messages(kafka_broker: KafkaBroker) -> None:
    kafka_broker.create_topic("services", 2)
    producer = KafkaProducer(bootstrap_servers=kafka_broker.bootstrap, acks="all")
    producer.send("services", b"value", partition=1).get(timeout=20)
    producer.close()
    kafka_broker.kill()
    kafka_broker.start()
    consumer = KafkaConsumer(bootstrap_servers=kafka_broker.bootstrap, auto_offset_reset="earliest")
    try:
        assert consumer.end_offsets([TopicPartition("services", 1)]) == {TopicPartition("services", 1): 1}
    finally:
        consumer.close()


@pytest.mark.redis
def test_redis_keeps_synced_writes_over_a_kill(tmp_path_factory: pytest.TempPathFactory) -> None:
    server = RedisServer(tmp_path_factory.mktemp("redis"), appendfsync="always").start()
    try:
        with redis.Redis.from_url(server.url) as client:
            client.set("a", "1")
        server.kill()
        server.start()
        with redis.Redis.from_url(server.url) as client:
            assert client.get("a") == b"1"
    finally:
        server.stop()

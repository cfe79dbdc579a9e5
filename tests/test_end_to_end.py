"""Real Kafka -> history writer -> Redis -> recommender -> HTTP, over restarts of the service."""

from __future__ import annotations

import json
import time
import urllib.request
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from kafka import KafkaConsumer, KafkaProducer
from services import KafkaBroker, RedisServer
from tiny_run import build_tiny_run

from hymirec.catalog.prepared import Catalog
from hymirec.config import HistoryConfig, ServiceConfig, StreamConfig
from serve_apps.local import run_local, stop_local

pytestmark = [pytest.mark.kafka, pytest.mark.redis, pytest.mark.ray]
VISIBLE_SECONDS = 60.0


class World:
    """A service on Kafka and Redis, and a producer that has nothing to do with the project."""

    def __init__(self, bundle: Path, broker: KafkaBroker, redis: RedisServer) -> None:
        name = uuid.uuid4().hex[:8]
        self.topic, self.dead = f"events-{name}", f"dead-{name}"
        broker.create_topic(self.topic, 3)
        broker.create_topic(self.dead, 1)
        self.brokers = broker.bootstrap
        self.config = ServiceConfig(
            bundle=str(bundle),
            history=HistoryConfig(store="redis", url=redis.url, shards=8),
            stream=StreamConfig(
                source="kafka-python",
                brokers=broker.bootstrap,
                topic=self.topic,
                dead_letter_topic=self.dead,
                group=f"group-{name}",
            ),
        )
        self.producer = KafkaProducer(bootstrap_servers=broker.bootstrap, acks="all")
        self.url = ""

    def start(self) -> None:
        self.url = run_local(self.config, 0)

    def produce(self, messages: Iterable[dict[str, Any] | bytes], key: str) -> None:
        for message in messages:
            value = message if isinstance(message, bytes) else json.dumps(message).encode()
            self.producer.send(self.topic, value, key.encode())
        self.producer.flush()

    def call(self, path: str, body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"content-type": "application/json"})
        with urllib.request.urlopen(request, timeout=30) as reply:
            return json.loads(reply.read())

    def history(self, user: str, count: int) -> list[str]:
        """Item ids of a user's history once it holds `count` events."""
        deadline = time.monotonic() + VISIBLE_SECONDS
        while True:
            found = self.call(f"/v1/users/{user}/history?limit=1000")
            if found["count"] >= count or time.monotonic() > deadline:
                assert found["count"] == count
                return [event["item_id"] for event in found["events"]]
            time.sleep(0.1)

    def recommend(self, user: str, now: int) -> dict[str, Any]:
        reply: dict[str, Any] = self.call("/v1/recommend", {"user_id": user, "k": 10, "now": now})
        return reply

    def dead_letters(self) -> list[tuple[bytes | None, dict[str, bytes]]]:
        consumer = KafkaConsumer(
            self.dead, bootstrap_servers=self.brokers, auto_offset_reset="earliest", consumer_timeout_ms=3000
        )
        letters = [(record.value, dict(record.headers)) for record in consumer]
        consumer.close()
        return letters


@pytest.fixture
def world(tmp_path: Path, kafka_broker: KafkaBroker, redis_server: RedisServer, ray_cluster: None) -> Iterator[World]:
    world = World(build_tiny_run(tmp_path / "run") / "bundle", kafka_broker, redis_server)
    yield world
    stop_local()


def event(number: int, user: str, item: str) -> dict[str, Any]:
    return {
        "event_id": f"{user}-{number}",
        "user_id": user,
        "item_id": item,
        "ts": 1_700_000_000 + number,
        "action": "click",
    }


def test_events_in_kafka_move_recommendations_and_restarts_lose_and_double_none(world: World, tmp_path: Path) -> None:
    catalog = Catalog.open(tmp_path / "run" / "bundle")
    items = [str(catalog.item_id(i)) for i in range(40)]
    now = 1_700_001_000
    user = "ada"
    world.start()
    cold = world.recommend(user, now)
    assert (cold["reason"], cold["degraded"]) == ("cold_start", False)

    world.produce([event(i, user, items[i]) for i in range(8)] + [b"not json"], user)
    world.produce([event(i, "bob", items[39 - i]) for i in range(4)], "bob")
    assert world.history(user, 8) == items[:8]
    first = world.recommend(user, now)
    assert first["reason"] == "full"
    assert [i["item_id"] for i in first["items"]] != [i["item_id"] for i in cold["items"]]
    assert not {i["item_id"] for i in first["items"]} & set(items[:8])

    world.produce([event(i, user, items[20 + i]) for i in range(8, 12)], user)
    expected = items[:8] + items[28:32]
    assert world.history(user, 12) == expected
    second = world.recommend(user, now)
    assert [(i["item_id"], i["score"]) for i in second["items"]] != [(i["item_id"], i["score"]) for i in first["items"]]
    assert second["as_of"]["ts"] == 1_700_000_011

    stop_local()
    # While nothing runs: more events, and some of the old ones again, as a producer that retries would send them.
    world.produce([event(i, user, items[i]) for i in range(3)], user)
    world.produce([event(i, user, items[i]) for i in range(12, 18)], user)
    world.start()
    expected += items[12:18]
    assert world.history(user, 18) == expected

    stop_local()
    world.start()
    assert world.history(user, 18) == expected
    assert world.history("bob", 4) == [items[39 - i] for i in range(4)]
    ((letter, headers),) = world.dead_letters()
    assert letter == b"not json"
    assert headers["reason"] == b"malformed"
    assert headers["topic"] == world.topic.encode()

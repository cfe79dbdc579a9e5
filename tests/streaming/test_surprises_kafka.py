"""What may happen to a log, a store or a clock, on a real Kafka: told within seconds, nothing skipped, and it goes on.

Where an operator has to decide, the test does what the problem says: it stops the writer and calls
`hymirec history reset-position`. Each test prints how long the surprise went unnoticed; the goal is 10 s, what is
asserted leaves room for a busy machine.
"""

from __future__ import annotations

import resource
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import yaml
from cli_kit import hymirec
from kafka import KafkaAdminClient, KafkaProducer, TopicPartition
from patience import PATIENCE_SECONDS, until
from services import KafkaBroker, RedisServer
from stream_logs import LogUnderTest

from hymirec.catalog.events import Event
from hymirec.catalog.keys import item_key
from hymirec.config import HistoryConfig
from hymirec.history import HistoryStore, open_store
from hymirec.streaming import HistoryConsumer, event_message

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(1500)]


def message(i: int) -> tuple[str, bytes]:
    return event_message(Event(event_id=f"e{i}", user_id="u", item_id=str(i), ts=1000 + i))


class Scene:
    """A topic of one partition and a history writer as it is shipped."""

    def __init__(self, log: LogUnderTest, history: HistoryConfig, path: Path) -> None:
        self.log, self.history, self._path = log, history, path
        self._seconds: list[str] = []
        self.store: HistoryStore
        self.consumer: HistoryConsumer

    def start(self) -> None:
        self.store = open_store(self.history)
        self.consumer = HistoryConsumer(self.log.open(), self.store, self.log.config)
        self.consumer.start()

    def stop(self) -> None:
        self.consumer.stop()
        self.store.close()

    def end(self) -> None:
        """Stop, and print what took how long (not before: a full disk has no room for that, too)."""
        self.stop()
        sys.stdout.write("".join(self._seconds))

    def send(self, numbers: range) -> list[tuple[int, int]]:
        producer = self.log.open().producer()
        try:
            return producer.send([message(i) for i in numbers])
        finally:
            producer.close()

    def apply(self, numbers: range) -> None:
        assert self.consumer.wait_for(self.send(numbers), PATIENCE_SECONDS), self.consumer.status()

    def told(self, what: str, problem: str, *words: str) -> None:
        """Wait for the problem, note how long it took, and see that it says the words."""
        begun = time.monotonic()
        until(lambda: problem in self.consumer.status().problems)
        self._seconds.append(f"{what} ({self.log.kind}): told after {time.monotonic() - begun:.1f} s\n")
        status = self.consumer.status()
        assert not status.ready
        for word in words:
            assert word in status.problems[problem]

    def decide(self, offset: int) -> None:
        """What the problem of a partition tells an operator to do."""
        assert "hymirec history reset-position" in self.consumer.status().problems["0"]
        self.stop()
        file = self._path / "serve.yaml"
        values = {"history": self.history.model_dump(mode="json"), "stream": self.log.config.model_dump(mode="json")}
        file.write_text(yaml.safe_dump({"bundle": "none", **values}))
        done = hymirec("history", "reset-position", "--config", file, "--partition", 0, "--offset", offset)
        assert done.exit_code == 0, done.output
        self.start()

    def holds(self, *numbers: int) -> None:
        """The history comes to be of these events, each once."""
        due = [item_key(i) for i in numbers]
        until(lambda: self.store.read("u").count >= len(due))
        assert self.store.read("u").keys.tolist() == due

    def recovers(self) -> None:
        until(lambda: self.consumer.status().ready)


@pytest.fixture(params=["kafka-python", "confluent"])
def scene(request: pytest.FixtureRequest, tmp_path: Path, kafka_broker: KafkaBroker) -> Iterator[Scene]:
    """Running, with 100 events applied."""
    log = LogUnderTest(request.param, tmp_path, kafka_broker, partitions=1)
    found = Scene(log, HistoryConfig(store="rocksdb", path=str(tmp_path / "store"), sync=False), tmp_path)
    found.start()
    found.apply(range(100))
    yield found
    found.end()


@pytest.mark.parametrize("length", [60, 100, 140], ids=["lower", "same", "higher"])
def test_a_topic_created_again(scene: Scene, length: int) -> None:
    scene.log.recreate()
    scene.send(range(200, 200 + length))
    scene.told(f"topic created again with {length} of 100", "0", "created again")
    scene.holds(*range(100))
    scene.decide(0)
    scene.holds(*range(100), *range(200, 200 + length))
    scene.recovers()


def test_a_hole_of_retention(scene: Scene) -> None:
    scene.stop()
    scene.send(range(100, 200))
    broker = scene.log.broker
    assert broker is not None
    admin = KafkaAdminClient(bootstrap_servers=broker.bootstrap)
    admin.delete_records({TopicPartition(scene.log.topic, 0): 150})
    admin.close()
    scene.start()
    scene.told("hole of retention", "0", "150")
    scene.holds(*range(100))
    scene.decide(150)
    scene.holds(*range(100), *range(150, 200))
    scene.recovers()


def test_an_offset_beyond_the_end_of_a_log_restored_from_a_copy(scene: Scene) -> None:
    broker = scene.log.broker
    assert broker is not None
    broker.stop()
    copy = broker.data.with_name(f"{broker.data.name}-copy")
    shutil.copytree(broker.data, copy)
    broker.start()
    scene.apply(range(100, 200))
    broker.stop()
    shutil.rmtree(broker.data)
    copy.rename(broker.data)
    broker.start()
    scene.told("offset beyond the end", "0", "200")
    scene.holds(*range(200))
    scene.decide(100)
    scene.apply(range(200, 210))
    scene.holds(*range(210))
    scene.recovers()


def test_a_sender_of_nonsense(scene: Scene) -> None:
    producer = scene.log.open().producer()
    places = producer.send([("u", b'{"user_id": %d' % i) for i in range(1_200)])
    producer.close()
    scene.told("poison", "0", "cannot be used", "malformed")
    scene.holds(*range(100))
    scene.decide(places[-1][1] + 1)
    scene.apply(range(100, 110))
    scene.holds(*range(110))
    scene.recovers()


def test_a_broker_that_is_gone(scene: Scene) -> None:
    broker = scene.log.broker
    assert broker is not None
    broker.kill()
    scene.told("broker gone", "log", "Kafka")
    scene.holds(*range(100))
    broker.start()
    scene.apply(range(100, 150))
    scene.holds(*range(150))
    scene.recovers()


def test_a_disk_that_is_full(scene: Scene) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    assert scene.history.path is not None
    room = max(path.stat().st_size for path in Path(scene.history.path).glob("*.log")) + 10
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
    try:
        scene.send(range(100, 150))
        scene.told("disk full", "store", "Free space")
        scene.holds(*range(100))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    scene.holds(*range(150))
    scene.recovers()


@pytest.mark.redis
def test_a_store_that_is_gone(tmp_path: Path, kafka_broker: KafkaBroker, redis_server: RedisServer) -> None:
    redis_server.flush()
    log = LogUnderTest("kafka-python", tmp_path, kafka_broker, partitions=1)
    scene = Scene(log, HistoryConfig(store="redis", url=redis_server.url, shards=4), tmp_path)
    scene.start()
    scene.apply(range(100))
    redis_server.stop()
    scene.send(range(100, 150))
    scene.told("store gone", "store")
    redis_server.start()
    scene.holds(*range(150))
    scene.recovers()
    scene.end()


def test_a_clock_that_goes_back(scene: Scene) -> None:
    """Nothing stops: order is the events' own time, and events that seem to be of the future are counted."""
    broker = scene.log.broker
    assert broker is not None
    now = int(time.time())

    def sent(numbers: Sequence[int], clock: int) -> None:
        producer = KafkaProducer(bootstrap_servers=broker.bootstrap, acks="all")
        for i in numbers:
            event = event_message(Event(event_id=f"e{i}", user_id="u", item_id=str(i), ts=clock - 200 + i))
            producer.send(scene.log.topic, event[1], event[0].encode(), timestamp_ms=clock * 1000)
        # Of a client whose clock was not put back.
        event = event_message(Event(event_id=f"now{clock}", user_id="v", item_id="0", ts=now))
        producer.send(scene.log.topic, event[1], event[0].encode(), timestamp_ms=clock * 1000)
        producer.close()

    sent(range(100, 110), now)
    sent(range(110, 120), now - 7200)
    begun = time.monotonic()
    until(lambda: scene.consumer.status().counts.get("future_ts", 0) == 1)
    sys.stdout.write(f"clock back ({scene.log.kind}): counted after {time.monotonic() - begun:.1f} s\n")
    scene.holds(*range(100), *range(110, 120), *range(100, 110))
    # Its time became that of the log.
    assert scene.store.read("v").ts.tolist() == [now - 7200, now]
    scene.recovers()

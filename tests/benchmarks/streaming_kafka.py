"""From a real Kafka into the store: events a second of this process's CPU time, client library and compaction included.

The topic is filled first; then a history writer reads all of it into RocksDB. What the client alone takes of that, with
nothing decoded and nothing stored, is printed beside it. Batches are as by default, and garbage collection passes over
what is there before, as in a replica: there it is what was imported, here also the events that were sent.
"""

from __future__ import annotations

import gc
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench_kit import Figure, main, value
from past_events import past_events
from services import KafkaBroker

from hymirec.catalog.events import Event
from hymirec.config import HistoryConfig, StreamConfig
from hymirec.history import Entry, open_store
from hymirec.streaming import HistoryConsumer, event_message, open_log

EVENTS, ROUNDS, PARTITIONS, SEND = 400_000, 3, 4, 20_000
GOALS = {"confluent": 0.4, "kafka-python": 0.0}
TIMEOUT_SECONDS = 300.0
Places = list[tuple[int, int]]


def message(entry: Entry) -> tuple[str, bytes]:
    """The event as it is sent."""
    assert entry.key is not None
    item = str(entry.key % 100_000)
    return event_message(
        Event(event_id=f"{entry.event_hash:016x}", user_id=entry.user_id, item_id=item, ts=entry.ts, action="click")
    )


def fill(config: StreamConfig, entries: list[Entry]) -> Places:
    """Send everything; returns the last place of each partition."""
    producer = open_log(config).producer()
    last: dict[int, int] = {}
    for start in range(0, len(entries), SEND):
        last.update(producer.send([message(entry) for entry in entries[start : start + SEND]]))
    producer.close()
    return list(last.items())


def applied(config: StreamConfig, places: Places, directory: Path) -> float:
    """CPU seconds of a history writer that reads the topic from its beginning."""
    store = open_store(HistoryConfig(store="rocksdb", path=str(directory), sync=False))
    consumer = HistoryConsumer(open_log(config), store, config)
    start = time.process_time()
    consumer.start()
    assert consumer.wait_for(places, TIMEOUT_SECONDS)
    consumer.stop()
    store.close()
    return time.process_time() - start


def read(config: StreamConfig, places: Places) -> float:
    """CPU seconds of the client alone."""
    start = time.process_time()
    source = open_log(config).source(group=False)
    for partition in source.assigned():
        source.seek(partition, 0)
    left = dict(places)
    while left:
        for found in source.poll(0.2, config.batch_events):
            if found.offset == left.get(found.partition):
                del left[found.partition]
    source.close()
    return time.process_time() - start


def figures() -> Iterator[Figure]:
    """Both clients."""
    entries = past_events(EVENTS)
    with tempfile.TemporaryDirectory() as directory:
        broker = KafkaBroker(Path(directory) / "kafka")
        broker.start()
        try:
            broker.create_topic("events", PARTITIONS)
            broker.create_topic("events.dead-letters", 1)
            places: Places = []
            for kind, goal in GOALS.items():
                settings = {"source": kind, "brokers": broker.bootstrap, "group": kind}
                config = StreamConfig.model_validate(settings)
                places = places or fill(config, entries)
                gc.collect()
                gc.freeze()
                rounds = [
                    (applied(config, places, Path(directory) / f"{kind}-{i}"), read(config, places))
                    for i in range(ROUNDS)
                ]
                ours, client = (statistics.median(column) for column in zip(*rounds, strict=True))
                name = f"million events a second of CPU, {kind} (client alone: {len(entries) / client / 1e6:.3f})"
                yield value(name, len(entries) / ours / 1e6, 0, goal, "M/s")
        finally:
            broker.kill()


if __name__ == "__main__":
    main(figures)

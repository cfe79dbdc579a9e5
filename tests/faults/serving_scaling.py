"""A backlog in Kafka, history writers that come for it and go again: everything is applied, once and in order."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path

from fault_part import Part
from patience import until
from ray import serve
from serve_kit import Application
from service_kit import BASE_TS
from serving_kit import item_ids, running

from hymirec.catalog.events import Event
from hymirec.catalog.keys import item_keys
from hymirec.config import HistoryConfig, ScalingConfig, StreamConfig
from hymirec.history import HistoryStore, open_store
from hymirec.streaming import ConsumerStatus, event_message, open_log

USERS, PARTITIONS, WRITERS = 50, 4, 2
TOPIC, LETTERS = "events", "events.dead-letters"
# So few events are applied at once that a backlog lasts until a second writer has come.
BATCH_EVENTS = 2
# Sooner than by default, so that coming and going fit into minutes.
SCALING = ScalingConfig(catch_up_seconds=15, calm_seconds=20)
CHUNK = 5_000
PATIENCE_SECONDS = 900.0


def backlog(bundle: Path, directory: Path, brokers: str, redis_url: str, events: int) -> Part:
    """So many events at once, before one history writer of at most two. The topics must be there."""
    stream = StreamConfig(
        source="kafka-python",
        brokers=brokers,
        topic=TOPIC,
        dead_letter_topic=LETTERS,
        batch_events=BATCH_EVENTS,
        member="writer-{rank}",
    )
    history = HistoryConfig(store="redis", url=redis_url)
    past = _past(item_ids(bundle), events)
    store = open_store(history)
    changes = {"history": history, "stream": stream, "scaling": SCALING, "max_writer_replicas": WRITERS}
    begun = time.monotonic()
    with running(bundle, directory, recommender_replicas=1, max_recommender_replicas=1, **changes) as application:
        _send(stream, past)
        sent = time.monotonic()
        until(lambda: _shared(application), PATIENCE_SECONDS)
        details = {"s until two writers shared the partitions": time.monotonic() - sent}
        details["applied by then"] = _applied(store)
        until(lambda: _applied(store) == events, PATIENCE_SECONDS)
        details["s until all was applied"] = time.monotonic() - sent
        until(lambda: len(application.processes("HistoryWriter")) == 1, PATIENCE_SECONDS)
        details["s until one writer was left"] = time.monotonic() - sent
        # What comes afterwards is the remaining writer's.
        late = {user: [(item, ts + events) for item, ts in read[:1]] for user, read in past.items()}
        _send(stream, late, "late")
        until(lambda: _applied(store) == events + len(late), PATIENCE_SECONDS)
        ready = application.call("GET", "/readyz")
    faults: Counter[str] = Counter({"not ready": int(ready.status != 200)})
    for user, read in past.items():
        found, expected = store.read(user), [*read, *late[user]]
        faults["lost"] += max(0, len(expected) - found.count)
        faults["doubled"] += max(0, found.count - len(expected))
        same = found.keys.tolist() == item_keys(item for item, _ in expected).tolist()
        same = same and found.ts.tolist() == [ts for _, ts in expected]
        faults["another history"] += int(not same)
    store.close()
    return Part("a backlog and writers by lag", events, +faults, time.monotonic() - begun, details, [])


def _past(items: list[str], events: int) -> dict[str, list[tuple[str, int]]]:
    return {
        f"u{user}": [(items[(11 * user + 3 * n) % len(items)], BASE_TS + n) for n in range(events // USERS)]
        for user in range(USERS)
    }


def _send(stream: StreamConfig, past: dict[str, list[tuple[str, int]]], word: str = "event") -> None:
    messages = [
        event_message(Event(event_id=f"{user}-{word}-{n}", user_id=user, item_id=item, ts=ts, action="click"))
        for user, read in past.items()
        for n, (item, ts) in enumerate(read)
    ]
    producer = open_log(stream).producer()
    for begin in range(0, len(messages), CHUNK):
        producer.send(messages[begin : begin + CHUNK])
    producer.close()


def _applied(store: HistoryStore) -> int:
    return sum(position.offset for position in store.positions(TOPIC).values())


def _shared(application: Application) -> bool:
    """Whether two writers have their own partitions each, and all of them together."""
    if len(application.processes("HistoryWriter")) < WRITERS:
        return False
    handle = serve.get_deployment_handle("HistoryWriter", "hymirec")
    told: list[list[ConsumerStatus]] = handle.broadcast("status").results(timeout_s=30)
    owned = [set(status.positions) for statuses in told for status in statuses]
    return len(owned) == WRITERS and all(owned) and sorted(p for own in owned for p in own) == list(range(PARTITIONS))

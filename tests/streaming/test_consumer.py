"""The consumer on the file log: exactly once, poison once, and partitions that stand still and say why."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from patience import PATIENCE_SECONDS, until
from stream_logs import LogUnderTest

from hymirec.catalog.events import ACTIONS, Event
from hymirec.catalog.keys import item_key
from hymirec.config import HistoryConfig
from hymirec.errors import StoreUnavailableError
from hymirec.history import ApplyResult, HistoryStore, PartitionBatch, Position, open_store
from hymirec.history.memory import MemoryStore
from hymirec.streaming import EventLog, HistoryConsumer, Message, erase_message, event_message
from hymirec.telemetry import Metric

Start = Callable[..., HistoryConsumer]


@pytest.fixture
def log(tmp_path: Path) -> LogUnderTest:
    return LogUnderTest("file", tmp_path / "log", None)


@pytest.fixture
def store() -> HistoryStore:
    return open_store(HistoryConfig(store="memory"))


@pytest.fixture
def start(log: LogUnderTest) -> Iterator[Start]:
    """Starts a consumer that the test need not stop."""
    running: list[HistoryConsumer] = []

    def begin(store: HistoryStore, **options: object) -> HistoryConsumer:
        consumer = HistoryConsumer(log.open(), store, log.config, topic_check_seconds=0.2, **options)  # type: ignore[arg-type]
        running.append(consumer)
        consumer.start()
        return consumer

    yield begin
    for consumer in running:
        consumer.stop()


def message(i: int, user: str = "u", ts: int | None = None, event_id: str | None = None) -> tuple[str, bytes]:
    event = Event(event_id=event_id or f"e{i}", user_id=user, item_id=str(i), ts=1000 + i if ts is None else ts)
    return event_message(event)


def keys(*items: int) -> list[int]:
    return [item_key(item) for item in items]


def user_of(opened: EventLog, partition: int) -> str:
    """A user whose messages go to a partition (found by sending a letter that is not an event)."""
    producer = opened.producer()
    for i in range(100):
        if producer.send([(f"w{i}", b"")])[0][0] == partition:
            return f"w{i}"
    raise AssertionError("no such user")


def test_events_are_applied_and_the_status_tells(log: LogUnderTest, store: HistoryStore, start: Start) -> None:
    touched: list[str] = []
    consumer = start(store, on_applied=touched.extend)
    places = log.open().producer().send([message(1), message(2, "v"), message(3)])
    assert consumer.wait_for(places, PATIENCE_SECONDS)
    assert store.read("u").keys.tolist() == keys(1, 3)
    assert store.read("u").actions.tolist() == [ACTIONS["view"]] * 2
    assert store.read("u").as_of == 1003
    until(lambda: set(touched) == {"u", "v"} and sum(consumer.status().lag.values()) == 0)
    status = consumer.status()
    assert status.ready
    assert status.problems == {}
    assert sum(status.positions.values()) == 3
    assert status.counts["applied"] == 3
    assert status.heartbeat_age < 5
    assert status.topic_id == log.open().source(group=False).topic_id()
    consumer.stop()
    assert not consumer.status().ready
    assert not consumer.status().alive


def test_a_restart_goes_on_at_the_stored_position(log: LogUnderTest, store: HistoryStore, start: Start) -> None:
    producer = log.open().producer()
    first = start(store)
    assert first.wait_for(producer.send([message(i) for i in range(30)]), PATIENCE_SECONDS)
    first.stop()
    places = producer.send([message(i) for i in range(30, 50)])
    second = start(store)
    assert second.wait_for(places, PATIENCE_SECONDS)
    assert second.status().counts["applied"] == 20
    assert store.read("u").keys.tolist() == keys(*range(50))


def test_repeated_event_ids_and_late_events(log: LogUnderTest, store: HistoryStore, start: Start) -> None:
    sent = [message(1, ts=50), message(2, ts=10), message(1, ts=50), message(3, ts=50), message(4, ts=20)]
    consumer = start(store)
    assert consumer.wait_for(log.open().producer().send(sent), PATIENCE_SECONDS)
    assert store.read("u").keys.tolist() == keys(2, 4, 1, 3)
    assert consumer.status().counts["duplicates"] == 1


def test_poison_is_a_dead_letter_once_and_the_rest_goes_on(
    log: LogUnderTest, store: HistoryStore, start: Start
) -> None:
    deep = b"[" * 5000
    poison = [
        b"",
        b"{",
        b"\xff\xfe",
        b"[]",
        b"x" * 20_000,
        deep,
        b'{"user_id": "u"}',
        b'{"type": "what", "user_id": "u"}',
    ]
    poison.append(json.dumps({"event_id": "a", "user_id": "u", "item_id": "b", "ts": 1_700_000_000_000}).encode())
    poison.append(b'{"event_id": "a", "user_id": "\\ud800", "item_id": "b", "ts": 1}')
    producer = log.open().producer()
    places = producer.send([message(1), *(("u", value) for value in poison), message(2)])
    consumer = start(store)
    assert consumer.wait_for(places, PATIENCE_SECONDS)
    assert store.read("u").keys.tolist() == keys(1, 2)
    path = log._path / f"{log.config.dead_letter_topic}.jsonl"
    letters = [json.loads(line) for line in path.read_text().splitlines()]
    assert [letter["offset"] for letter in letters] == [place[1] for place in places[1:-1]]
    reasons = {letter["reason"] for letter in letters}
    assert reasons == {"empty", "malformed", "too_large", "missing_field", "unknown_type", "bad_ts"}
    consumer.stop()
    # Killed after the letters and before the position: the same messages come again.
    (partition,) = {place[0] for place in places}
    store.reset_position(log.topic, partition, None)
    again = start(store)
    assert again.wait_for(places, PATIENCE_SECONDS)
    assert len(path.read_text().splitlines()) == len(poison)
    assert store.read("u").count == 2


def test_unknown_actions_and_times_in_the_future_are_put_right_and_counted(
    log: LogUnderTest, store: HistoryStore, start: Start
) -> None:
    now = int(time.time())
    future = {"event_id": "f", "user_id": 7, "item_id": 8, "ts": now + 10_000_000, "action": "teleport", "extra": 1}
    consumer = start(store)
    assert consumer.wait_for(log.open().producer().send([("7", json.dumps(future).encode())]), PATIENCE_SECONDS)
    history = store.read("7")
    assert history.keys.tolist() == keys(8)
    assert abs(int(history.ts[0]) - now) < 60
    assert history.actions.tolist() == [ACTIONS["other"]]
    assert (consumer.status().counts["unknown_action"], consumer.status().counts["future_ts"]) == (1, 1)


def test_an_erased_user_stays_erased_when_the_log_is_replayed(
    log: LogUnderTest, store: HistoryStore, start: Start
) -> None:
    sent = [message(1), message(2), message(3, "v"), erase_message("u"), message(4)]
    places = log.open().producer().send(sent)
    consumer = start(store)
    assert consumer.wait_for(places, PATIENCE_SECONDS)
    assert store.read("u").keys.tolist() == keys(4)
    consumer.stop()
    for partition in {place[0] for place in places}:
        store.reset_position(log.topic, partition, None)
    again = start(store)
    assert again.wait_for(places, PATIENCE_SECONDS)
    assert store.read("u").keys.tolist() == keys(4)
    assert store.read("v").keys.tolist() == keys(3)
    assert again.status().counts["suppressed"] == 3


def test_what_was_read_before_the_topic_was_found_to_be_another_one_is_not_applied(
    log: LogUnderTest, store: HistoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = log.open()
    source, sent = opened.source(group=False), [message(i) for i in range(30)]
    monkeypatch.setattr(opened, "source", lambda group: source)
    read = source.poll

    def poll(timeout: float, most: int) -> list[Message]:
        found = read(timeout, most)
        if found and found[0].offset:
            log.recreate()
            log.open().producer().send([message(100 + i) for i in range(40)])
        return found

    monkeypatch.setattr(source, "poll", poll)
    # Nobody looks at the topic in between.
    consumer = HistoryConsumer(opened, store, log.config, topic_check_seconds=3600)
    consumer.start()
    try:
        places = opened.producer().send(sent[:10])
        assert consumer.wait_for(places, PATIENCE_SECONDS)
        log.open().producer().send(sent[10:])
        until(lambda: "created again" in consumer.status().problems.get(str(places[0][0]), ""))
        assert store.read("u").keys.tolist() == keys(*range(10))
    finally:
        consumer.stop()


def test_a_topic_created_again_stands_still_until_an_operator_decides(
    log: LogUnderTest, store: HistoryStore, start: Start
) -> None:
    consumer = start(store)
    assert consumer.wait_for(log.open().producer().send([message(i) for i in range(10)]), PATIENCE_SECONDS)
    log.recreate()
    # Filled beyond the old position: only the topic's id tells.
    places = log.open().producer().send([message(100 + i) for i in range(20)])
    partition = places[0][0]
    until(lambda: str(partition) in consumer.status().problems)
    problem = consumer.status().problems[str(partition)]
    assert "deleted and created again" in problem
    assert f"hymirec history reset-position --config FILE --partition {partition} --offset N" in problem
    assert not consumer.status().ready
    assert consumer.status().alive
    # The other partition had no position: the new topic is its first.
    other = user_of(log.open(), 1 - partition)
    assert consumer.wait_for(log.open().producer().send([message(7, other)]), PATIENCE_SECONDS)
    assert store.read("u").count == 10
    store.reset_position(log.topic, partition, Position(consumer.status().topic_id, 0))
    assert consumer.wait_for(places, PATIENCE_SECONDS)
    until(lambda: consumer.status().ready)
    assert store.read("u").keys.tolist() == keys(*range(10), *range(100, 120))


def test_a_log_restored_from_an_old_copy_is_out_of_range_and_others_go_on(
    log: LogUnderTest, store: HistoryStore, start: Start, tmp_path: Path
) -> None:
    opened = log.open()
    other = user_of(opened, 1 - opened.producer().send([message(0)])[0][0])
    shutil.copytree(log._path, tmp_path / "copy")
    consumer = start(store)
    places = opened.producer().send([message(i) for i in range(1, 10)])
    assert consumer.wait_for(places, PATIENCE_SECONDS)
    consumer.stop()
    shutil.rmtree(log._path)
    shutil.copytree(tmp_path / "copy", log._path)
    again = start(store)
    assert again.wait_for(log.open().producer().send([message(70, other)]), PATIENCE_SECONDS)
    problem = again.status().problems[str(places[0][0])]
    assert "the stored position is" in problem
    assert "reset-position" in problem
    assert store.read("u").count == 10
    # The log catches up: nothing that was applied is missing any more.
    log.open().producer().send([message(i) for i in range(1, 10)])
    until(lambda: again.status().ready)


def test_a_damaged_message_stops_its_partition_only(log: LogUnderTest, store: HistoryStore, start: Start) -> None:
    opened = log.open()
    places = opened.producer().send([message(i) for i in range(10)])
    partition = places[0][0]
    other = user_of(opened, 1 - partition)
    path = log._path / log.topic / f"{partition}.log"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
    consumer = start(store)
    assert consumer.wait_for(opened.producer().send([message(50, other)]), PATIENCE_SECONDS)
    until(lambda: str(partition) in consumer.status().problems)
    assert "is damaged" in consumer.status().problems[str(partition)]
    assert store.read("u").keys.tolist() == keys(*range(store.read("u").count))
    assert store.read("u").count < 10


def test_added_partitions_are_read(log: LogUnderTest, store: HistoryStore, start: Start) -> None:
    consumer = start(store)
    assert consumer.wait_for(log.open().producer().send([message(1)]), PATIENCE_SECONDS)
    log.add_partition()
    user = user_of(log.open(), 2)
    assert consumer.wait_for(log.open().producer().send([message(2, user)]), PATIENCE_SECONDS)
    assert store.read(user).keys.tolist() == keys(2)


class FailingStore(MemoryStore):
    """A real store on a disk that is full for a while."""

    failing = True

    def apply(self, batch: PartitionBatch) -> ApplyResult:
        if self.failing:
            raise StoreUnavailableError("no space left; free some")
        return super().apply(batch)


def test_a_store_that_fails_is_told_and_nothing_is_lost_when_it_is_back(log: LogUnderTest, start: Start) -> None:
    store = FailingStore(HistoryConfig(store="memory"))
    consumer = start(store)
    places = log.open().producer().send([message(i, f"u{i % 3}") for i in range(30)])
    until(lambda: "store" in consumer.status().problems)
    assert not consumer.status().ready
    assert consumer.status().heartbeat_age < 5
    store.failing = False
    assert consumer.wait_for(places, PATIENCE_SECONDS)
    until(lambda: consumer.status().ready)
    assert [store.read(f"u{user}").keys.tolist() for user in range(3)] == [keys(*range(u, 30, 3)) for u in range(3)]


def test_batches_that_wait_in_memory_are_published_when_they_are_written_and_a_stop_writes_them(
    log: LogUnderTest, start: Start
) -> None:
    store = MemoryStore(HistoryConfig(store="memory", flush_events=10_000, flush_seconds=3600))
    consumer = start(store)
    places = log.open().producer().send([message(i, f"u{i % 3}") for i in range(30)])
    assert consumer.wait_for(places, PATIENCE_SECONDS)
    assert [store.read(f"u{user}").count for user in range(3)] == [10, 10, 10]
    assert (store.written(log.config.topic), list(store._values)) == ({}, [])
    consumer.stop()
    ends = {partition: offset + 1 for partition, offset in places}
    assert store.written(log.config.topic) == ends == consumer._published


def test_no_batch_waits_longer_than_it_may_when_no_event_follows(log: LogUnderTest, start: Start) -> None:
    store = MemoryStore(HistoryConfig(store="memory", flush_events=10_000, flush_seconds=0.5))
    consumer = start(store)
    places = log.open().producer().send([message(1)])
    assert consumer.wait_for(places, PATIENCE_SECONDS)
    until(lambda: store.written(log.config.topic) == {places[0][0]: 1}, 5)


def test_a_damaged_history_stops_its_partition_only(log: LogUnderTest, start: Start) -> None:
    # A user whom the writer holds in memory it need not read.
    store = MemoryStore(HistoryConfig(store="memory", cached_events=0))
    opened = log.open()
    consumer = start(store)
    first = opened.producer().send([message(1)])
    assert consumer.wait_for(first, PATIENCE_SECONDS)
    key = next(key for key in store._values if key.startswith(b"m"))
    store._values[key] = store._values[key][:-1] + b"\0"
    opened.producer().send([message(2)])
    until(lambda: str(first[0][0]) in consumer.status().problems)
    assert "checksum" in consumer.status().problems[str(first[0][0])]
    other = user_of(opened, 1 - first[0][0])
    assert consumer.wait_for(opened.producer().send([message(3, other)]), PATIENCE_SECONDS)
    assert store.read(other).count == 1


def test_two_writers_by_mistake_double_nothing(log: LogUnderTest, store: HistoryStore, start: Start) -> None:
    consumers = [start(store), start(store)]
    producer = log.open().producer()
    for i in range(0, 300, 10):
        places = producer.send([message(j, f"u{j % 7}") for j in range(i, i + 10)])
    assert all(consumer.wait_for(places, PATIENCE_SECONDS) for consumer in consumers)
    total = [store.read(f"u{user}").keys.tolist() for user in range(7)]
    assert total == [keys(*range(user, 300, 7)) for user in range(7)]
    assert sum(consumer.status().counts.get("duplicates", 0) for consumer in consumers) == 0


def bad(i: int) -> tuple[str, bytes]:
    return "u", b'{"user_id": "u", "broken": %d' % i


@pytest.mark.parametrize("batch_events", [2_000, 300])
def test_a_partition_of_poison_stands_still_until_its_position_is_moved(
    log: LogUnderTest, store: HistoryStore, start: Start, batch_events: int
) -> None:
    log.config = log.config.model_copy(update={"batch_events": batch_events})
    producer = log.open().producer()
    ((partition, _),) = producer.send([message(0)])
    other = user_of(log.open(), 1 - partition)
    good = producer.send([message(i) for i in range(1, 400)])
    refused = producer.send([bad(i) for i in range(900)])
    consumer = start(store)
    until(lambda: str(partition) in consumer.status().problems)
    problem = consumer.status().problems[str(partition)]
    assert "cannot be used" in problem
    assert "malformed" in problem
    assert f"reset-position --config FILE --partition {partition}" in problem
    assert not consumer.status().ready
    # Whole batches were applied, the one that tips it over was not, and none of its messages is a letter.
    position = store.positions(log.topic)[partition].offset if batch_events < 2_000 else 0
    letters = consumer.status().counts.get("rejected_malformed", 0)
    assert letters == max(0, position - 400) <= 500
    # The other one goes on, and nothing flaps.
    assert consumer.wait_for(producer.send([message(1, other)]), PATIENCE_SECONDS)
    time.sleep(0.5)
    assert consumer.status().problems == {str(partition): problem}
    assert store.read("u").count == min(position, 400)
    topic_id = consumer.status().topic_id
    store.reset_position(log.topic, partition, Position(topic_id, refused[-1][1] + 1))
    assert consumer.wait_for(producer.send([message(1_000)]), PATIENCE_SECONDS)
    assert store.read("u").keys.tolist() == keys(*range(min(position, 400)), 1_000)
    until(lambda: consumer.status().ready)
    assert good[0][0] == partition


@pytest.mark.parametrize(("share", "good"), [(1.0, 0), (0.5, 700)])
def test_less_poison_than_the_share_stops_nothing(
    log: LogUnderTest, store: HistoryStore, start: Start, share: float, good: int
) -> None:
    log.config = log.config.model_copy(update={"max_rejected_share": share, "batch_events": 100})
    sent = [bad(i) for i in range(600)]
    for i in range(good):
        sent.insert(2 * i, message(i))
    consumer = start(store)
    assert consumer.wait_for(log.open().producer().send(sent), 30)
    assert consumer.status().ready
    assert consumer.status().counts["rejected_malformed"] == 600
    assert store.read("u").count == good


def test_batches_are_measured(log: LogUnderTest, store: HistoryStore, start: Start) -> None:
    seen: dict[str, list[float]] = {}

    def observe(metric: Metric, value: float, **labels: str) -> None:
        assert not labels
        seen.setdefault(metric.name, []).append(value)

    consumer = start(store, observe=observe)
    begun = time.time()
    assert consumer.wait_for(log.open().producer().send([message(i) for i in range(20)]), PATIENCE_SECONDS)
    until(lambda: sum(seen.get("hymirec_apply_events", [])) == 20)
    consumer.stop()
    assert set(seen) == {"hymirec_apply_events", "hymirec_apply_seconds", "hymirec_event_visible_seconds"}
    assert len({len(values) for values in seen.values()}) == 1
    elapsed = time.time() - begun
    assert all(0 <= value <= elapsed + 0.01 for name, values in seen.items() if "seconds" in name for value in values)

"""What every log promises, checked on each: file, kafka-python and confluent-kafka against a real broker."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from patience import until
from stream_logs import LogUnderTest

from hymirec.errors import PositionOutOfRangeError, SourceUnavailableError
from hymirec.streaming.source import EventSource, Message

KINDS = [
    "file",
    pytest.param("kafka-python", marks=pytest.mark.kafka),
    pytest.param("confluent", marks=pytest.mark.kafka),
]


@pytest.fixture(params=KINDS)
def log(request: pytest.FixtureRequest, tmp_path: Path) -> LogUnderTest:
    broker = None if request.param == "file" else request.getfixturevalue("kafka_broker")
    return LogUnderTest(request.param, tmp_path, broker)


def take(source: EventSource, count: int, seconds: float = 20.0) -> list[Message]:
    """Poll until `count` messages came."""
    found: list[Message] = []
    deadline = time.monotonic() + seconds
    while len(found) < count and time.monotonic() < deadline:
        found += source.poll(0.1, 1000)
    return found


def start(source: EventSource) -> None:
    for partition in source.assigned():
        source.seek(partition, source.beginning(partition))


def test_messages_come_back_in_order_at_the_places_that_send_returned(log: LogUnderTest) -> None:
    opened = log.open()
    producer, source = opened.producer(), opened.source(group=False)
    before = int(time.time() * 1000) - 5_000
    sent = [(f"user{i % 5}", f"value {i}".encode()) for i in range(200)]
    places = producer.send(sent)
    start(source)
    found = take(source, 200)
    assert {(m.partition, m.offset): (m.key, m.value) for m in found} == {
        place: (key.encode(), value) for place, (key, value) in zip(places, sent, strict=True)
    }
    assert all(before < m.log_ms < time.time() * 1000 + 5_000 for m in found)
    for partition in (0, 1):
        offsets = [m.offset for m in found if m.partition == partition]
        assert offsets == list(range(len(offsets)))
        assert (source.beginning(partition), source.end(partition)) == (0, len(offsets))
    assert len({m.partition for m in found if m.key == b"user1"}) == 1
    source.close()
    producer.close()


def test_nothing_is_delivered_before_a_partition_is_sought(log: LogUnderTest) -> None:
    opened = log.open()
    opened.producer().send([(f"user{i}", b"x") for i in range(20)])
    source = opened.source(group=False)
    assert sorted(source.assigned()) == [0, 1]
    assert source.waiting() == {0, 1}
    assert source.poll(0.3, 100) == []
    source.seek(1, 0)
    assert source.waiting() == {0}
    found = take(source, source.end(1))
    assert {m.partition for m in found} == {1}
    source.pause(1)
    opened.producer().send([(f"user{i}", b"y") for i in range(20)])
    assert source.waiting() == {0, 1}
    assert source.poll(0.3, 100) == []
    source.close()


def test_a_sought_partition_repeats_from_there_and_the_other_loses_nothing(log: LogUnderTest) -> None:
    opened = log.open()
    opened.producer().send([(f"user{i}", str(i).encode()) for i in range(100)])
    source = opened.source(group=False)
    start(source)
    first = source.poll(10, 7)
    assert 0 < len(first) <= 7
    source.seek(0, 3)
    rest = take(source, source.end(0) - 3 + source.end(1) - sum(m.partition == 1 for m in first))
    zero = [m.offset for m in rest if m.partition == 0]
    one = [m.offset for m in first + rest if m.partition == 1]
    assert zero == list(range(3, source.end(0)))
    assert one == list(range(source.end(1)))
    source.close()


def test_a_position_that_the_log_does_not_have_is_told(log: LogUnderTest) -> None:
    opened = log.open()
    opened.producer().send([("user", b"x")])
    source = opened.source(group=False)
    start(source)

    def go_beyond() -> None:
        source.seek(1, 50)
        take(source, 10, seconds=10)

    with pytest.raises(PositionOutOfRangeError) as raised:
        go_beyond()
    assert raised.value.partition == 1
    source.close()


def test_a_topic_created_again_has_another_id(log: LogUnderTest) -> None:
    opened = log.open()
    source = opened.source(group=False)
    before = source.topic_id()
    assert before == opened.source(group=False).topic_id()
    log.recreate()
    assert source.topic_id() != before
    source.close()


@pytest.mark.kafka
def test_both_kafka_clients_name_a_topic_alike(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    log = LogUnderTest("kafka-python", tmp_path, request.getfixturevalue("kafka_broker"))
    one = log.open().source(group=False).topic_id()
    log.config = log.config.model_copy(update={"source": "confluent"})
    assert log.open().source(group=False).topic_id() == one


def test_a_topic_that_is_not_there_is_unavailable_and_is_not_created(log: LogUnderTest) -> None:
    if log.kind == "file":
        opened = log.open()
        source = opened.source(group=False)
        (log._path / log.topic / "topic.json").unlink()
        with pytest.raises(SourceUnavailableError, match="removed"):
            source.topic_id()
        return
    log.config = log.config.model_copy(update={"topic": f"{log.topic}-missing"})
    for _ in range(2):
        with pytest.raises(SourceUnavailableError, match="not there"):
            log.open().source(group=False)


def test_added_partitions_are_found(log: LogUnderTest) -> None:
    opened = log.open()
    source = opened.source(group=False)
    start(source)
    log.add_partition()
    until(lambda: 2 in source.assigned())
    assert source.waiting() == {2}
    source.close()


def settle(partitions: int, *sources: EventSource) -> bool:
    """Poll the members of a group side by side, as a rebalance waits for all at once: whether all is assigned."""
    with ThreadPoolExecutor(len(sources)) as pool:
        assert not any(pool.map(lambda source: source.poll(0.5, 100), sources))
    return sorted(p for source in sources for p in source.assigned()) == list(range(partitions))


@pytest.mark.kafka
@pytest.mark.parametrize("kind", ["kafka-python", "confluent"])
def test_a_group_shares_partitions_and_what_comes_back_waits_to_be_sought(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    log = LogUnderTest(kind, tmp_path, request.getfixturevalue("kafka_broker"))
    opened = log.open()
    opened.producer().send([(f"user{i}", b"x") for i in range(20)])
    one = opened.source(group=True)
    until(lambda: settle(2, one))
    assert one.waiting() == {0, 1}
    places: set[tuple[int, int]] = set()

    def gather() -> bool:
        # A rebalance that follows the first one holds the partitions again; a consumer seeks what waits.
        for partition in one.waiting():
            one.seek(partition, 0)
        places.update((message.partition, message.offset) for message in one.poll(0.1, 100))
        return len(places) == 20

    until(gather)
    one.commit({0: 1, 1: 1})
    two = opened.source(group=True)
    until(lambda: settle(2, one, two) and len(two.assigned()) == 1)
    assert one.waiting() == set(one.assigned())
    two.close()
    until(lambda: settle(2, one))
    assert one.waiting() == {0, 1}
    one.close()


@pytest.mark.kafka
@pytest.mark.parametrize("kind", ["kafka-python", "confluent"])
def test_a_member_that_polls_in_short_turns_takes_up_added_partitions_and_stays_in_its_group(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    log = LogUnderTest(kind, tmp_path, request.getfixturevalue("kafka_broker"))
    opened = log.open()
    one = opened.source(group=True)
    until(lambda: settle(2, one))
    log.add_partition()
    deadline = time.monotonic() + 40
    while one.assigned() != [0, 1, 2]:
        # Shorter than a rebalance, which goes on over many polls.
        assert one.poll(0.003, 100) == []
        assert time.monotonic() < deadline, "the added partition was not assigned"
    assert one.waiting() == {0, 1, 2}
    two = opened.source(group=True)
    until(lambda: settle(3, one, two) and 0 < len(two.assigned()) < 3)
    two.close()
    one.close()


@pytest.mark.parametrize("kind", KINDS)
def test_a_dead_letter_is_stored_once_also_after_a_restart(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    log = LogUnderTest(kind, tmp_path, None if kind == "file" else request.getfixturevalue("kafka_broker"))
    message = Message(1, 42, b"user", b"\xff{")
    for _ in range(2):
        letters = log.open().dead_letters()
        letters.send(message, "malformed", "not JSON")
        letters.send(message, "malformed", "not JSON")
        letters.send(Message(1, 43, None, b"{"), "malformed", "not JSON")
        letters.close()
    if kind == "file":
        lines = (tmp_path / f"{log.topic}.dead.jsonl").read_text().splitlines()
        assert len(lines) == 2
        assert '"offset": 42' in lines[0]
        assert "value_base64" in lines[0]
        return
    log.config = log.config.model_copy(update={"topic": log.config.dead_letter_topic})
    source = log.open().source(group=False)
    start(source)
    found = take(source, 2) + source.poll(0.3, 10)
    assert len(found) == 2
    assert (found[0].key, found[0].value) == (b"user", b"\xff{")
    assert dict(found[0].headers) == {
        "reason": b"malformed",
        "detail": b"not JSON",
        "topic": log.topic.encode(),
        "partition": b"1",
        "offset": b"42",
    }
    source.close()

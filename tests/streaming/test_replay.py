"""Reading the log again as far as the store is."""

from __future__ import annotations

from pathlib import Path

import pytest

from hymirec.catalog.events import Event
from hymirec.catalog.keys import item_key
from hymirec.config import StreamConfig
from hymirec.errors import PositionOutOfRangeError
from hymirec.history import Position
from hymirec.history.verify import fold
from hymirec.streaming import erase_message, event_message, open_log
from hymirec.streaming.replay import replay
from hymirec.streaming.source import EventSource


@pytest.fixture
def source(tmp_path: Path) -> EventSource:
    log = open_log(StreamConfig(path=str(tmp_path), partitions=1))
    events = [Event(event_id=str(n), user_id="ann", item_id=f"item {n}", ts=100 + n) for n in range(3)]
    producer = log.producer()
    producer.send([event_message(events[0]), ("ann", b"poison"), event_message(events[1])])
    producer.send([erase_message("ann"), event_message(events[2])])
    return log.source(group=False)


def test_every_usable_message_below_the_position_is_replayed(source: EventSource) -> None:
    at = {0: Position(source.topic_id(), 3)}
    assert [placed.entry.offset for placed in replay(source, at)] == [0, 2]
    assert fold(replay(source, at), 10, 10) == {"ann": [(100 + n, item_key(f"item {n}"), 1) for n in (0, 1)]}
    everything = {0: Position(source.topic_id(), 5)}
    assert fold(replay(source, everything), 10, 10) == {"ann": [(102, item_key("item 2"), 1)]}
    assert list(replay(source, {0: Position(source.topic_id(), 0)})) == []
    assert list(replay(source, {})) == []


def test_a_log_that_lost_its_beginning_cannot_be_compared(source: EventSource, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "beginning", lambda partition: 2)
    with pytest.raises(PositionOutOfRangeError, match="begins at offset 2"):
        list(replay(source, {0: Position(source.topic_id(), 3)}))

"""Events: the message of the log, and action numbers that never change."""

from __future__ import annotations

import msgspec
import pyarrow as pa
import pytest

from hymirec.catalog.events import ACTIONS, EraseEvent, Event, action_code, action_name, events_schema


def test_a_message_is_decoded_and_unknown_fields_are_ignored() -> None:
    data = b'{"event_id": "e", "user_id": "u", "item_id": "42", "ts": 1700000000, "action": "click", "page": 3}'
    event = msgspec.json.decode(data, type=Event)
    assert event == Event(event_id="e", user_id="u", item_id="42", ts=1_700_000_000, action="click")
    assert event.action_code == 2


def test_a_message_without_an_item_is_refused() -> None:
    with pytest.raises(msgspec.ValidationError, match="item_id"):
        msgspec.json.decode(b'{"event_id": "e", "user_id": "u", "ts": 1}', type=Event)


def test_an_erasure_is_told_by_its_type() -> None:
    assert msgspec.json.decode(b'{"type": "erase", "user_id": "u"}', type=EraseEvent) == EraseEvent(user_id="u")
    assert msgspec.json.encode(EraseEvent(user_id="u")).startswith(b'{"type":"erase"')
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(b'{"type": "other", "user_id": "u"}', type=EraseEvent)


def test_an_unknown_action_is_other() -> None:
    assert action_code("teleport") == 0
    assert action_name(250) == "other"


def test_action_numbers_fit_one_byte_and_are_their_own() -> None:
    assert sorted(ACTIONS.values()) == list(range(len(ACTIONS)))
    assert max(ACTIONS.values()) < 256
    assert all(action_name(action_code(name)) == name for name in ACTIONS)
    assert (ACTIONS["view"], ACTIONS["click"], ACTIONS["purchase"]) == (1, 2, 15)  # on disk in histories


def test_the_arrow_schema_has_the_fields_of_the_event() -> None:
    assert tuple(events_schema().names) == Event.__struct_fields__
    row = msgspec.structs.asdict(Event(event_id="e", user_id="u", item_id="i", ts=1))
    assert pa.Table.from_pylist([row], schema=events_schema()).num_rows == 1

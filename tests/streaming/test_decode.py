"""One message -> one entry, or the reason why not."""

from __future__ import annotations

import json
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hymirec.catalog.events import ACTIONS, Event
from hymirec.catalog.keys import item_key
from hymirec.errors import EventError
from hymirec.history import Entry
from hymirec.streaming import decode, erase_message, event_message
from hymirec.streaming.decode import FUTURE_SECONDS, MAX_BYTES, MAX_ID_BYTES

GOOD = {"event_id": "e", "user_id": "u", "item_id": "i", "ts": 1700000000, "action": "purchase"}


def encode(**changes: object) -> bytes:
    values = {name: value for name, value in (GOOD | changes).items() if value is not ...}
    return json.dumps(values).encode()


def test_an_event_becomes_an_entry() -> None:
    entry, notes = decode(encode(more={"nested": [1]}), 7, 1700000000_000)
    assert (entry.offset, entry.user_id, entry.key, entry.ts) == (7, "u", item_key("i"), 1700000000)
    assert entry.action == ACTIONS["purchase"]
    assert notes == ()


def test_what_we_send_is_what_we_read() -> None:
    event = Event(event_id="a", user_id="ü", item_id="5", ts=9, action="click")
    key, value = event_message(event)
    assert key == "ü"
    assert decode(value, 0).entry.key == item_key(5)
    key, value = erase_message("ü")
    assert (key, decode(value, 3, 8).entry) == ("ü", Entry(3, "ü", log_ms=8))


def test_integer_ids_are_the_same_as_their_text() -> None:
    one, two = (
        decode(encode(user_id=7, item_id=8, event_id=9), 0).entry,
        decode(encode(user_id="7", item_id="8", event_id="9"), 0).entry,
    )
    assert one == two


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, "empty"),
        (b"", "empty"),
        (b"{", "malformed"),
        (b"[]", "malformed"),
        (b"null", "malformed"),
        (b"\xff", "malformed"),
        (encode(ts="1700000000"), "malformed"),
        (encode(user_id=True), "malformed"),
        (encode(item_id=1.5), "malformed"),
        (encode(action=3), "malformed"),
        (encode(user_id=...), "missing_field"),
        (encode(item_id=...), "missing_field"),
        (encode(event_id=...), "missing_field"),
        (encode(ts=...), "missing_field"),
        (encode(user_id=""), "bad_id"),
        (encode(item_id="x" * (MAX_ID_BYTES + 1)), "bad_id"),
        (encode(ts=-1), "bad_ts"),
        (encode(ts=1700000000_000), "bad_ts"),
        (encode(type="undo"), "unknown_type"),
        (b" " * (MAX_BYTES + 1), "too_large"),
    ],
)
def test_each_bad_message_has_its_reason(value: bytes | None, reason: str) -> None:
    with pytest.raises(EventError) as raised:
        decode(value, 0)
    assert raised.value.reason == reason


def test_an_unknown_action_is_other_and_a_missing_one_is_a_view() -> None:
    assert decode(encode(action="dance"), 0) == (decode(encode(action="other"), 0).entry, ("unknown_action",))
    assert decode(encode(action=...), 0).entry.action == decode(encode(action=None), 0).entry.action == ACTIONS["view"]


def test_a_time_ahead_of_the_log_is_the_time_of_the_log() -> None:
    log_ms = 1700000000_999
    assert decode(encode(ts=1700000000 + FUTURE_SECONDS), 0, log_ms).notes == ()
    entry, notes = decode(encode(ts=1700000001 + FUTURE_SECONDS), 0, log_ms)
    assert (entry.ts, notes) == (1700000000, ("future_ts",))


@given(st.binary(max_size=200) | st.recursive(st.none() | st.text() | st.integers(), st.lists).map(str).map(str.encode))
def test_any_bytes_give_an_entry_or_an_event_error(value: bytes) -> None:
    # Anything else that is raised would end the writer.
    with suppress(EventError):
        assert decode(value, 4).entry.offset == 4

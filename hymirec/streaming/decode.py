"""A message's bytes -> an entry of a history, or the reason why not."""

from __future__ import annotations

import msgspec
import xxhash

from hymirec.catalog.events import ACTIONS, OTHER, EraseEvent, Event
from hymirec.catalog.keys import item_key
from hymirec.catalog.schemas import MAX_TS
from hymirec.errors import EventError
from hymirec.history import Entry

MAX_BYTES = 16_384
MAX_ID_BYTES = 512


class _Message(msgspec.Struct):
    """Both kinds of message; ids may come as JSON integers."""

    user_id: str | int | None = None
    item_id: str | int | None = None
    event_id: str | int | None = None
    ts: int | None = None
    action: str = "view"
    type: str = "event"


_decoder = msgspec.json.Decoder(_Message)


def decode(value: bytes | None, offset: int, now: int) -> Entry:
    """Decode one message (see `hymirec.catalog.events`). A time in the future counts as `now` (seconds).

    Raises EventError with the reason `empty`, `too_large`, `malformed`, `missing_field`, `bad_id`, `bad_ts` or
    `unknown_type`.
    """
    if not value:
        raise EventError("empty", "the message has no value")
    if len(value) > MAX_BYTES:
        raise EventError("too_large", f"the message has {len(value)} bytes, at most {MAX_BYTES} are taken")
    try:
        message = _decoder.decode(value)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as e:
        raise EventError("malformed", f"not an event: {e}") from e
    user_id = _identifier(message.user_id, "user_id")
    if message.type == "erase":
        return Entry(offset, user_id)
    if message.type != "event":
        raise EventError("unknown_type", f"type {message.type!r} is neither 'event' nor 'erase'")
    item_id = _identifier(message.item_id, "item_id")
    event_id = _identifier(message.event_id, "event_id")
    if message.ts is None:
        raise EventError("missing_field", "ts is missing")
    if not 0 <= message.ts <= MAX_TS:
        raise EventError("bad_ts", f"ts is {message.ts}; expected seconds since 1970, 0 to {MAX_TS}")
    action = ACTIONS.get(message.action, OTHER)
    event_hash = xxhash.xxh3_64_intdigest(event_id.encode())
    return Entry(offset, user_id, item_key(item_id), min(message.ts, now), action, event_hash)


def _identifier(value: str | int | None, name: str) -> str:
    if value is None:
        raise EventError("missing_field", f"{name} is missing")
    text = str(value)
    try:
        size = len(text.encode())
    except UnicodeEncodeError as e:
        raise EventError("bad_id", f"{name} is not valid text: {e}") from e
    if not 0 < size <= MAX_ID_BYTES:
        raise EventError("bad_id", f"{name} has {size} bytes; expected 1 to {MAX_ID_BYTES}")
    return text


def event_message(event: Event) -> tuple[str, bytes]:
    """(key, value) of an event, ready to be sent."""
    return event.user_id, msgspec.json.encode(event)


def erase_message(user_id: str) -> tuple[str, bytes]:
    """(key, value) of an erasure, ready to be sent."""
    return user_id, msgspec.json.encode(EraseEvent(user_id=user_id))

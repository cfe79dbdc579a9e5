"""A message's bytes -> an entry of a history, or the reason why not."""

from __future__ import annotations

from typing import NamedTuple

import msgspec
import xxhash

from hymirec.catalog.events import ACTIONS, OTHER, EraseEvent, Event
from hymirec.catalog.keys import item_key
from hymirec.catalog.schemas import MAX_TS
from hymirec.errors import EventError
from hymirec.history import Entry

MAX_BYTES = 16_384
MAX_ID_BYTES = 512
# Clocks of clients run ahead by this much at most; what is beyond counts as the time at which the log took the message.
FUTURE_SECONDS = 300


class Decoded(NamedTuple):
    """An entry, and what was put right: `unknown_action`, `future_ts`."""

    entry: Entry
    notes: tuple[str, ...]


class _Message(msgspec.Struct):
    """Both kinds of message; ids may come as JSON integers."""

    user_id: str | int | None = None
    item_id: str | int | None = None
    event_id: str | int | None = None
    ts: int | None = None
    action: str | None = "view"
    type: str = "event"


_decoder = msgspec.json.Decoder(_Message)


def decode(value: bytes | None, offset: int, log_ms: int = 0) -> Decoded:
    """Decode one message (see `hymirec.catalog.events`); the same message gives the same entry on every replay.

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
        return Decoded(Entry(offset, user_id, log_ms=log_ms), ())
    if message.type != "event":
        raise EventError("unknown_type", f"type {message.type!r} is neither 'event' nor 'erase'")
    item_id = _identifier(message.item_id, "item_id")
    event_id = _identifier(message.event_id, "event_id")
    notes: list[str] = []
    ts = _time(message.ts, log_ms // 1000, notes)
    action = ACTIONS.get(message.action or "view")
    if action is None:
        notes.append("unknown_action")
    event_hash = xxhash.xxh3_64_intdigest(event_id.encode())
    entry = Entry(offset, user_id, item_key(item_id), ts, OTHER if action is None else action, event_hash, log_ms)
    return Decoded(entry, tuple(notes))


def _time(ts: int | None, log_seconds: int, notes: list[str]) -> int:
    if ts is None:
        raise EventError("missing_field", "ts is missing")
    if not 0 <= ts <= MAX_TS:
        raise EventError("bad_ts", f"ts is {ts}; expected seconds (not milliseconds) since 1970, 0 to {MAX_TS}")
    if log_seconds and ts > log_seconds + FUTURE_SECONDS:
        notes.append("future_ts")
        return log_seconds
    return ts


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

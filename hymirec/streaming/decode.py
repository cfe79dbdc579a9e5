"""A message's bytes -> an entry of a history, or the reason why not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import repeat
from typing import Annotated, Literal, NamedTuple

import msgspec
import xxhash

from hymirec.catalog.events import ACTIONS, OTHER, EraseEvent, Event
from hymirec.catalog.keys import item_key
from hymirec.catalog.schemas import MAX_TS
from hymirec.errors import EventError
from hymirec.history import Entry
from hymirec.streaming.source import Message

MAX_BYTES = 16_384
MAX_ID_BYTES = 512
_OPEN, _CLOSE = b"{}"
# Clocks of clients run ahead by this much at most; what is beyond counts as the time at which the log took the message.
FUTURE_SECONDS = 300


class Decoded(NamedTuple):
    """An entry, and what was put right: `unknown_action`, `future_ts`."""

    entry: Entry
    notes: tuple[str, ...]


class _Message(msgspec.Struct, gc=False):
    """Both kinds of message; ids may come as JSON integers."""

    user_id: str | int | None = None
    item_id: str | int | None = None
    event_id: str | int | None = None
    ts: int | None = None
    action: str | None = "view"
    type: str = "event"


_Id = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_ID_BYTES)]


class _Plain(msgspec.Struct, gc=False):
    """What nearly all messages are like."""

    user_id: _Id
    item_id: _Id
    event_id: _Id
    ts: Annotated[int, msgspec.Meta(ge=0, le=MAX_TS)]
    action: str = "view"
    type: Literal["event"] = "event"


class DecodedBatch(NamedTuple):
    """Entries in order of the log, how often each thing was put right, and what cannot be used, with the reason."""

    entries: list[Entry]
    notes: Counter[str]
    rejected: list[tuple[Message, EventError]]


# Messages decoded at once, and where one of them is not plain: it costs so many others a decoding of their own.
AT_ONCE, FEW = 256, 16
_decoder = msgspec.json.Decoder(_Message)
_plain_decoder = msgspec.json.Decoder(_Plain)


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


def decode_all(messages: Sequence[Message]) -> DecodedBatch:
    """Decode messages, each to what `decode` makes of it, many at a time."""
    entries: list[Entry] = []
    notes: Counter[str] = Counter()
    rejected: list[tuple[Message, EventError]] = []
    for part, plain in _parts(messages):
        if plain is not None:
            entries += plain.entries
            notes.update(plain.notes)
            continue
        for message in part:
            try:
                entry, put_right = decode(message.value, message.offset, message.log_ms)
            except EventError as e:
                rejected.append((message, e))
                continue
            entries.append(entry)
            notes.update(put_right)
    return DecodedBatch(entries, notes, rejected)


class _PlainBatch(NamedTuple):
    entries: list[Entry]
    notes: dict[str, int]


def _parts(messages: Sequence[Message]) -> Iterator[tuple[Sequence[Message], _PlainBatch | None]]:
    """The messages in parts, each with what it decodes to if all of it is plain."""
    for start in range(0, len(messages), AT_ONCE):
        part = messages[start : start + AT_ONCE]
        plain = _plain_batch(part)
        if plain is not None:
            yield part, plain
            continue
        for few in range(0, len(part), FEW):
            yield (less := part[few : few + FEW]), _plain_batch(less)


def _plain_batch(messages: Sequence[Message]) -> _PlainBatch | None:
    """What messages that are all as nearly all are decode to; None: `decode` has to look at each of them."""
    _, offsets, _, values, times_ms, _ = zip(*messages, strict=True)
    lines = _lines(values)
    if lines is None:
        return None
    users = [line.user_id for line in lines]
    items = [line.item_id for line in lines]
    events = [line.event_id for line in lines]
    times = [line.ts for line in lines]
    actions = [ACTIONS.get(line.action, OTHER) for line in lines]
    notes = {}
    if OTHER in actions:
        if not all(line.action for line in lines):
            return None
        if unknown := sum(line.action not in ACTIONS for line in lines):
            notes["unknown_action"] = unknown
    # Of ASCII as many bytes as characters, which the decoder has counted.
    if not "".join((*users, *items, *events)).isascii():
        return None
    # 0: the log tells no time.
    if max(times) > min(times_ms) // 1000 + FUTURE_SECONDS and any(
        log_ms and ts > log_ms // 1000 + FUTURE_SECONDS for ts, log_ms in zip(times, times_ms, strict=True)
    ):
        return None
    digest = xxhash.xxh3_64_intdigest
    keys, hashes = map(digest, map(str.encode, items)), map(digest, map(str.encode, events))
    columns = zip(offsets, users, keys, times, actions, hashes, times_ms, strict=True)
    return _PlainBatch(list(map(tuple.__new__, repeat(Entry), columns)), notes)


def _lines(values: Sequence[bytes | None]) -> list[_Plain] | None:
    """The messages as one text of one line each; None when they must be decoded one by one.

    A text that begins with a brace, ends with one and holds no line break cannot run into the next line: nothing that
    ends so may be followed by a brace within one value. One line may still be several values, which the count tells.
    """
    for value in values:
        if not value or value[0] != _OPEN or value[-1] != _CLOSE or len(value) > MAX_BYTES:
            return None
    text = b"\n".join(values)  # type: ignore[arg-type]
    if text.count(b"\n") != len(values) - 1:
        return None
    try:
        found = _plain_decoder.decode_lines(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return found if len(found) == len(values) else None


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

"""Log positions as values: the topic's id and the next offset."""

from __future__ import annotations

import struct

from hymirec.errors import PositionConflictError, TopicRecreatedError
from hymirec.history.record import seal, unseal
from hymirec.history.store import PartitionBatch, Position

_OFFSET = struct.Struct("<q")


def pack_position(position: Position) -> bytes:
    """A position as a value."""
    return seal(_OFFSET.pack(position.offset) + position.topic_id.encode())


def unpack_position(value: bytes, name: str) -> Position:
    """Read a position. Raises StoreDamagedError or UnsupportedFormatError."""
    body = unseal(value, name)
    return Position(body[_OFFSET.size :].decode(), int(_OFFSET.unpack_from(body)[0]))


def check_topic(batch: PartitionBatch, stored: Position | None) -> None:
    """Raise TopicRecreatedError when the stored position belongs to another topic of the same name."""
    if stored is not None and stored.topic_id != batch.topic_id:
        raise TopicRecreatedError(
            f"{batch.topic}[{batch.partition}]: the stored position {stored.offset} belongs to topic id "
            f"{stored.topic_id}, the topic now has id {batch.topic_id}; it was deleted and created again. Decide where "
            "to go on with `hymirec history reset-position`"
        )


def check_expected(batch: PartitionBatch, stored: Position | None) -> None:
    """Compare-and-set: raise PositionConflictError when another writer has moved the position."""
    have = None if stored is None else stored.offset
    if have != batch.expected:
        raise PositionConflictError(
            f"{batch.topic}[{batch.partition}]: expected position {batch.expected}, the store has {have}; "
            "another writer applied these events. Read the position again and go on from there"
        )

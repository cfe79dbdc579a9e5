"""Events of the log: what a message says, and the names and numbers of actions.

A message is JSON with the user id as its key:
`{"event_id": "...", "user_id": "...", "item_id": "...", "ts": 1700000000, "action": "click"}`, or
`{"type": "erase", "user_id": "..."}` to erase a user. Unknown fields are ignored; an unknown action counts as `other`.
"""

from __future__ import annotations

from typing import Final

import msgspec
import pyarrow as pa

# An action's number is part of the record format on disk: numbers are added, never changed.
ACTIONS: Final[dict[str, int]] = {
    "other": 0,
    "view": 1,
    "click": 2,
    "like": 3,
    "dislike": 4,
    "rate": 5,
    "favorite": 6,
    "share": 7,
    "comment": 8,
    "follow": 9,
    "play": 10,
    "finish": 11,
    "skip": 12,
    "search": 13,
    "cart": 14,
    "purchase": 15,
    "return": 16,
}
OTHER: Final = ACTIONS["other"]
_NAMES: Final[dict[int, str]] = {code: name for name, code in ACTIONS.items()}


def action_code(action: str) -> int:
    """The 8-bit number of an action; 0 (`other`) for one that is not known."""
    return ACTIONS.get(action, OTHER)


def action_name(code: int) -> str:
    """The name of an action's number; `other` for a number written by a newer version."""
    return _NAMES.get(code, "other")


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """One user did something with one item. `ts` is in seconds since 1970 (UTC)."""

    event_id: str
    user_id: str
    item_id: str
    ts: int
    action: str = "view"

    @property
    def action_code(self) -> int:
        """The 8-bit number that a history record keeps."""
        return action_code(self.action)


class EraseEvent(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="erase"):
    """Everything kept about one user goes, now and on replay."""

    user_id: str
    event_id: str = ""


def events_schema() -> pa.Schema:
    """Arrow schema of a table of events, field by field as in `Event`."""
    return pa.schema(
        [
            pa.field("event_id", pa.string(), nullable=False),
            pa.field("user_id", pa.string(), nullable=False),
            pa.field("item_id", pa.string(), nullable=False),
            pa.field("ts", pa.int64(), nullable=False),
            pa.field("action", pa.string(), nullable=False),
        ]
    )

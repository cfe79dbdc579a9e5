"""What histories must be, worked out the slow and plain way: the reference that stores are compared with."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from hymirec.history.record import PAGE_RECORDS
from hymirec.history.store import Entry, HistoryStore

Row = tuple[int, int, int]


@dataclass(frozen=True)
class Placed:
    """An entry and the partition it was applied from."""

    topic_id: str
    partition: int
    entry: Entry


@dataclass
class _User:
    rows: list[Row] = field(default_factory=list)
    event_hashes: list[int] = field(default_factory=list)
    # Where the erasure stood: topic id, partition, offset, log_ms.
    erased: tuple[str, int, int, int] | None = None


def fold(messages: Iterable[Placed], max_events: int, dedup_horizon: int) -> dict[str, list[Row]]:
    """Histories after these messages, one by one in this order: user -> [(ts, key, action)], oldest first."""
    users: dict[str, _User] = defaultdict(_User)
    horizon = min(dedup_horizon, max_events)
    for message in messages:
        entry, user = message.entry, users[message.entry.user_id]
        place = (message.topic_id, message.partition, entry.offset, entry.log_ms)
        if user.erased is not None and _not_newer(place, user.erased):
            continue
        if entry.key is None:
            users[entry.user_id] = _User(erased=place)
        elif entry.event_hash not in user.event_hashes[-horizon:]:
            user.rows.append((entry.ts, entry.key, entry.action))
            user.event_hashes.append(entry.event_hash)
    return {name: _bounded(user.rows, max_events) for name, user in users.items()}


def _not_newer(place: tuple[str, int, int, int], erased: tuple[str, int, int, int]) -> bool:
    if place[:2] == erased[:2]:
        return place[2] <= erased[2]
    # Between partitions only the log's clock can tell, where it says anything.
    return place[3] > 0 and place[3] < erased[3]


def _bounded(rows: list[Row], max_events: int) -> list[Row]:
    """Whole old pages go first, then what is oldest by time."""
    pages = -(-len(rows) // PAGE_RECORDS)
    first = max(0, pages - (-(-max_events // PAGE_RECORDS) + 1))
    return sorted(rows[first * PAGE_RECORDS :], key=lambda row: row[0])[-max_events:]


def differences(store: HistoryStore, expected: Mapping[str, list[Row]]) -> list[str]:
    """One line for each user whose history in the store is not the expected one."""
    lines = []
    for user_id, rows in expected.items():
        history = store.read(user_id)
        found = list(zip(history.ts.tolist(), history.keys.tolist(), history.actions.tolist(), strict=True))
        if found != rows:
            lines.append(
                f"user {user_id!r}: expected {len(rows)} events, the store has {len(found)}, or in other order"
            )
    return lines

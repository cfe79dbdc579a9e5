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
    # Pages before this one are gone.
    first: int = 0
    # Where the erasure stood: topic id, partition, offset, log_ms.
    erased: tuple[str, int, int, int] | None = None


def fold(
    messages: Iterable[Placed], max_events: int, dedup_horizon: int, max_age: int | None = None, now: float = 0
) -> dict[str, list[Row]]:
    """Histories after these messages, one by one in this order: user -> [(ts, key, action)], oldest first.

    With `max_age` (seconds) as they are read at the time `now`.
    """
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
            if user.rows and len(user.rows) % PAGE_RECORDS == 0:
                _let_go(user, max_events, max_age, entry)
            user.rows.append((entry.ts, entry.key, entry.action))
            user.event_hashes.append(entry.event_hash)
    oldest = 0 if max_age is None else int(now) - max_age
    return {name: _bounded(user, max_events, oldest) for name, user in users.items()}


def _let_go(user: _User, max_events: int, max_age: int | None, entry: Entry) -> None:
    """A page is begun: old ones go whole, with the event ids of what is too old."""
    new = len(user.rows) // PAGE_RECORDS
    user.first = max(user.first, new - -(-max_events // PAGE_RECORDS))
    if max_age is None:
        return
    oldest = (entry.log_ms // 1000 or entry.ts) - max_age
    for _ in range(2):
        page = user.rows[user.first * PAGE_RECORDS : (user.first + 1) * PAGE_RECORDS]
        if user.first < new and all(row[0] < oldest for row in page):
            user.first += 1
        else:
            break
    kept = len(user.rows) - user.first * PAGE_RECORDS
    user.event_hashes = user.event_hashes[-kept:] if kept else []


def _not_newer(place: tuple[str, int, int, int], erased: tuple[str, int, int, int]) -> bool:
    if place[:2] == erased[:2]:
        return place[2] <= erased[2]
    # Between partitions only the log's clock can tell, where it says anything.
    return place[3] > 0 and place[3] < erased[3]


def _bounded(user: _User, max_events: int, oldest: int) -> list[Row]:
    """Of the pages that are left, the newest by time that are young enough."""
    newest = sorted(user.rows[user.first * PAGE_RECORDS :], key=lambda row: row[0])[-max_events:]
    return [row for row in newest if row[0] >= oldest]


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

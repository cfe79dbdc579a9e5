"""How a batch becomes pages: the part that all stores share.

Keys of one user:  b"m" head, b"h" + page pages of records, b"d" + page pages of hashes of event ids.
Appending touches the head and the last page only, so it costs the same for any length of history. Old pages are removed
when the history is longer than its bound. Late events are appended like others and sorted when read.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from hymirec.errors import StoreDamagedError
from hymirec.history.record import EVENT_HASH, PAGE_RECORDS, RECORD, Head, pack_array, unpack_array
from hymirec.history.store import ApplyResult, Entry, History

GetMany = Callable[[Sequence[bytes]], Sequence[bytes | None]]


@dataclass
class Changes:
    """Writes of one atomic batch."""

    puts: dict[bytes, bytes] = field(default_factory=dict)
    deletes: set[bytes] = field(default_factory=set)

    def put(self, key: bytes, value: bytes) -> None:
        """Set a key."""
        self.deletes.discard(key)
        self.puts[key] = value

    def delete(self, key: bytes) -> None:
        """Remove a key."""
        self.puts.pop(key, None)
        self.deletes.add(key)


def head_key(user_id: str) -> bytes:
    """Key of a user's head."""
    return b"m" + user_id.encode()


def _page_key(kind: bytes, user_id: str, page: int) -> bytes:
    user = user_id.encode()
    return kind + struct.pack(">H", len(user)) + user + struct.pack(">I", page)


def page_keys(user_id: str, head: Head, kind: bytes = b"h") -> list[bytes]:
    """Keys of all record pages (b"h") or event-hash pages (b"d") of a user."""
    return [_page_key(kind, user_id, page) for page in range(head.first_page, head.last_page + 1)]


@dataclass
class _User:
    head: Head
    records: list[tuple[int, int, int]]
    hashes: list[int]
    seen: set[int]
    dirty: dict[int, tuple[list[tuple[int, int, int]], list[int]]] = field(default_factory=dict)


class Appender:
    """Turns the entries of one batch into changes, reading what it needs through `get_many`."""

    def __init__(self, get_many: GetMany, max_events: int, dedup_horizon: int) -> None:
        self._get_many = get_many
        self._keep_pages = -(-max_events // PAGE_RECORDS) + 1
        self._dedup_pages = -(-dedup_horizon // PAGE_RECORDS) + 1
        self._horizon = dedup_horizon

    def apply(self, entries: Iterable[Entry], changes: Changes) -> ApplyResult:
        """Add the writes of the entries, in their order, to `changes`."""
        ordered = list(entries)
        users = self._load(list(dict.fromkeys(entry.user_id for entry in ordered)))
        result = ApplyResult(users=list(users))
        for entry in ordered:
            if entry.key is None:
                users[entry.user_id] = self._erase(entry.user_id, users[entry.user_id], changes)
                result.erased += 1
            elif entry.event_hash in users[entry.user_id].seen:
                result.duplicates += 1
            else:
                self._append(users[entry.user_id], entry)
                result.applied += 1
        for user_id, user in users.items():
            self._write(user_id, user, changes)
        return result

    def _load(self, user_ids: Sequence[str]) -> dict[str, _User]:
        heads = self._get_many([head_key(user_id) for user_id in user_ids])
        users: dict[str, _User] = {}
        for user_id, value in zip(user_ids, heads, strict=True):
            if value is None:
                users[user_id] = _User(Head(), [], [], set())
                continue
            head = Head.unpack(value, f"head of user {user_id!r}")
            dedup = page_keys(user_id, head, b"d")[-self._dedup_pages :]
            last, *hash_pages = self._get_many([page_keys(user_id, head)[-1], *dedup])
            records = [] if last is None else _records(last, user_id).tolist()
            hashes = [[] if page is None else _hashes(page, user_id).tolist() for page in hash_pages]
            recent = [h for page in hashes for h in page][-self._horizon :]
            users[user_id] = _User(head, records, hashes[-1] if hashes else [], set(recent))
        return users

    def _append(self, user: _User, entry: Entry) -> None:
        assert entry.key is not None
        if len(user.records) == PAGE_RECORDS:
            user.head.last_page += 1
            user.records, user.hashes = [], []
        user.records.append((entry.key, entry.ts, entry.action))
        user.hashes.append(entry.event_hash)
        user.seen.add(entry.event_hash)
        user.head.total += 1
        user.dirty[user.head.last_page] = (user.records, user.hashes)

    def _erase(self, user_id: str, user: _User, changes: Changes) -> _User:
        changes.delete(head_key(user_id))
        for kind in (b"h", b"d"):
            for key in page_keys(user_id, user.head, kind):
                changes.delete(key)
        return _User(Head(), [], [], set())

    def _write(self, user_id: str, user: _User, changes: Changes) -> None:
        if not user.dirty:
            return
        for page, (records, hashes) in user.dirty.items():
            changes.put(_page_key(b"h", user_id, page), pack_array(np.array(records, RECORD)))
            changes.put(_page_key(b"d", user_id, page), pack_array(np.array(hashes, EVENT_HASH)))
        last = user.head.last_page
        for page in range(user.head.first_page, last - self._keep_pages + 1):
            changes.delete(_page_key(b"h", user_id, page))
            changes.delete(_page_key(b"d", user_id, page))
            user.head.first_page = page + 1
        forgotten = min(user.dirty) - self._dedup_pages
        for page in range(max(0, forgotten - 1), last - self._dedup_pages + 1):
            changes.delete(_page_key(b"d", user_id, page))
        changes.put(head_key(user_id), user.head.pack())


def _records(value: bytes, user_id: str) -> NDArray[np.generic]:
    return unpack_array(value, RECORD, f"page of user {user_id!r}")


def _hashes(value: bytes, user_id: str) -> NDArray[np.generic]:
    return unpack_array(value, EVENT_HASH, f"event ids of user {user_id!r}")


def empty_history() -> History:
    """The history of a user who is not known."""
    return History(np.empty(0, np.uint64), np.empty(0, np.int64), np.empty(0, np.uint8), 0)


def history_of(user_id: str, pages: Sequence[bytes | None], max_events: int, limit: int | None) -> History:
    """Sort a user's pages (in order of appending) by time and keep the newest.

    A missing page is damage: heads and pages are written together.
    """
    parts = []
    for page in pages:
        if page is None:
            raise StoreDamagedError(f"a page of user {user_id!r} is missing; rebuild the store from the log")
        parts.append(_records(page, user_id))
    records = np.concatenate(parts)
    records = records[np.argsort(records["ts"], kind="stable")][-max_events:]
    count = len(records)
    if limit is not None:
        records = records[max(0, count - limit) :]
    return History(
        records["key"].astype(np.uint64), records["ts"].astype(np.int64), records["action"].astype(np.uint8), count
    )

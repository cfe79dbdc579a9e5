"""How a batch becomes pages: the part that all stores share.

Keys of one user:  b"m" head, b"h" + page pages of records, b"d" + page pages of hashes of event ids, b"e" tombstone.
Appending touches the head and the last page only, so it costs the same for any length of history. Late events are
appended like others and sorted when read. Of a long history whole old pages go: what is kept are the `max_events`
newest (by time) of the pages that hold the last `max_events` appended. Everything is a function of the sequence of
entries alone, however it is cut into batches.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
import xxhash

from hymirec.errors import StoreDamagedError
from hymirec.history.record import (
    PAGE_RECORDS,
    RECORD,
    Head,
    Records,
    Tombstone,
    pack_hashes,
    pack_records,
    unpack_hashes,
    unpack_records,
)
from hymirec.history.store import ApplyResult, Entry, History, PartitionBatch

GetMany = Callable[[Sequence[bytes]], Sequence[bytes | None]]
Row = tuple[int, int, int]


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


def _utf8(user_id: str) -> bytes:
    return user_id.encode("utf-8", "surrogatepass")


def head_key(user_id: str) -> bytes:
    """Key of a user's head."""
    return b"m" + _utf8(user_id)


def tombstone_key(user_id: str) -> bytes:
    """Key of a user's tombstone: a hash, since an erased user's id must not stay."""
    return b"e" + xxhash.xxh3_128_digest(_utf8(user_id))


def user_of(key: bytes) -> str:
    """The user whose head has this key."""
    return key[1:].decode("utf-8", "surrogatepass")


def pages_prefix(kind: bytes, user_id: str) -> bytes:
    """What the keys of all pages of a user begin with, and no other keys."""
    user = _utf8(user_id)
    return kind + struct.pack(">H", len(user)) + user


def _page_key(kind: bytes, user_id: str, page: int) -> bytes:
    return pages_prefix(kind, user_id) + struct.pack(">I", page)


def page_keys(user_id: str, head: Head, kind: bytes = b"h") -> list[bytes]:
    """Keys of all record pages (b"h") or event-hash pages (b"d") of a user."""
    return [_page_key(kind, user_id, page) for page in range(head.first_page, head.last_page + 1)]


def record_page_values(user_id: str, first_page: int, records: Records) -> Iterator[tuple[bytes, bytes]]:
    """Keys and values of the pages of all records that a user keeps."""
    for start in range(0, len(records), PAGE_RECORDS):
        page = first_page + start // PAGE_RECORDS
        yield _page_key(b"h", user_id, page), pack_records(records[start : start + PAGE_RECORDS])


def hash_page_values(user_id: str, head: Head, hashes: Sequence[int]) -> Iterator[tuple[bytes, bytes]]:
    """Keys and values of the pages of a user's newest event ids; the last page has as many as the last of records."""
    stop, page = len(hashes), head.last_page
    size = head.total - head.last_page * PAGE_RECORDS
    while stop > 0:
        yield _page_key(b"d", user_id, page), pack_hashes(hashes[stop - size : stop])
        stop, page, size = stop - size, page - 1, PAGE_RECORDS


@dataclass
class _User:
    head: Head
    rows: list[Row]
    hashes: list[int]
    recent: deque[int]
    seen: set[int]
    tombstone: Tombstone | None = None
    dirty: dict[int, tuple[list[Row], list[int]]] = field(default_factory=dict)


class Appender:
    """Turns the entries of one batch into changes, reading what it needs through `get_many`."""

    def __init__(self, get_many: GetMany, max_events: int, dedup_horizon: int) -> None:
        self._get_many = get_many
        self._keep_pages = -(-max_events // PAGE_RECORDS) + 1
        # Event ids go with the pages of their events at the latest.
        self._horizon = min(dedup_horizon, max_events)
        self._dedup_pages = -(-self._horizon // PAGE_RECORDS) + 1

    def apply(self, batch: PartitionBatch, entries: Iterable[Entry], changes: Changes) -> ApplyResult:
        """Add the writes of the entries (some or all of the batch's), in their order, to `changes`."""
        ordered = list(entries)
        users = self._load(list(dict.fromkeys(entry.user_id for entry in ordered)))
        topic_hash = xxhash.xxh3_64_intdigest(batch.topic_id.encode())
        result = ApplyResult(users=list(users))
        for entry in ordered:
            user = users[entry.user_id]
            place = (topic_hash, batch.partition, entry.offset, entry.log_ms)
            if user.tombstone is not None and user.tombstone.covers(*place):
                result.suppressed += 1
            elif entry.key is None:
                self._erase(entry.user_id, user, changes)
                users[entry.user_id] = self._fresh(Tombstone(*place))
                changes.put(tombstone_key(entry.user_id), Tombstone(*place).pack())
                result.erased += 1
            elif entry.event_hash in user.seen:
                result.duplicates += 1
            else:
                self._append(user, entry.key, entry)
                result.applied += 1
        for user_id, user in users.items():
            self._write(user_id, user, changes)
        return result

    def _fresh(self, tombstone: Tombstone | None) -> _User:
        return _User(Head(), [], [], deque(), set(), tombstone)

    def _load(self, user_ids: Sequence[str]) -> dict[str, _User]:
        """Heads and tombstones of all users in one read, then their last pages in another."""
        count = len(user_ids)
        values = self._get_many([*map(head_key, user_ids), *map(tombstone_key, user_ids)])
        users: dict[str, _User] = {}
        wanted: dict[str, list[bytes]] = {}
        for user_id, value, buried in zip(user_ids, values[:count], values[count:], strict=True):
            user = users[user_id] = self._fresh(None)
            if buried is not None:
                user.tombstone = Tombstone.unpack(buried, f"tombstone of user {user_id!r}")
            if value is not None:
                head = user.head = Head.unpack(value, f"head of user {user_id!r}")
                hash_pages = range(max(head.first_page, head.last_page - self._dedup_pages + 1), head.last_page + 1)
                wanted[user_id] = [_page_key(b"h", user_id, head.last_page)]
                wanted[user_id] += [_page_key(b"d", user_id, page) for page in hash_pages]
        pages = iter(self._get_many([key for keys in wanted.values() for key in keys]) if wanted else ())
        for user_id, keys in wanted.items():
            self._load_tail(user_id, users[user_id], list(islice(pages, len(keys))))
        return users

    def _load_tail(self, user_id: str, user: _User, pages: Sequence[bytes | None]) -> None:
        """The last page, to append to, and the event ids of the horizon."""
        found = [page for page in pages if page is not None]
        if len(found) < len(pages):
            raise page_missing(user_id)
        hashes = [unpack_hashes(page, f"event ids of user {user_id!r}") for page in found[1:]]
        user.rows = unpack_records(found[0], f"page of user {user_id!r}").tolist()
        user.hashes = hashes[-1]
        user.recent = deque([h for page in hashes for h in page][-self._horizon :])
        user.seen = set(user.recent)

    def _append(self, user: _User, key: int, entry: Entry) -> None:
        if len(user.rows) == PAGE_RECORDS:
            user.head.last_page += 1
            user.rows, user.hashes = [], []
        user.rows.append((key, entry.ts, entry.action))
        user.hashes.append(entry.event_hash)
        if len(user.recent) == self._horizon:
            user.seen.discard(user.recent.popleft())
        user.recent.append(entry.event_hash)
        user.seen.add(entry.event_hash)
        user.head.total += 1
        user.dirty[user.head.last_page] = (user.rows, user.hashes)

    def _erase(self, user_id: str, user: _User, changes: Changes) -> None:
        changes.delete(head_key(user_id))
        for kind in (b"h", b"d"):
            for key in page_keys(user_id, user.head, kind):
                changes.delete(key)

    def _write(self, user_id: str, user: _User, changes: Changes) -> None:
        if not user.dirty:
            return
        for page, (rows, hashes) in user.dirty.items():
            changes.put(_page_key(b"h", user_id, page), pack_records(np.array(rows, RECORD)))
            changes.put(_page_key(b"d", user_id, page), pack_hashes(hashes))
        last = user.head.last_page
        for page in range(user.head.first_page, last - self._keep_pages + 1):
            changes.delete(_page_key(b"h", user_id, page))
            changes.delete(_page_key(b"d", user_id, page))
            user.head.first_page = page + 1
        for page in range(max(0, min(user.dirty) - self._dedup_pages), last - self._dedup_pages + 1):
            changes.delete(_page_key(b"d", user_id, page))
        changes.put(head_key(user_id), user.head.pack())


def page_missing(user_id: str) -> StoreDamagedError:
    """What to raise when a page that the head counts is not there."""
    # Heads and pages are written together: a missing one is damage.
    return StoreDamagedError(f"a page of user {user_id!r} is missing; restore the store or rebuild it from the log")


def empty_history() -> History:
    """The history of a user who is not known."""
    return History(np.empty(0, np.uint64), np.empty(0, np.int64), np.empty(0, np.uint8), 0)


def history_of(user_id: str, pages: Sequence[bytes | None], max_events: int, limit: int | None) -> History:
    """Sort a user's pages (in order of appending) by time and keep the newest. A missing page is StoreDamagedError."""
    parts = []
    for page in pages:
        if page is None:
            raise page_missing(user_id)
        parts.append(unpack_records(page, f"page of user {user_id!r}"))
    records = np.concatenate(parts)
    records = records[np.argsort(records["ts"], kind="stable")][-max_events:]
    count = len(records)
    if limit is not None:
        records = records[max(0, count - limit) :]
    return History(
        records["key"].astype(np.uint64), records["ts"].astype(np.int64), records["action"].astype(np.uint8), count
    )

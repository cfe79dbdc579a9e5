"""Under which keys a user's history lies, and how its pages are read: the part that all stores share.

Keys of one user:  b"m" head, b"h" + page pages of records, b"d" + page pages of hashes of event ids, b"e" tombstone.
How they come about: `hymirec.history.append`.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import cast

import numpy as np
import xxhash

from hymirec.config import HistoryConfig
from hymirec.errors import StoreDamagedError
from hymirec.history.record import PAGE_RECORDS, Head, Records, pack_hashes, pack_records, unpack_pages
from hymirec.history.store import History

GetMany = Callable[[Sequence[bytes]], Sequence[bytes | None]]
DAY = 86_400
_LENGTH = struct.Struct(">H")
PAGE_NUMBER = struct.Struct(">I")


@dataclass
class Changes:
    """Writes of one atomic batch."""

    puts: dict[bytes, bytes] = field(default_factory=dict)
    deletes: set[bytes] = field(default_factory=set)

    def put(self, key: bytes, value: bytes) -> None:
        """Set a key."""
        if self.deletes:
            self.deletes.discard(key)
        self.puts[key] = value

    def delete(self, key: bytes) -> None:
        """Remove a key."""
        self.puts.pop(key, None)
        self.deletes.add(key)


@dataclass(frozen=True)
class Bounds:
    """What is kept of a history: `max_events` newest, none older than `max_age` seconds; `horizon` newest event ids."""

    max_events: int
    horizon: int
    max_age: int | None = None

    @classmethod
    def of(cls, config: HistoryConfig) -> Bounds:
        """The bounds of a config. Event ids go with the pages of their events at the latest."""
        days = config.max_age_days
        return cls(
            config.max_events, min(config.dedup_horizon, config.max_events), None if days is None else days * DAY
        )

    @property
    def keep_pages(self) -> int:
        """Pages that hold the last `max_events` appended."""
        return -(-self.max_events // PAGE_RECORDS) + 1

    @property
    def hash_pages(self) -> int:
        """Pages that hold the event ids of the horizon."""
        return -(-self.horizon // PAGE_RECORDS) + 1

    def oldest(self, now: float) -> int | None:
        """The oldest time that is young enough, in seconds; None where age is not bounded."""
        return None if self.max_age is None else int(now) - self.max_age


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
    return kind + _LENGTH.pack(len(user)) + user


def page_key(kind: bytes, user_id: str, page: int) -> bytes:
    """Key of one page of a user."""
    return pages_prefix(kind, user_id) + PAGE_NUMBER.pack(page)


def page_keys(user_id: str, head: Head, kind: bytes = b"h") -> list[bytes]:
    """Keys of all record pages (b"h") or event-hash pages (b"d") of a user."""
    prefix, pack = pages_prefix(kind, user_id), PAGE_NUMBER.pack
    return [prefix + pack(page) for page in range(head.first_page, head.last_page + 1)]


def record_page_values(user_id: str, first_page: int, records: Records) -> Iterator[tuple[bytes, bytes]]:
    """Keys and values of the pages of all records that a user keeps."""
    for start in range(0, len(records), PAGE_RECORDS):
        page = first_page + start // PAGE_RECORDS
        yield page_key(b"h", user_id, page), pack_records(records[start : start + PAGE_RECORDS])


def hash_page_values(user_id: str, head: Head, hashes: Sequence[int]) -> Iterator[tuple[bytes, bytes]]:
    """Keys and values of the pages of a user's newest event ids; the last page has as many as the last of records."""
    stop, page = len(hashes), head.last_page
    size = head.total - head.last_page * PAGE_RECORDS
    while stop > 0:
        yield page_key(b"d", user_id, page), pack_hashes(hashes[stop - size : stop])
        stop, page, size = stop - size, page - 1, PAGE_RECORDS


def page_missing(user_id: str) -> StoreDamagedError:
    """What to raise when a page that the head counts is not there."""
    # Heads and pages are written together: a missing one is damage.
    return StoreDamagedError(f"a page of user {user_id!r} is missing; restore the store or rebuild it from the log")


def empty_history() -> History:
    """The history of a user who is not known."""
    return History(np.empty(0, np.uint64), np.empty(0, np.int64), np.empty(0, np.uint8), 0)


def history_of(
    user_id: str, pages: Sequence[bytes | None], bounds: Bounds, limit: int | None, now: float | None = None
) -> History:
    """Sort a user's pages (in order of appending) by time and keep the newest that are young enough.

    Raises StoreDamagedError for a page that is missing or damaged. `now` is in seconds, the present unless given.
    """
    if None in pages:
        raise page_missing(user_id)
    key_N, ts_N, action_N = unpack_pages(cast("Sequence[bytes]", pages), f"page of user {user_id!r}")
    # Most events come in order of time.
    if (ts_N[1:] < ts_N[:-1]).any():
        order = np.argsort(ts_N, kind="stable")
        key_N, ts_N, action_N = key_N[order], ts_N[order], action_N[order]
    oldest = bounds.oldest(time.time() if now is None else now)
    start = max(len(ts_N) - bounds.max_events, 0 if oldest is None else int(np.searchsorted(ts_N, oldest)))
    count = len(ts_N) - start
    if limit is not None:
        start = max(start, len(ts_N) - limit)
    return History(key_N[start:], ts_N[start:].astype(np.int64), action_N[start:], count)

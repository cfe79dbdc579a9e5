"""Under which keys a user's history lies, and how its pages are read: the part that all stores share.

Keys of one user:  b"m" head and last page, b"h" + page full pages of records, b"d" + page hashes of their event ids,
b"e" tombstone. Pages of records lie 16 or 4 in one value (`GROUPS`), under the number of the first, a multiple of 16 or
4. How they come about: `hymirec.history.append`.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import xxhash
from numpy.typing import NDArray

from hymirec.config import HistoryConfig
from hymirec.errors import StoreDamagedError
from hymirec.history.record import (
    EVENT_HASH,
    PAGE_RECORDS,
    RECORD,
    RECORD_COLUMNS,
    Columns,
    Head,
    Records,
    Tail,
    pack_hashes,
    pack_records,
    records_in,
    unpack_hash_pages,
    unpack_pages,
)
from hymirec.history.store import History

GetMany = Callable[[Sequence[bytes]], Sequence[bytes | None]]
# How many pages a value may hold beside one, most first.
GROUPS = (16, 4)
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


def group_at(page: int, stop: int) -> int:
    """How many pages lie in the value of this number: the most that may and that end at `stop` or before."""
    for size in GROUPS:
        if page % size == 0 and page + size <= stop:
            return size
    return 1


def value_pages(head: Head) -> list[int]:
    """Numbers of the values that hold a user's pages of records, where no older program wrote."""
    page, last, end = head.first_value, head.last_page, head.end
    size, pages = head.first_size, []
    while page < end:
        pages.append(page)
        page += size
        size = group_at(page, last)
    return pages


def every_page(head: Head) -> range:
    """All numbers under which a user's pages of records may lie."""
    return range(head.first_value, head.end)


def record_keys(user_id: str, pages: Iterable[int]) -> list[bytes]:
    """Keys of these pages of records."""
    prefix, pack = pages_prefix(b"h", user_id), PAGE_NUMBER.pack
    return [prefix + pack(page) for page in pages]


def hash_keys(user_id: str, head: Head) -> list[bytes]:
    """Keys of the pages of event ids of a user; those before the horizon are not there."""
    prefix, pack = pages_prefix(b"d", user_id), PAGE_NUMBER.pack
    return [prefix + pack(page) for page in range(head.first_page, head.end)]


def read_pages(get_many: GetMany, user_id: str, head: Head) -> list[bytes]:
    """The values that hold a user's pages of records, in order. Raises StoreDamagedError when a page is missing."""
    return read_values(get_many, user_id, value_pages(head), every_page(head), head.records)


def read_values(get_many: GetMany, user_id: str, pages: Sequence[int], every: Sequence[int], count: int) -> list[bytes]:
    """Values of pages that hold `count` records: those under `pages`, or under `every` number where they lie otherwise.

    Raises StoreDamagedError when a page is missing.
    """
    try:
        return found_pages(user_id, get_many(record_keys(user_id, pages)), count)
    except StoreDamagedError:
        return found_pages(user_id, get_many(record_keys(user_id, every)), count)


def found_pages(user_id: str, values: Sequence[bytes | None], count: int) -> list[bytes]:
    """Those of the values that are there. Raises StoreDamagedError when they are not `count` records."""
    found = [value for value in values if value is not None]
    if sum(map(records_in, found)) != count:
        raise page_missing(user_id)
    return found


def laid_out(user_id: str, values: Mapping[bytes, bytes]) -> dict[bytes, bytes]:
    """All that is kept of a user, with pages as `user_values` has them: equal for equal contents.

    Raises StoreDamagedError or UnsupportedFormatError.
    """
    value = values.get(head_key(user_id))
    if value is None:
        return dict(values)
    head = Head.unpack(value, f"head of user {user_id!r}")
    columns = kept_columns(user_id, head, read_pages(lambda keys: [*map(values.get, keys)], user_id, head))
    records = np.empty(len(columns[0]), RECORD)
    for name, column in zip(RECORD_COLUMNS, columns, strict=True):
        records[name] = column
    pages = {*record_keys(user_id, every_page(head)), *hash_keys(user_id, head)}
    beside = {key: value for key, value in values.items() if key not in pages}
    return beside | user_values(user_id, head.first_page, records, event_ids(user_id, head, values))


def event_ids(user_id: str, head: Head, values: Mapping[bytes, bytes]) -> NDArray[np.uint64]:
    """Hashes of all event ids that are kept of a user, oldest first. Raises as `unpack_hash_pages`."""
    pages = [values[key] for key in hash_keys(user_id, head) if key in values]
    hashes = unpack_hash_pages(pages, f"event ids of user {user_id!r}")
    return hashes if head.tail is None else np.concatenate([hashes, np.frombuffer(head.tail.hashes, EVENT_HASH)])


def user_values(user_id: str, first_page: int, records: Records, hashes: NDArray[np.uint64]) -> dict[bytes, bytes]:
    """The head and all pages of a user who keeps these records and event ids, as appending them makes them.

    Raises StoreDamagedError where a record of the last page has no event id.
    """
    total = first_page * PAGE_RECORDS + len(records)
    last_page = max(first_page, (total - 1) // PAGE_RECORDS)
    start = (last_page - first_page) * PAGE_RECORDS
    last, known = records[start:], len(hashes) - (len(records) - start)
    if known < 0:
        raise page_missing(user_id)
    tail = Tail(
        b"".join(last[column].tobytes() for column in RECORD_COLUMNS), hashes[known:].astype(EVENT_HASH).tobytes()
    )
    head = Head(first_page, last_page, total, first_page, group_at(first_page, last_page), tail)
    pages = value_pages(head)
    starts = [(page - first_page) * PAGE_RECORDS for page in pages]
    full = [pack_records(records[begin:stop]) for begin, stop in zip(starts, [*starts[1:], start], strict=False)]
    values = {head_key(user_id): head.pack(), **dict(zip(record_keys(user_id, pages), full, strict=True))}
    for number, stop in enumerate(range(known, 0, -PAGE_RECORDS), 1):
        page = hashes[max(0, stop - PAGE_RECORDS) : stop]
        values[page_key(b"d", user_id, last_page - number)] = pack_hashes(page.tolist())
    return values


def page_missing(user_id: str) -> StoreDamagedError:
    """What to raise when a page that the head counts is not there."""
    # Heads and pages are written together: a missing one is damage.
    return StoreDamagedError(f"a page of user {user_id!r} is missing; restore the store or rebuild it from the log")


def empty_history() -> History:
    """The history of a user who is not known."""
    return History(np.empty(0, np.uint64), np.empty(0, np.int64), np.empty(0, np.uint8), 0)


def kept_columns(user_id: str, head: Head, values: Sequence[bytes]) -> Columns:
    """Keys, times and actions of a user in order of appending, without those let go that lie in the first value still.

    Raises StoreDamagedError or UnsupportedFormatError.
    """
    tail = b"" if head.tail is None else head.tail.records
    columns = unpack_pages(values, f"page of user {user_id!r}", tail)
    gone = (head.first_page - head.first_value) * PAGE_RECORDS
    if gone == 0:
        return columns
    keys, times, actions = columns
    return keys[gone:], times[gone:], actions[gone:]


def history_of(
    user_id: str, head: Head, values: Sequence[bytes], bounds: Bounds, limit: int | None, now: float | None = None
) -> History:
    """Sort a user's pages by time and keep the newest events that are young enough; `values` as of `read_pages`.

    Raises StoreDamagedError for a page that is damaged. `now` is in seconds, the present unless given.
    """
    key_N, ts_N, action_N = kept_columns(user_id, head, values)
    # Most events come in order of time.
    if np.count_nonzero(ts_N[1:] < ts_N[:-1]):
        order = np.argsort(ts_N, kind="stable")
        key_N, ts_N, action_N = key_N[order], ts_N[order], action_N[order]
    oldest = bounds.oldest(time.time() if now is None else now)
    start = max(len(ts_N) - bounds.max_events, 0 if oldest is None else int(np.searchsorted(ts_N, oldest)))
    count = len(ts_N) - start
    if limit is not None:
        start = max(start, len(ts_N) - limit)
    return History(key_N[start:], ts_N[start:].astype(np.int64), action_N[start:], count)

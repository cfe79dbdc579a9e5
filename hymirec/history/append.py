"""How a batch becomes pages.

Appending writes the head alone, in which the last page lies, so it costs the same for any length of history. A page
that is full gets a value of its own when the next one is begun. Full pages go into one value together, four when the
fourth is full, then sixteen, so that a read finds few values; each event is written twice more for it, however long its
history. Late events are appended like others and sorted when read. Of a long history whole old pages go, when a new
page is begun: those before the last `max_events` appended; and of the oldest that are left up to two whose every event
is too old by the log's clock. Pages of one value leave the store together, when the last of them goes. Reads keep the
bounds to the event. Everything is a function of the sequence of entries
alone, however it is cut into batches, and however many of them are written at once.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice

import numpy as np
import xxhash

from hymirec.errors import StoreDamagedError
from hymirec.history.pages import (
    GROUPS,
    PAGE_NUMBER,
    Bounds,
    Changes,
    GetMany,
    every_page,
    hash_keys,
    head_key,
    page_key,
    page_missing,
    pages_prefix,
    read_values,
    record_keys,
    tombstone_key,
    value_pages,
)
from hymirec.history.record import (
    HASH_BYTES,
    PAGE_RECORDS,
    RECORD_COLUMNS,
    Head,
    Tail,
    Tombstone,
    merge_pages,
    pack_columns,
    pack_hashes,
    pack_head,
    unpack_hash_pages,
    unpack_records,
    unpack_tail,
)
from hymirec.history.store import ApplyResult, Entry, PartitionBatch

# Old pages looked at when a page is begun: two, so that a history of old pages shrinks.
EXPIRED_AT_ONCE = 2
MARKS, MARK_BYTES, MARKED_ANEW = 32_768, 4_096, 1_024
# Page, head, keys and marks of a user that is held, in event ids.
USER_WEIGHT = 800


@dataclass(slots=True)
class Page:
    """A page of records, columns, and the hashes of their event ids."""

    keys: array[int] = field(default_factory=lambda: array("Q"))
    times: array[int] = field(default_factory=lambda: array("I"))
    actions: bytearray = field(default_factory=bytearray)
    hashes: array[int] = field(default_factory=lambda: array("Q"))

    def extend(self, entries: Sequence[Entry]) -> None:
        """Append the records of events."""
        if len(entries) == 1:
            _, _, key, ts, action, event_hash, _ = entries[0]
            self.keys.append(key)  # type: ignore[arg-type]
            self.times.append(ts)
            self.actions.append(action)
            self.hashes.append(event_hash)
            return
        _, _, keys, times, actions, hashes, _ = zip(*entries, strict=True)
        self.keys.extend(keys)
        self.times.extend(times)
        self.actions.extend(actions)
        self.hashes.extend(hashes)

    def pack(self) -> bytes:
        """The records as a value."""
        return pack_columns(self.keys, self.times, self.actions)

    def pack_with(self, head: Head) -> bytes:
        """The head as a value, with this as its last page."""
        return pack_head(head, self.keys, self.times, self.actions, self.hashes)


@dataclass(slots=True)
class User:
    """A user while events are appended: the last page, and the event ids of the horizon."""

    head: Head = field(default_factory=Head)
    page: Page = field(default_factory=Page)
    # Event ids, 8 bytes each, oldest first: a search through 1,024 of them takes 2 us, a set of them 100 kB. So there
    # are marks, a bit each, of which low bits occur, and a search only where they do; old marks go when so many ids
    # were added.
    recent: bytearray = field(default_factory=bytearray)
    marks: bytearray = field(default_factory=lambda: bytearray(MARK_BYTES))
    unmarked: int = MARKED_ANEW
    tombstone: Tombstone | None = None
    dirty: dict[int, Page] = field(default_factory=dict)
    # Pages to be put into one value: the number of the first, and how many.
    groups: dict[int, int] = field(default_factory=dict)
    # As the head in the store has it, but for the number of records; it changes when a page is begun.
    stored: Head = field(default_factory=Head)
    # Whether the last page has values of its own in the store, as older programs wrote it.
    apart: bool = False

    def mark(self, entries: Sequence[Entry]) -> list[int]:
        """Set the marks of events; returns the event ids that were perhaps seen, here or before, and those of erasures.

        The marks of events that are not appended after all cost a search each, no more.
        """
        marks, suspects = self.marks, []
        for _, _, key, _, _, event_hash, _ in entries:
            low = event_hash % MARKS
            place, bit = low >> 3, 1 << (low & 7)
            if marks[place] & bit or key is None:
                suspects.append(event_hash)
            else:
                marks[place] |= bit
        return suspects

    def has_seen(self, event_hash: int) -> bool:
        """Whether an event id is within the horizon."""
        return bool((np.frombuffer(self.recent, np.uint64) == event_hash).any())

    def mark_anew(self) -> None:
        """Only the event ids of the horizon are marked."""
        marks = np.zeros(MARKS, np.bool_)
        marks[np.frombuffer(self.recent, np.uint64) % MARKS] = True
        self.marks, self.unmarked = bytearray(np.packbits(marks, bitorder="little").tobytes()), MARKED_ANEW

    def keep(self, most: int) -> None:
        """Forget all but so many of the newest event ids."""
        excess = len(self.recent) - HASH_BYTES * most
        if excess > 0:
            del self.recent[:excess]

    @property
    def weight(self) -> int:
        """What holding it takes, in event ids."""
        return len(self.recent) // HASH_BYTES + USER_WEIGHT


def _let_go(head: Head, first_page: int) -> None:
    """Move the first page that is kept, and say which value it lies in."""
    head.first_page = first_page
    following = head.first_value + head.first_size
    if first_page < following:
        return
    head.first_value, head.first_size = first_page, 1
    for size in GROUPS:
        start = first_page - first_page % size
        # Put together when the page after it was begun, before this one was.
        if start >= following and start + size < head.last_page:
            head.first_value, head.first_size = start, size
            return


class Appender:
    """Turns the entries of one or more batches into changes, reading what it needs through `get_many`.

    Users wait in memory until `write`: one that many batches touched is written once. Where this is the only writer it
    may hold on to users beyond that (`cached_events` of event ids at most, those who wait included). Whoever changes
    the store in another way, or fails to commit what came of `write`, must call `forget`.
    """

    def __init__(self, get_many: GetMany, bounds: Bounds, cached_events: int = 0) -> None:
        self._get_many, self._bounds = get_many, bounds
        self._cached_events, self._held, self._waiting = cached_events, 0, 0
        # Users as they are in the store; and those who were touched since the last write, with what that write has
        # beside them.
        self._cache: OrderedDict[str, User] = OrderedDict()
        self._unwritten: dict[str, User] = {}
        self._changes = Changes()

    @property
    def crowded(self) -> bool:
        """Whether the users that wait take all the room there is: time to write."""
        return self._waiting > self._cached_events

    def forget(self) -> None:
        """Believe nothing that was read or made before."""
        self._cache.clear()
        self._unwritten.clear()
        self._changes = Changes()
        self._held = self._waiting = 0

    def unwritten(self, user_id: str) -> User | None:
        """A user who was touched since the last write; None: the store has all there is."""
        return self._unwritten.get(user_id)

    def write(self) -> Changes:
        """The writes of everything that was applied since the last call."""
        changes, self._changes = self._changes, Changes()
        for user_id, user in self._unwritten.items():
            self._write(user_id, user, changes)
        self._hold()
        return changes

    def apply(self, batch: PartitionBatch, entries: Iterable[Entry]) -> ApplyResult:
        """Append the entries (some or all of the batch's), in their order; `write` tells what is to be written."""
        by_user: dict[str, list[Entry]] = {}
        for entry in entries:
            mine = by_user.get(entry[1])
            if mine is None:
                by_user[entry[1]] = [entry]
            else:
                mine.append(entry)
        result = ApplyResult(users=list(by_user))
        users = self._load(result.users)
        topic_hash = xxhash.xxh3_64_intdigest(batch.topic_id.encode())
        for user_id, mine in by_user.items():
            user = users[user_id]
            if user.tombstone is None and self._all_new(user, mine):
                self._append(user_id, user, mine)
                result.applied += len(mine)
            else:
                self._one_by_one(user_id, user, mine, (topic_hash, batch.partition), result)
        self._trim()
        return result

    @staticmethod
    def _all_new(user: User, entries: Sequence[Entry]) -> bool:
        """Mark them all, and say whether all are events that were not seen: then they are appended at once."""
        suspects = user.mark(entries)
        if not suspects:
            return True
        hashes = {entry[5] for entry in entries}
        if len(hashes) < len(entries) or any(entry[2] is None for entry in entries):
            return False
        return not any(map(user.has_seen, suspects))

    def _one_by_one(
        self,
        user_id: str,
        user: User,
        entries: Sequence[Entry],
        place: tuple[int, int],
        result: ApplyResult,
    ) -> None:
        for entry in entries:
            stone = (*place, entry.offset, entry.log_ms)
            if user.tombstone is not None and user.tombstone.covers(*stone):
                result.suppressed += 1
            elif entry.key is None:
                self._erase(user_id, user)
                user.tombstone = Tombstone(*stone)
                self._changes.put(tombstone_key(user_id), user.tombstone.pack())
                result.erased += 1
            elif user.mark((entry,)) and user.has_seen(entry.event_hash):
                result.duplicates += 1
            else:
                self._append(user_id, user, (entry,))
                result.applied += 1

    def _append(self, user_id: str, user: User, entries: Sequence[Entry]) -> None:
        """Append events that are all new and marked."""
        head, done, count = user.head, 0, len(entries)
        while done < count:
            room = PAGE_RECORDS - len(user.page.keys)
            if room == 0:
                self._turn(user_id, user, entries[done])
                room = PAGE_RECORDS
            part = entries if done == 0 and count <= room else entries[done : done + room]
            user.page.extend(part)
            user.dirty[head.last_page] = user.page
            user.recent += user.page.hashes[-len(part) :].tobytes()
            user.keep(self._bounds.horizon)
            head.total += len(part)
            done += len(part)
        user.unmarked -= count
        if user.unmarked < 0:
            user.mark_anew()

    def _turn(self, user_id: str, user: User, entry: Entry) -> None:
        """Begin a page, and let old ones go."""
        head = user.head
        # So far it lay in the head.
        user.dirty[head.last_page] = user.page
        head.last_page += 1
        user.page = Page()
        _let_go(head, max(head.first_page, head.last_page - self._bounds.keep_pages + 1))
        # Where the log tells no time, the event does.
        oldest = self._bounds.oldest(entry.log_ms // 1000 or entry.ts)
        if oldest is not None:
            for _ in range(EXPIRED_AT_ONCE):
                if head.first_page == head.last_page or self._newest(user_id, user) >= oldest:
                    break
                _let_go(head, head.first_page + 1)
            user.keep(head.total - head.first_page * PAGE_RECORDS)
        for size in GROUPS:
            first = head.last_page - size
            if head.last_page % size == 0 and first >= head.first_page:
                for page in range(first, head.last_page):
                    user.groups.pop(page, None)
                user.groups[first] = size
                if first == head.first_value:
                    head.first_size = size
                break

    def _newest(self, user_id: str, user: User) -> int:
        """Newest time on the first page."""
        first = user.head.first_page
        if first in user.dirty:
            return max(user.dirty[first].times)
        # Alone where an older program wrote, and pages that wait to be put together are not so in the store yet.
        for page in sorted({first, *(first - first % size for size in GROUPS)}, reverse=True):
            (value,) = self._get_many([page_key(b"h", user_id, page)])
            if value is not None:
                start = (first - page) * PAGE_RECORDS
                times = unpack_records(value, f"page of user {user_id!r}")["ts"][start : start + PAGE_RECORDS]
                if len(times):
                    return int(times.max())
        raise page_missing(user_id)

    def _erase(self, user_id: str, user: User) -> None:
        self._changes.delete(head_key(user_id))
        stored = replace(user.stored, last_page=user.head.last_page)
        for key in (*record_keys(user_id, every_page(stored)), *hash_keys(user_id, stored)):
            self._changes.delete(key)
        user.head, user.page, user.dirty, user.groups = Head(), Page(), {}, {}
        user.stored, user.apart = Head(), False
        user.recent.clear()
        user.mark_anew()

    def _write(self, user_id: str, user: User, changes: Changes) -> None:
        if not user.dirty:
            return
        head = user.head
        changes.put(head_key(user_id), user.page.pack_with(head))
        if head.last_page != user.stored.last_page or user.apart:
            self._write_pages(user_id, user, changes)
        user.dirty, user.groups = {}, {}

    def _write_pages(self, user_id: str, user: User, changes: Changes) -> None:
        """What lies beside the head, once a page was begun."""
        head, dirty = user.head, user.dirty
        records, event_ids = pages_prefix(b"h", user_id), pages_prefix(b"d", user_id)
        if user.apart:
            number = PAGE_NUMBER.pack(user.stored.last_page)
            changes.delete(records + number)
            changes.delete(event_ids + number)
            user.apart = False
        grouped = self._put_together(user_id, user, changes) if user.groups else ()
        for page, content in dirty.items():
            if page == head.last_page:
                continue
            number = PAGE_NUMBER.pack(page)
            if page >= head.first_value and page not in grouped:
                changes.put(records + number, content.pack())
            if page >= head.first_page:
                changes.put(event_ids + number, pack_hashes(content.hashes))
        # Those before went when an earlier page was begun.
        for page in range(user.stored.first_value, head.first_value):
            changes.delete(records + PAGE_NUMBER.pack(page))
        gone, stay = (max(at.first_page, at.last_page - self._bounds.hash_pages + 1) for at in (user.stored, head))
        for page in range(gone, stay):
            changes.delete(event_ids + PAGE_NUMBER.pack(page))
        user.stored = replace(head)

    def _put_together(self, user_id: str, user: User, changes: Changes) -> set[int]:
        """The pages that lie in one value from now on; returns their numbers."""
        grouped: set[int] = set()
        for start, size in user.groups.items():
            group = range(start, start + size)
            if start >= user.head.first_value:
                try:
                    value = merge_pages(self._pages(user_id, user, group), f"page of user {user_id!r}")
                except StoreDamagedError:
                    # Pages stay as they are, and reads tell; nobody's appending ends for it.
                    continue
                changes.put(page_key(b"h", user_id, start), value)
            grouped.update(group)
            for key in record_keys(user_id, group[1:]):
                changes.delete(key)
        return grouped

    def pages_of(self, user_id: str, user: User) -> list[bytes]:
        """The pages of a user who waits, as `read_pages` has them: the last ones are in memory only."""
        return self._pages(user_id, user, every_page(user.head)) if user.head.total else []

    def _pages(self, user_id: str, user: User, wanted: range) -> list[bytes]:
        """Values that hold these pages. Raises StoreDamagedError when one is missing."""
        held = {**user.dirty, user.head.last_page: user.page}
        waiting = [page for page in held if page in wanted]
        stored = range(wanted.start, waiting[0] if waiting else wanted.stop)
        values: list[bytes] = []
        if stored:
            pages = [page for page in value_pages(user.stored) if page in stored]
            count = min(stored.stop * PAGE_RECORDS, user.head.total) - stored.start * PAGE_RECORDS
            values = read_values(self._get_many, user_id, pages, stored, count)
        return values + [held[page].pack() for page in waiting]

    def _hold(self) -> None:
        """Users that were written stay, as far as there is room: those that were used last."""
        for user_id, user in self._unwritten.items():
            self._cache[user_id] = user
            self._held += user.weight
        self._unwritten.clear()
        self._waiting = 0
        self._trim()

    def _trim(self) -> None:
        while self._cache and self._held + self._waiting > self._cached_events:
            _, user = self._cache.popitem(last=False)
            self._held -= user.weight

    def _load(self, user_ids: Sequence[str]) -> dict[str, User]:
        """Users, who wait from now on; of those not in memory heads and tombstones come in one read, then their last
        pages in another.
        """
        users: dict[str, User] = {}
        unknown: list[str] = []
        for user_id in user_ids:
            user = self._unwritten.get(user_id)
            if user is not None:
                users[user_id] = user
                continue
            user = self._cache.pop(user_id, None)
            if user is None:
                unknown.append(user_id)
                continue
            self._held -= user.weight
            self._wait(user_id, user)
            users[user_id] = user
        if unknown:
            for user_id, user in self._read(unknown).items():
                self._wait(user_id, user)
                users[user_id] = user
        return users

    def _wait(self, user_id: str, user: User) -> None:
        self._unwritten[user_id] = user
        self._waiting += user.weight

    def _read(self, user_ids: Sequence[str]) -> dict[str, User]:
        count = len(user_ids)
        values = self._get_many([*map(head_key, user_ids), *map(tombstone_key, user_ids)])
        users: dict[str, User] = {}
        wanted: dict[str, tuple[list[bytes], Tail | None]] = {}
        for user_id, value, buried in zip(user_ids, values[:count], values[count:], strict=True):
            user = users[user_id] = User()
            if buried is not None:
                user.tombstone = Tombstone.unpack(buried, f"tombstone of user {user_id!r}")
            if value is not None:
                head = user.head = Head.unpack(value, f"head of user {user_id!r}")
                tail, head.tail = head.tail, None
                user.stored, user.apart = replace(head), tail is None
                first = max(head.first_page, head.last_page - self._bounds.hash_pages + 1)
                keys = hash_keys(user_id, Head(first, head.last_page, tail=tail))
                wanted[user_id] = keys if tail is not None else [page_key(b"h", user_id, head.last_page), *keys], tail
        pages = iter(self._get_many([key for keys, _ in wanted.values() for key in keys]) if wanted else ())
        for user_id, (keys, tail) in wanted.items():
            self._read_tail(user_id, users[user_id], tail, list(islice(pages, len(keys))))
        return users

    def _read_tail(self, user_id: str, user: User, tail: Tail | None, pages: Sequence[bytes | None]) -> None:
        """The last page, to append to, and the event ids of the horizon."""
        found = [page for page in pages if page is not None]
        if len(found) < len(pages):
            raise page_missing(user_id)
        ids = f"event ids of user {user_id!r}"
        if tail is None:
            records = unpack_records(found[0], f"page of user {user_id!r}")
            keys, times, actions = (records[column].tolist() for column in RECORD_COLUMNS)
            hashes = unpack_hash_pages(found[1:], ids)
            last = array("Q", hashes[-len(keys) :].tobytes())
            user.page = Page(array("Q", keys), array("I", times), bytearray(actions), last)
            recent = hashes.tobytes()
        else:
            user.page = Page(*unpack_tail(tail))
            recent = unpack_hash_pages(found, ids).tobytes() + user.page.hashes.tobytes()
        user.recent = bytearray(recent[-HASH_BYTES * self._bounds.horizon :])
        user.mark_anew()

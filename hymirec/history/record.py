"""What a history is on disk: pages of records, 13 bytes each, and a small head a user.

A record is (item key 64 bit, time 32 bit, action 8 bit), little-endian: by reference, never codes. A page holds all
keys, then all times, then all actions, since like compresses with like. Every value begins with a format version and
ends with the XXH3-64 of what is before it, so a flipped bit is an error and never other data.

Pages have 64 records and a number each; the last one has what there is, and lies in the head with its event ids, so
that appending writes one value. Of full ones 4 or 16 may lie in one value, under the number of the first. Programs that
wrote heads of version 2 gave the last page a value of its own, those of version 1 every page.
"""

from __future__ import annotations

import struct
import sys
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import xxhash
from numpy.typing import NDArray

from hymirec.errors import StoreDamagedError, UnsupportedFormatError

VERSION, HEAD_VERSION = 1, 3
_VERSION, _HEAD_VERSION = bytes([VERSION]), bytes([HEAD_VERSION])
PAGE_RECORDS = 64
RECORD = np.dtype([("key", "<u8"), ("ts", "<u4"), ("action", "u1")])
RECORD_COLUMNS = ("key", "ts", "action")
_KEY, _TS, _ACTION = (RECORD[column] for column in RECORD_COLUMNS)
EVENT_HASH = np.dtype("<u8")
CHECKSUM_BYTES, HASH_BYTES = 8, EVENT_HASH.itemsize
_BIG = sys.byteorder == "big"
# Joins to a bytearray: NumPy arrays over it may be written to.
_EMPTY = bytearray()

Records = NDArray[np.void]
Columns = tuple[NDArray[np.uint64], NDArray[np.uint32], NDArray[np.uint8]]


class Tail(NamedTuple):
    """The last page as a head holds it: records, column after column, and the event ids of all of them."""

    records: bytes
    hashes: bytes


@dataclass
class Head:
    """Where a user's pages begin and end. `total` counts records that were ever appended since the last erasure.

    The first page that is kept lies in the value of number `first_value`, which holds up to `first_size` pages. Without
    `tail` the last page lies elsewhere: in a value of its own (heads of version 2 and older), or in memory.
    """

    first_page: int = 0
    last_page: int = 0
    total: int = 0
    first_value: int = 0
    first_size: int = 1
    tail: Tail | None = None

    _FORMAT_1 = struct.Struct("<IIQ")
    _FORMAT = struct.Struct("<IIQIB")

    @property
    def end(self) -> int:
        """The number behind that of the last page that may lie in a value."""
        return self.last_page + (self.tail is None)

    @property
    def records(self) -> int:
        """How many records the values hold, those of the first one included that are no longer kept."""
        held = 0 if self.tail is None else self._last
        return self.total - self.first_value * PAGE_RECORDS - held

    @property
    def _last(self) -> int:
        """Records of the last page."""
        return self.total - self.last_page * PAGE_RECORDS

    def fields(self) -> bytes:
        """Everything but the tail."""
        return self._FORMAT.pack(self.first_page, self.last_page, self.total, self.first_value, self.first_size)

    def pack(self) -> bytes:
        """The head as a value; of version 2 without `tail`."""
        tail = self.tail
        return seal(self.fields(), 2) if tail is None else seal(self.fields() + b"".join(tail), HEAD_VERSION)

    @classmethod
    def unpack(cls, value: bytes, name: str) -> Head:
        """Read a head. Raises StoreDamagedError or UnsupportedFormatError."""
        body = unseal(value, name, HEAD_VERSION)
        layout = cls._FORMAT_1 if value[0] == 1 else cls._FORMAT
        start = layout.size
        if len(body) != start and (value[0] != HEAD_VERSION or len(body) < start):
            raise StoreDamagedError(f"{name}: expected {start} bytes of head, got {len(body)}")
        head = cls(*layout.unpack(body[:start]))
        if layout is cls._FORMAT_1:
            head.first_value = head.first_page
        if value[0] == HEAD_VERSION:
            middle = start + head._last * RECORD.itemsize
            head.tail = Tail(body[start:middle], body[middle:])
            if len(body) != middle + head._last * HASH_BYTES:
                raise StoreDamagedError(f"{name}: {len(body) - start} bytes are not the last of {head.total} records")
        return head


@dataclass(frozen=True)
class Tombstone:
    """Where and when a user was erased; what the log took before that stays gone, in whatever order it comes."""

    topic_hash: int
    partition: int
    offset: int
    log_ms: int

    _FORMAT = struct.Struct("<QIqQ")

    def pack(self) -> bytes:
        """The tombstone as a value."""
        return seal(self._FORMAT.pack(self.topic_hash, self.partition, self.offset, self.log_ms))

    @classmethod
    def unpack(cls, value: bytes, name: str) -> Tombstone:
        """Read a tombstone. Raises StoreDamagedError or UnsupportedFormatError."""
        body = unseal(value, name)
        if len(body) != cls._FORMAT.size:
            raise StoreDamagedError(f"{name}: expected {cls._FORMAT.size} bytes of tombstone, got {len(body)}")
        return cls(*cls._FORMAT.unpack(body))

    def covers(self, topic_hash: int, partition: int, offset: int, log_ms: int) -> bool:
        """Whether a message is not newer than the erasure. Between partitions only the log's clock can tell."""
        if (topic_hash, partition) == (self.topic_hash, self.partition):
            return offset <= self.offset
        return 0 < log_ms < self.log_ms


def seal(body: bytes, version: int = VERSION) -> bytes:
    """Put the version in front and the checksum behind."""
    value = bytes([version]) + body
    return value + xxhash.xxh3_64_digest(value)


def unseal(value: bytes, name: str, newest: int = VERSION) -> bytes:
    """Check and remove version (`newest` or older) and checksum.

    Raises UnsupportedFormatError for a newer version, StoreDamagedError for a wrong checksum; `name` says whose.
    """
    if len(value) < 1 + CHECKSUM_BYTES:
        raise StoreDamagedError(f"{name}: a value of {len(value)} bytes is too short; restore the store from a copy")
    body, checksum = value[:-CHECKSUM_BYTES], value[-CHECKSUM_BYTES:]
    if xxhash.xxh3_64_digest(body) != checksum:
        raise StoreDamagedError(f"{name}: checksum mismatch; restore the store from a copy or rebuild it from the log")
    if not VERSION <= body[0] <= newest:
        raise UnsupportedFormatError(f"{name}: format version {body[0]}, this program knows {newest}; update it")
    return body[1:]


def pack_records(records: Records) -> bytes:
    """A page of records, shape (n,) of RECORD, as a value: column after column."""
    return seal(b"".join(records[column].tobytes() for column in RECORD_COLUMNS))


def records_in(value: bytes) -> int:
    """How many records a value of that size holds; nothing of it is checked."""
    return (len(value) - 1 - CHECKSUM_BYTES) // RECORD.itemsize


def unpack_records(value: bytes, name: str) -> Records:
    """Read a page of records. Raises StoreDamagedError or UnsupportedFormatError."""
    columns = unpack_pages([value], name)
    records = np.empty(len(columns[0]), RECORD)
    for column, values in zip(RECORD_COLUMNS, columns, strict=True):
        records[column] = values
    return records


def pack_columns(keys: array[int], times: array[int], actions: bytearray) -> bytes:
    """A page of records, given as columns (typecodes Q and I), as a value."""
    value = b"".join((_VERSION, _little(keys), _little(times), actions))
    return value + xxhash.xxh3_64_digest(value)


def pack_head(head: Head, keys: array[int], times: array[int], actions: bytearray, hashes: array[int]) -> bytes:
    """A head as a value, its last page given as columns (typecodes Q, I, and Q of event ids)."""
    columns = (_little(keys), _little(times), actions, _little(hashes))
    value = b"".join((_HEAD_VERSION, head.fields(), *columns))
    return value + xxhash.xxh3_64_digest(value)


def unpack_tail(tail: Tail) -> tuple[array[int], array[int], bytearray, array[int]]:
    """Columns as `pack_head` is given them."""
    records, count = tail.records, len(tail.records) // RECORD.itemsize
    keys, times = array("Q", records[: 8 * count]), array("I", records[8 * count : 12 * count])
    return _little(keys), _little(times), bytearray(records[12 * count :]), _little(array("Q", tail.hashes))


def _little(column: array[int]) -> array[int]:
    """The column with its bytes as they are stored."""
    if _BIG:
        column = array(column.typecode, column)
        column.byteswap()
    return column


def _slices(
    values: Sequence[bytes], name: str, tail: bytes = b""
) -> tuple[list[memoryview], list[memoryview], list[memoryview]]:
    """The bytes of keys, of times and of actions of each value: cheaper than arrays of them, and copied when joined."""
    keys: list[memoryview] = []
    times: list[memoryview] = []
    actions: list[memoryview] = []
    digest = xxhash.xxh3_64_digest
    for value in values:
        view, end = memoryview(value), len(value) - CHECKSUM_BYTES
        if end < 1 or view[0] != VERSION or digest(view[:end]) != value[end:]:
            unseal(value, name)
        count, rest = divmod(end - 1, RECORD.itemsize)
        if rest:
            raise StoreDamagedError(f"{name}: {end - 1} bytes are no multiple of {RECORD.itemsize}")
        after_keys, after_times = 1 + 8 * count, 1 + 12 * count
        keys.append(view[1:after_keys])
        times.append(view[after_keys:after_times])
        actions.append(view[after_times:end])
    if tail:
        view, count = memoryview(tail), len(tail) // RECORD.itemsize
        keys.append(view[: 8 * count])
        times.append(view[8 * count : 12 * count])
        actions.append(view[12 * count :])
    return keys, times, actions


def unpack_pages(values: Sequence[bytes], name: str, tail: bytes = b"") -> Columns:
    """Keys, times and actions of pages, one behind the other, each (n,); at last the records of a `Tail`.

    Raises StoreDamagedError or UnsupportedFormatError.
    """
    keys, times, actions = _slices(values, name, tail)
    return (
        np.frombuffer(_EMPTY.join(keys), _KEY),
        np.frombuffer(_EMPTY.join(times), _TS),
        np.frombuffer(_EMPTY.join(actions), _ACTION),
    )


def merge_pages(values: Sequence[bytes], name: str) -> bytes:
    """Pages, one behind the other, as one value. Raises StoreDamagedError or UnsupportedFormatError."""
    return seal(b"".join([part for column in _slices(values, name) for part in column]))


def pack_hashes(hashes: Sequence[int]) -> bytes:
    """Hashes of event ids as a value."""
    value = _VERSION + _little(hashes if isinstance(hashes, array) else array("Q", hashes)).tobytes()
    return value + xxhash.xxh3_64_digest(value)


def unpack_hash_pages(values: Sequence[bytes], name: str) -> NDArray[np.uint64]:
    """Hashes of event ids of several pages, one behind the other.

    Raises StoreDamagedError or UnsupportedFormatError.
    """
    body = b"".join([unseal(value, name) for value in values])
    if len(body) % EVENT_HASH.itemsize:
        raise StoreDamagedError(f"{name}: {len(body)} bytes are no multiple of {EVENT_HASH.itemsize}")
    return np.frombuffer(body, EVENT_HASH).astype(np.uint64)

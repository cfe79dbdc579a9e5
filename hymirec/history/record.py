"""What a history is on disk: pages of 64 records, 13 bytes each, and a small head a user.

A record is (item key 64 bit, time 32 bit, action 8 bit), little-endian: by reference, never codes. A page holds all
keys, then all times, then all actions, since like compresses with like. Every value begins with a format version and
ends with the XXH3-64 of what is before it, so a flipped bit is an error and never other data.
"""

from __future__ import annotations

import struct
import sys
from array import array
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import xxhash
from numpy.typing import NDArray

from hymirec.errors import StoreDamagedError, UnsupportedFormatError

VERSION = 1
_VERSION = bytes([VERSION])
PAGE_RECORDS = 64
RECORD = np.dtype([("key", "<u8"), ("ts", "<u4"), ("action", "u1")])
RECORD_COLUMNS = ("key", "ts", "action")
EVENT_HASH = np.dtype("<u8")
CHECKSUM_BYTES = 8
_BIG = sys.byteorder == "big"
_FULL_PAGE = np.dtype(
    [
        ("version", "u1"),
        *((name, RECORD[name], (PAGE_RECORDS,)) for name in RECORD_COLUMNS),
        ("checksum", "u1", (CHECKSUM_BYTES,)),
    ]
)

Records = NDArray[np.void]
Columns = tuple[NDArray[np.uint64], NDArray[np.uint32], NDArray[np.uint8]]


@dataclass
class Head:
    """Where a user's pages begin and end. `total` counts records that were ever appended since the last erasure."""

    first_page: int = 0
    last_page: int = 0
    total: int = 0

    _FORMAT = struct.Struct("<IIQ")

    def pack(self) -> bytes:
        """The head as a value."""
        return seal(self._FORMAT.pack(self.first_page, self.last_page, self.total))

    @classmethod
    def unpack(cls, value: bytes, name: str) -> Head:
        """Read a head. Raises StoreDamagedError or UnsupportedFormatError."""
        body = unseal(value, name)
        if len(body) != cls._FORMAT.size:
            raise StoreDamagedError(f"{name}: expected {cls._FORMAT.size} bytes of head, got {len(body)}")
        return cls(*cls._FORMAT.unpack(body))


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


def seal(body: bytes) -> bytes:
    """Put the version in front and the checksum behind."""
    value = _VERSION + body
    return value + xxhash.xxh3_64_digest(value)


def unseal(value: bytes, name: str) -> bytes:
    """Check and remove version and checksum.

    Raises UnsupportedFormatError for a newer version, StoreDamagedError for a wrong checksum; `name` says whose.
    """
    if len(value) < 1 + CHECKSUM_BYTES:
        raise StoreDamagedError(f"{name}: a value of {len(value)} bytes is too short; restore the store from a copy")
    body, checksum = value[:-CHECKSUM_BYTES], value[-CHECKSUM_BYTES:]
    if xxhash.xxh3_64_digest(body) != checksum:
        raise StoreDamagedError(f"{name}: checksum mismatch; restore the store from a copy or rebuild it from the log")
    if body[0] != VERSION:
        raise UnsupportedFormatError(f"{name}: format version {body[0]}, this program knows {VERSION}; update it")
    return body[1:]


def pack_records(records: Records) -> bytes:
    """A page of records, shape (n,) of RECORD, as a value: column after column."""
    return seal(b"".join(records[column].tobytes() for column in RECORD_COLUMNS))


def _columns(value: bytes, name: str) -> Columns:
    body = unseal(value, name)
    count, rest = divmod(len(body), RECORD.itemsize)
    if rest:
        raise StoreDamagedError(f"{name}: {len(body)} bytes are no multiple of {RECORD.itemsize}")
    return (
        np.frombuffer(body, RECORD["key"], count),
        np.frombuffer(body, RECORD["ts"], count, 8 * count),
        np.frombuffer(body, RECORD["action"], count, 12 * count),
    )


def unpack_records(value: bytes, name: str) -> Records:
    """Read a page of records. Raises StoreDamagedError or UnsupportedFormatError."""
    columns = _columns(value, name)
    records = np.empty(len(columns[0]), RECORD)
    for column, values in zip(RECORD_COLUMNS, columns, strict=True):
        records[column] = values
    return records


def pack_columns(keys: array[int], times: array[int], actions: bytearray) -> bytes:
    """A page of records, given as columns (typecodes Q and I), as a value."""
    value = b"".join((_VERSION, _little(keys), _little(times), actions))
    return value + xxhash.xxh3_64_digest(value)


def _little(column: array[int]) -> array[int]:
    """The column with its bytes as they are stored."""
    if _BIG:
        column = array(column.typecode, column)
        column.byteswap()
    return column


def unpack_pages(values: Sequence[bytes], name: str) -> Columns:
    """Keys, times and actions of pages, one behind the other, each (n,): many full pages at the price of one.

    Raises StoreDamagedError or UnsupportedFormatError.
    """
    size, digest = _FULL_PAGE.itemsize, xxhash.xxh3_64_digest
    if len(values) == 1 or {len(value) for value in values[:-1]} != {size}:
        parts = [_columns(value, name) for value in values]
    else:
        for value in values[:-1]:
            if value[0] != VERSION or digest(value[:-CHECKSUM_BYTES]) != value[-CHECKSUM_BYTES:]:
                unseal(value, name)
        pages = np.frombuffer(b"".join(values[:-1]), _FULL_PAGE)
        full = (pages["key"].reshape(-1), pages["ts"].reshape(-1), pages["action"].reshape(-1))
        parts = [full, _columns(values[-1], name)]
    keys, times, actions = zip(*parts, strict=True)
    return np.concatenate(keys), np.concatenate(times), np.concatenate(actions)


def pack_hashes(hashes: Sequence[int]) -> bytes:
    """Hashes of event ids as a value."""
    value = _VERSION + _little(hashes if isinstance(hashes, array) else array("Q", hashes)).tobytes()
    return value + xxhash.xxh3_64_digest(value)


def unpack_hashes(value: bytes, name: str) -> list[int]:
    """Read hashes of event ids. Raises StoreDamagedError or UnsupportedFormatError."""
    hashes: list[int] = unpack_hash_pages([value], name).tolist()
    return hashes


def unpack_hash_pages(values: Sequence[bytes], name: str) -> NDArray[np.uint64]:
    """Hashes of event ids of several pages, one behind the other. Raises as `unpack_hashes`."""
    body = b"".join([unseal(value, name) for value in values])
    if len(body) % EVENT_HASH.itemsize:
        raise StoreDamagedError(f"{name}: {len(body)} bytes are no multiple of {EVENT_HASH.itemsize}")
    return np.frombuffer(body, EVENT_HASH).astype(np.uint64)

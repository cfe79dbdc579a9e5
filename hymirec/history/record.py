"""What a history is on disk: pages of 64 records, 13 bytes each, and a small head a user.

A record is (item key 64 bit, time 32 bit, action 8 bit), little-endian: by reference, never codes. A page holds all
keys, then all times, then all actions, since like compresses with like. Every value begins with a format version and
ends with the XXH3-64 of what is before it, so a flipped bit is an error and never other data.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import xxhash
from numpy.typing import NDArray

from hymirec.errors import StoreDamagedError, UnsupportedFormatError

VERSION = 1
PAGE_RECORDS = 64
RECORD = np.dtype([("key", "<u8"), ("ts", "<u4"), ("action", "u1")])
RECORD_COLUMNS = ("key", "ts", "action")
EVENT_HASH = np.dtype("<u8")
CHECKSUM_BYTES = 8

Records = NDArray[np.void]


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
    value = bytes([VERSION]) + body
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


def unpack_records(value: bytes, name: str) -> Records:
    """Read a page of records. Raises StoreDamagedError or UnsupportedFormatError."""
    body = unseal(value, name)
    count, rest = divmod(len(body), RECORD.itemsize)
    if rest:
        raise StoreDamagedError(f"{name}: {len(body)} bytes are no multiple of {RECORD.itemsize}")
    records, start = np.empty(count, RECORD), 0
    for column in RECORD_COLUMNS:
        dtype = RECORD[column]
        records[column] = np.frombuffer(body, dtype, count, start)
        start += count * dtype.itemsize
    return records


def pack_hashes(hashes: Sequence[int]) -> bytes:
    """Hashes of event ids as a value."""
    return seal(np.array(hashes, EVENT_HASH).tobytes())


def unpack_hashes(value: bytes, name: str) -> list[int]:
    """Read hashes of event ids. Raises StoreDamagedError or UnsupportedFormatError."""
    body = unseal(value, name)
    if len(body) % EVENT_HASH.itemsize:
        raise StoreDamagedError(f"{name}: {len(body)} bytes are no multiple of {EVENT_HASH.itemsize}")
    hashes: list[int] = np.frombuffer(body, EVENT_HASH).tolist()
    return hashes

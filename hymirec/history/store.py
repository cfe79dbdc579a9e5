"""The store protocol: a batch of one partition is applied whole, with its log position, or not at all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Position:
    """The next offset of a partition that is not in the store yet, and the topic it belongs to."""

    topic_id: str
    offset: int


class Entry(NamedTuple):
    """One usable message: an event of a user, or (`key` None) the erasure of the user.

    `log_ms` is when the log took the message, in milliseconds since 1970; 0 when the log does not say.
    """

    offset: int
    user_id: str
    key: int | None = None
    ts: int = 0
    action: int = 0
    event_hash: int = 0
    log_ms: int = 0


@dataclass(frozen=True)
class PartitionBatch:
    """Messages of one partition from `expected` (None: nothing was ever applied) up to, not including, `next_offset`.

    `entries` are in order of offset; messages that could not be used are simply not among them.
    """

    topic: str
    topic_id: str
    partition: int
    expected: int | None
    next_offset: int
    entries: Sequence[Entry]


@dataclass
class ApplyResult:
    """What a batch did. `users` were touched by it; `suppressed` events were older than the erasure of their user."""

    applied: int = 0
    duplicates: int = 0
    erased: int = 0
    suppressed: int = 0
    users: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class History:
    """A user's events in order of time, oldest first; equal times in order of the log.

    `keys` (n,) uint64, `ts` (n,) seconds, `actions` (n,) uint8. `count` is how many the store keeps of this user, which
    may be more than were asked for.
    """

    keys: NDArray[np.uint64]
    ts: NDArray[np.int64]
    actions: NDArray[np.uint8]
    count: int

    @property
    def as_of(self) -> int | None:
        """Time of the newest event, in seconds; None for an empty history."""
        return int(self.ts[-1]) if len(self.ts) else None

    def __len__(self) -> int:
        return len(self.keys)


class HistoryStore(Protocol):
    """Histories and log positions. Methods may be called from several threads."""

    def positions(self, topic: str) -> dict[int, Position]:
        """Position of each partition of a topic that anything was applied of: where its consumer has to go on."""
        ...

    def apply(self, batch: PartitionBatch) -> ApplyResult:
        """Apply a batch and move the partition's position, atomically.

        With `history.flush_events` both may wait in memory; reads and positions of this object count them. Raises
        PositionConflictError when the position is not `batch.expected` (another writer was here), and
        TopicRecreatedError when it belongs to another topic id. Nothing is applied then. After any other error, look at
        the position: batches that waited are applied no more.
        """
        ...

    def flush(self, due: bool = False) -> None:
        """Write what waits in memory, with the positions of all its partitions, atomically; `due`: if it is time to.

        Raises StoreUnavailableError when it cannot be written; it is applied no more then.
        """
        ...

    def written(self, topic: str) -> dict[int, int]:
        """Next offset of each partition that this object has written; what is before it outlives this process."""
        ...

    def reset_position(self, topic: str, partition: int, position: Position | None) -> None:
        """An operator's decision: set a position, or forget it (None)."""
        ...

    def read(self, user_id: str, limit: int | None = None) -> History:
        """A user's newest `limit` events; empty for a user who is not known. Sees whole batches."""
        ...

    def close(self) -> None:
        """Write what waits in memory; let go of files and connections."""
        ...


class RawStore(HistoryStore, Protocol):
    """A store as its tools see it: what is kept of a user as keys and values, checksums included.

    Keys are those of `hymirec.history.pages`, the same in every store. Writing needs the history writer stopped.
    """

    def users(self) -> Iterator[str]:
        """Everybody who has a history, in no stated order."""
        ...

    def stored_bytes(self) -> int:
        """What it takes: bytes of keys and values (memory), of files (RocksDB), of what the server holds (Redis)."""
        ...

    def dump(self, user_id: str) -> dict[bytes, bytes]:
        """All that is kept of a user: head, pages and tombstone; nothing of it is checked."""
        ...

    def restore(self, user_id: str, values: Mapping[bytes, bytes]) -> None:
        """Put these values in the place of all that is kept of a user, atomically."""
        ...

    def tombstones(self) -> Iterator[tuple[bytes, bytes]]:
        """Key and value of every tombstone; ids of erased users are not kept."""
        ...

    def bury(self, tombstones: Mapping[bytes, bytes]) -> None:
        """Add tombstones."""
        ...

"""What the two in-process stores share: one lock, one key-value map, one atomic write a batch or for several of them.

Where `flush_events` is set, batches that were applied wait in memory, up to so many events and `flush_seconds`, and are
written together with the positions of all their partitions. `positions` and `read` tell what was applied, written or
not, so that they fit each other at any time; what waits is lost with the process, positions and all. When a write
fails it is dropped too, since only the store knows then how far it is: positions and reads are the written ones again,
and until a write succeeds each batch is written at once.
"""

from __future__ import annotations

import struct
import threading
import time
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from hymirec.config import HistoryConfig
from hymirec.history.append import Appender
from hymirec.history.pages import (
    Bounds,
    Changes,
    empty_history,
    head_key,
    history_of,
    pages_prefix,
    read_pages,
    tombstone_key,
    user_of,
)
from hymirec.history.positions import check_expected, check_topic, pack_position, unpack_position
from hymirec.history.record import Head
from hymirec.history.store import ApplyResult, History, PartitionBatch, Position


def position_key(topic: str, partition: int) -> bytes:
    """Key of a partition's position."""
    return b"p" + topic.encode() + b"\0" + struct.pack(">I", partition)


class EmbeddedStore:
    """A `HistoryStore` over `_get_many`, `_scan` and `_commit`.

    Reads hold the same lock as commits, so a read sees a batch whole or not at all.
    """

    def __init__(self, config: HistoryConfig) -> None:
        self._lock = threading.RLock()
        self._bounds = Bounds.of(config)
        self._appender = Appender(self._get_many, self._bounds, config.cached_events)
        self._flush_events, self._flush_seconds = config.flush_events, config.flush_seconds
        # Positions of what waits, how many events that is, and since when the first of them does.
        self._ahead: dict[tuple[str, int], Position] = {}
        self._waiting, self._since = 0, 0.0
        self._refused = False
        self._written: dict[tuple[str, int], int] = {}

    @abstractmethod
    def _get_many(self, keys: Sequence[bytes]) -> Sequence[bytes | None]: ...

    @abstractmethod
    def _scan(self, prefix: bytes) -> Iterator[tuple[bytes, bytes]]: ...

    @abstractmethod
    def _commit(self, changes: Changes) -> None: ...

    def _before_writing(self) -> None:
        """Called before anything is read for a write."""

    def positions(self, topic: str) -> dict[int, Position]:
        """See `HistoryStore.positions`."""
        prefix = position_key(topic, 0)[:-4]
        with self._lock:
            found = {
                int(struct.unpack(">I", key[len(prefix) :])[0]): unpack_position(value, f"position of {topic}")
                for key, value in self._scan(prefix)
            }
            found.update((place[1], position) for place, position in self._ahead.items() if place[0] == topic)
        return dict(sorted(found.items()))

    def apply(self, batch: PartitionBatch) -> ApplyResult:
        """See `HistoryStore.apply`."""
        place = batch.topic, batch.partition
        with self._lock:
            self._before_writing()
            known = self._ahead.get(place) or self._stored_position(*place)
            check_topic(batch, known)
            check_expected(batch, known)
            try:
                result = self._appender.apply(batch, batch.entries)
            except BaseException:
                self._drop()
                raise
            if not self._ahead:
                self._since = time.monotonic()
            self._ahead[place] = Position(batch.topic_id, batch.next_offset)
            self._waiting += len(batch.entries)
            # What a user wants erased leaves the disk now.
            if result.erased or self._due():
                self._write_ahead()
        return result

    def _stored_position(self, topic: str, partition: int) -> Position | None:
        (value,) = self._get_many([position_key(topic, partition)])
        return None if value is None else unpack_position(value, f"position of {topic}")

    def flush(self, due: bool = False) -> None:
        """See `HistoryStore.flush`."""
        with self._lock:
            if self._ahead and (not due or self._due()):
                self._write_ahead()

    def written(self, topic: str) -> dict[int, int]:
        """See `HistoryStore.written`."""
        with self._lock:
            return {place[1]: offset for place, offset in self._written.items() if place[0] == topic}

    def _due(self) -> bool:
        return (
            self._waiting >= self._flush_events
            or self._refused
            or self._appender.crowded
            or time.monotonic() - self._since >= self._flush_seconds
        )

    def _write_ahead(self) -> None:
        """Write what waits."""
        try:
            changes = self._appender.write()
            for place, position in self._ahead.items():
                changes.put(position_key(*place), pack_position(position))
            self._commit(changes)
        except BaseException:
            self._drop()
            self._refused = True
            raise
        self._written.update((place, position.offset) for place, position in self._ahead.items())
        self._ahead, self._waiting, self._refused = {}, 0, False

    def _drop(self) -> None:
        """Believe only what is stored."""
        self._appender.forget()
        self._ahead, self._waiting = {}, 0

    def reset_position(self, topic: str, partition: int, position: Position | None) -> None:
        """See `HistoryStore.reset_position`."""
        changes = Changes()
        key = position_key(topic, partition)
        if position is None:
            changes.delete(key)
        else:
            changes.put(key, pack_position(position))
        with self._lock:
            self._before_writing()
            self.flush()
            self._written.pop((topic, partition), None)
            self._commit(changes)

    def read(self, user_id: str, limit: int | None = None) -> History:
        """See `HistoryStore.read`."""
        with self._lock:
            user = self._appender.unwritten(user_id)
            if user is not None:
                # As it is now: others may append to it once the lock is released.
                head, values = replace(user.head), self._appender.pages_of(user_id, user)
            else:
                (value,) = self._get_many([head_key(user_id)])
                if value is None:
                    return empty_history()
                head = Head.unpack(value, f"head of user {user_id!r}")
                values = read_pages(self._get_many, user_id, head)
        return history_of(user_id, head, values, self._bounds, limit) if head.total else empty_history()

    def users(self) -> Iterator[str]:
        """See `RawStore.users`."""
        self.flush()
        return (user_of(key) for key, _ in self._scan(head_key("")))

    def dump(self, user_id: str) -> dict[bytes, bytes]:
        """See `RawStore.dump`."""
        keys = [head_key(user_id), tombstone_key(user_id)]
        with self._lock:
            self.flush()
            found = dict(zip(keys, self._get_many(keys), strict=True))
            values = {key: value for key, value in found.items() if value is not None}
            for kind in (b"h", b"d"):
                values.update(self._scan(pages_prefix(kind, user_id)))
        return values

    def restore(self, user_id: str, values: Mapping[bytes, bytes]) -> None:
        """See `RawStore.restore`."""
        with self._lock:
            self._before_writing()
            self.flush()
            self._appender.forget()
            self._commit(Changes(dict(values), set(self.dump(user_id)) - set(values)))

    def tombstones(self) -> Iterator[tuple[bytes, bytes]]:
        """See `RawStore.tombstones`."""
        self.flush()
        return self._scan(tombstone_key("")[:1])

    def bury(self, tombstones: Mapping[bytes, bytes]) -> None:
        """See `RawStore.bury`."""
        with self._lock:
            self._before_writing()
            self.flush()
            self._appender.forget()
            self._commit(Changes(dict(tombstones)))

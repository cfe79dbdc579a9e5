"""What the two in-process stores share: one lock, one key-value map, one atomic write a batch."""

from __future__ import annotations

import struct
import threading
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence

from hymirec.config import HistoryConfig
from hymirec.history.append import Appender
from hymirec.history.pages import (
    Bounds,
    Changes,
    empty_history,
    head_key,
    history_of,
    page_keys,
    pages_prefix,
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

    @abstractmethod
    def _get_many(self, keys: Sequence[bytes]) -> Sequence[bytes | None]: ...

    def _get_run(self, keys: Sequence[bytes]) -> Sequence[bytes | None]:
        """The values of keys that follow one another with none between."""
        return self._get_many(keys)

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
            found = list(self._scan(prefix))
        return {
            int(struct.unpack(">I", key[len(prefix) :])[0]): unpack_position(value, f"position of {topic}")
            for key, value in found
        }

    def apply(self, batch: PartitionBatch) -> ApplyResult:
        """See `HistoryStore.apply`."""
        key = position_key(batch.topic, batch.partition)
        with self._lock:
            self._before_writing()
            (value,) = self._get_many([key])
            stored = None if value is None else unpack_position(value, f"position of {batch.topic}")
            check_topic(batch, stored)
            check_expected(batch, stored)
            changes = Changes()
            try:
                result = self._appender.apply(batch, batch.entries, changes)
                changes.put(key, pack_position(Position(batch.topic_id, batch.next_offset)))
                self._commit(changes)
            except BaseException:
                self._appender.forget()
                raise
        return result

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
            self._commit(changes)

    def read(self, user_id: str, limit: int | None = None) -> History:
        """See `HistoryStore.read`."""
        with self._lock:
            (value,) = self._get_many([head_key(user_id)])
            if value is None:
                return empty_history()
            pages = self._get_run(page_keys(user_id, Head.unpack(value, f"head of user {user_id!r}")))
        return history_of(user_id, pages, self._bounds, limit)

    def users(self) -> Iterator[str]:
        """See `RawStore.users`."""
        return (user_of(key) for key, _ in self._scan(head_key("")))

    def dump(self, user_id: str) -> dict[bytes, bytes]:
        """See `RawStore.dump`."""
        keys = [head_key(user_id), tombstone_key(user_id)]
        with self._lock:
            found = dict(zip(keys, self._get_many(keys), strict=True))
            values = {key: value for key, value in found.items() if value is not None}
            for kind in (b"h", b"d"):
                values.update(self._scan(pages_prefix(kind, user_id)))
        return values

    def restore(self, user_id: str, values: Mapping[bytes, bytes]) -> None:
        """See `RawStore.restore`."""
        with self._lock:
            self._before_writing()
            self._appender.forget()
            self._commit(Changes(dict(values), set(self.dump(user_id)) - set(values)))

    def tombstones(self) -> Iterator[tuple[bytes, bytes]]:
        """See `RawStore.tombstones`."""
        return self._scan(tombstone_key("")[:1])

    def bury(self, tombstones: Mapping[bytes, bytes]) -> None:
        """See `RawStore.bury`."""
        with self._lock:
            self._before_writing()
            self._appender.forget()
            self._commit(Changes(dict(tombstones)))

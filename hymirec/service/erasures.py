"""Reads forget a user at once: a store that shows nothing of users whose erasure is on its way through the log.

An erasure is an event, applied in its place among the others. Between the moment the log took it and the moment the
store applied it, this wrapper answers for the store. What is veiled is a history that begins with a certain event, seen
before the log took the erasure: once the user's history begins with another one, the erasure has been applied, by this
writer or by another.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from hymirec.history import ApplyResult, History, HistoryStore, PartitionBatch, Position
from hymirec.history.pages import empty_history

First = tuple[int, int]
OnErased = Callable[[str], None]


class ErasingStore:
    """A `HistoryStore` around another one. `on_erased` hears of every erasure that is asked for or applied."""

    def __init__(self, store: HistoryStore, on_erased: OnErased) -> None:
        self._store = store
        self._on_erased = on_erased
        self._lock = threading.Lock()
        self._veiled: dict[str, First] = {}

    def first(self, user_id: str) -> First | None:
        """The user's oldest event (key, time), to be read before the erasure is sent; None when there is none."""
        return _first(self._store.read(user_id))

    def hide(self, user_id: str, first: First | None) -> None:
        """The erasure is in the log: show nothing of the user as long as the history begins with `first`."""
        with self._lock:
            if first is not None:
                self._veiled[user_id] = first
        self._on_erased(user_id)

    def hidden(self, user_id: str) -> bool:
        """Whether the user's erasure is still on its way."""
        return not self._shown(user_id, None)

    def _shown(self, user_id: str, history: History | None) -> bool:
        """Whether the user may be shown. A limited read does not begin with the oldest event: it is read again."""
        veiled = self._veiled.get(user_id)
        if veiled is None:
            return True
        if history is None or len(history) < history.count:
            history = self._store.read(user_id)
        if _first(history) == veiled:
            return False
        with self._lock:
            self._veiled.pop(user_id, None)
        return True

    def positions(self, topic: str) -> dict[int, Position]:
        """See `HistoryStore.positions`."""
        return self._store.positions(topic)

    def apply(self, batch: PartitionBatch) -> ApplyResult:
        """See `HistoryStore.apply`."""
        result = self._store.apply(batch)
        for entry in batch.entries:
            if entry.key is None:
                with self._lock:
                    self._veiled.pop(entry.user_id, None)
                self._on_erased(entry.user_id)
        return result

    def flush(self, due: bool = False) -> None:
        """See `HistoryStore.flush`."""
        self._store.flush(due)

    def written(self, topic: str) -> dict[int, int]:
        """See `HistoryStore.written`."""
        return self._store.written(topic)

    def reset_position(self, topic: str, partition: int, position: Position | None) -> None:
        """See `HistoryStore.reset_position`."""
        self._store.reset_position(topic, partition, position)

    def read(self, user_id: str, limit: int | None = None) -> History:
        """See `HistoryStore.read`; empty for a user who is being erased."""
        history = self._store.read(user_id, limit)
        return history if self._shown(user_id, history) else empty_history()

    def close(self) -> None:
        """See `HistoryStore.close`."""
        self._store.close()


def _first(history: History) -> First | None:
    return (int(history.keys[0]), int(history.ts[0])) if len(history) else None

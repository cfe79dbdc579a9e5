"""A store in memory: for notebooks and tests. Nothing outlives the process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from hymirec.config import HistoryConfig
from hymirec.history.embedded import EmbeddedStore
from hymirec.history.pages import Changes


class MemoryStore(EmbeddedStore):
    """A dict."""

    def __init__(self, config: HistoryConfig) -> None:
        self._values: dict[bytes, bytes] = {}
        super().__init__(config)

    def _get_many(self, keys: Sequence[bytes]) -> Sequence[bytes | None]:
        return [self._values.get(key) for key in keys]

    def _scan(self, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
        with self._lock:
            return iter([(key, value) for key, value in self._values.items() if key.startswith(prefix)])

    def stored_bytes(self) -> int:
        """See `RawStore.stored_bytes`."""
        with self._lock:
            return sum(len(key) + len(value) for key, value in self._values.items())

    def _commit(self, changes: Changes) -> None:
        for key in changes.deletes:
            self._values.pop(key, None)
        self._values.update(changes.puts)

    def close(self) -> None:
        """Nothing to let go of."""

"""Whether a store is what its sources make it, to the byte, and its users put right where it is not.

The sources are applied again, to a store of their own in a temporary directory; then the two stores are compared user
by user, as stored, whichever pages lie together. A user whose events came through several partitions (some were added)
may have taken them in another order: there the events must be the same, not their order among equal times.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import TracebackType

from hymirec.config import HistoryConfig
from hymirec.errors import HistoryError
from hymirec.history.interactions import SOURCE
from hymirec.history.pages import laid_out
from hymirec.history.rocksdb import RocksDBStore
from hymirec.history.store import History, HistoryStore, PartitionBatch, RawStore
from hymirec.history.verify import Placed

BATCH = 5_000
SEVERAL = -1


@dataclass(frozen=True)
class Difference:
    """A user of whom the store keeps something else than the sources make."""

    user_id: str
    text: str


class Rebuilt:
    """The histories that messages make, with the bounds of `config`; a context manager that removes its directory."""

    def __init__(self, config: HistoryConfig) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="hymirec-rebuilt-")
        scratch = {"store": "rocksdb", "path": str(Path(self._directory.name) / "store"), "sync": False}
        self.store = RocksDBStore(config.model_copy(update=scratch))
        self._partition: dict[str, int | None] = {}
        self._next: dict[tuple[str, int], int] = {}

    def __len__(self) -> int:
        return len(self._partition)

    def add(self, messages: Iterable[Placed]) -> None:
        """Apply messages, in this order."""
        todo = iter(messages)
        while batch := list(islice(todo, BATCH)):
            start = 0
            for stop in range(1, len(batch) + 1):
                if stop == len(batch) or _place(batch[stop]) != _place(batch[start]):
                    self._apply(batch[start:stop])
                    start = stop

    def _apply(self, messages: list[Placed]) -> None:
        topic_id, partition = place = _place(messages[0])
        for message in messages:
            user = message.entry.user_id
            # What is applied before the log is in order in any case.
            if topic_id != SOURCE and self._partition.get(user) not in (None, partition):
                self._partition[user] = SEVERAL
            elif topic_id != SOURCE or user not in self._partition:
                self._partition[user] = None if topic_id == SOURCE else partition
        entries = [message.entry for message in messages]
        expected, self._next[place] = self._next.get(place), entries[-1].offset + 1
        # The topic's id in place of its name: positions of several topics are kept apart.
        self.store.apply(PartitionBatch(topic_id, topic_id, partition, expected, self._next[place], entries))

    def differences(self, store: RawStore) -> Iterator[Difference]:
        """Every user of whom the store keeps something else, and everybody whom no message names."""
        for user_id, partition in self._partition.items():
            mine, theirs = self.store.dump(user_id), store.dump(user_id)
            if _is_same(user_id, mine, theirs):
                continue
            if partition != SEVERAL or not self._same_events(store, user_id):
                yield Difference(user_id, self._told(store, user_id))
        for user_id in store.users():
            if user_id not in self._partition:
                yield Difference(user_id, f"user {user_id!r}: expected nothing, the store has a history")

    def repair(self, store: RawStore, difference: Difference) -> None:
        """Put what the messages make in the place of what the store keeps of a user."""
        store.restore(difference.user_id, self.store.dump(difference.user_id))

    def _same_events(self, store: RawStore, user_id: str) -> bool:
        try:
            return sorted(_events(store.read(user_id))) == sorted(_events(self.store.read(user_id)))
        except HistoryError:
            return False

    def _told(self, store: HistoryStore, user_id: str) -> str:
        expected = self.store.read(user_id)
        try:
            found = store.read(user_id)
        except HistoryError as e:
            return f"user {user_id!r}: {e}"
        if _events(found) == _events(expected):
            return f"user {user_id!r}: the {len(found)} events are right, what is kept beside them (event ids) is not"
        text = f"user {user_id!r}: expected {len(expected)} events, the store has {len(found)}"
        return text if len(found) != len(expected) else f"{text}, but others or in other order"

    def __enter__(self) -> Rebuilt:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.store.close()
        self._directory.cleanup()


def _place(message: Placed) -> tuple[str, int]:
    return message.topic_id, message.partition


def _is_same(user_id: str, mine: Mapping[bytes, bytes], theirs: Mapping[bytes, bytes]) -> bool:
    if mine == theirs:
        return True
    try:
        return laid_out(user_id, mine) == laid_out(user_id, theirs)
    except HistoryError:
        return False


def _events(history: History) -> list[tuple[int, int, int]]:
    return list(zip(history.ts.tolist(), history.keys.tolist(), history.actions.tolist(), strict=True))

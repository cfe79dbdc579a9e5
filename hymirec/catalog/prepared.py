"""Readers of the prepared catalogue: `Catalog` (items) and `Sequences` (users' histories with their split).

U users  N items  E interactions. Histories are kept as CSR: the events of user u are offsets[u]..offsets[u + 1].
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from hymirec.catalog.keys import item_key
from hymirec.catalog.parts import one_array, part_paths, read_table, to_numpy
from hymirec.catalog.schemas import (
    INDEX,
    ITEM,
    ITEMS,
    ITEMS_DIR,
    KEY,
    N_TRAIN,
    N_VAL,
    POPULARITY,
    SEQUENCES_FILE,
    TEXT,
    TITLE,
    TS,
    USER,
    IdType,
    Split,
    id_type,
)
from hymirec.errors import ArtifactDamagedError


@dataclass(frozen=True)
class Catalog:
    """All items of a run, in order of their index 0..N-1."""

    id_type: IdType
    item_ids: pa.Array
    keys: NDArray[np.uint64]
    titles: pa.Array
    popularity: NDArray[np.int64]
    part_paths: list[Path]
    _order: NDArray[np.int64] = field(repr=False)
    _sorted_keys: NDArray[np.uint64] = field(repr=False)

    @classmethod
    def open(cls, data_dir: Path) -> Catalog:
        """Read a prepared directory (texts stay on disk: see `texts`).

        Raises ArtifactMissingError, or ArtifactDamagedError when the indices are not 0..N-1.
        """
        paths = part_paths(data_dir / ITEMS_DIR)
        table = pa.concat_tables([read_table(path, [INDEX, ITEM, KEY, TITLE, POPULARITY]) for path in paths])
        if not np.array_equal(to_numpy(table[INDEX]), np.arange(table.num_rows)):
            raise ArtifactDamagedError(
                f"{data_dir / ITEMS_DIR}: the item indices are not 0..{table.num_rows - 1} in order; "
                "delete the directory and run the data step again"
            )
        keys = to_numpy(table[KEY])
        order = np.argsort(keys, kind="stable")
        return cls(
            id_type=id_type(table.schema.field(ITEM).type),
            item_ids=one_array(table[ITEM]),
            keys=keys,
            titles=one_array(table[TITLE]),
            popularity=to_numpy(table[POPULARITY]),
            part_paths=paths,
            _order=order,
            _sorted_keys=keys[order],
        )

    @property
    def size(self) -> int:
        """Number of items (N)."""
        return len(self.keys)

    def __len__(self) -> int:
        return self.size

    def index_of(self, item: str | int) -> int | None:
        """Index of an item id, or None; `"42"` and 42 name the same item."""
        index = int(self.indices_of_keys(np.array([item_key(item)], np.uint64))[0])
        return index if index >= 0 else None

    def indices_of_keys(self, keys: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Indices of item keys, same shape; -1 for a key the catalogue does not know."""
        keys = np.asarray(keys, np.uint64)
        if not self.size:
            return np.full(keys.shape, -1, np.int64)
        position = np.minimum(np.searchsorted(self._sorted_keys, keys), self.size - 1)
        return np.where(self._sorted_keys[position] == keys, self._order[position], -1)

    def item_id(self, index: int) -> str | int:
        """The id of the item at an index, as the source table gave it."""
        value: str | int = self.item_ids[index].as_py()
        return value

    def texts(self, part: int) -> list[str]:
        """Rendered texts of one part, in order of their index; "" for an item without any text."""
        texts: list[str] = read_table(self.part_paths[part], [TEXT])[TEXT].to_pylist()
        return texts


@dataclass(frozen=True)
class Sequences:
    """All users' events in time order, and where each user's validation and test targets begin."""

    users: pa.Array
    offsets: NDArray[np.int64]
    items: NDArray[np.int32]
    ts: NDArray[np.int64]
    n_train: NDArray[np.int32]
    n_val: NDArray[np.int32]

    @classmethod
    def open(cls, data_dir: Path) -> Sequences:
        """Read `sequences.parquet` of a prepared directory.

        Raises ArtifactMissingError, or ArtifactDamagedError when lengths and splits do not fit each other.
        """
        path = data_dir / SEQUENCES_FILE
        table = read_table(path)
        lengths, items = _flatten(table[ITEMS])
        ts_lengths, ts = _flatten(table[TS])
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])
        n_train, n_val = to_numpy(table[N_TRAIN]), to_numpy(table[N_VAL])
        ordered = (n_train >= 0) & (n_train <= n_val) & (n_val <= lengths)
        if not (np.array_equal(lengths, ts_lengths) and ordered.all()):
            raise ArtifactDamagedError(
                f"{path}: lengths and splits do not fit; delete {data_dir} and run the step again"
            )
        return cls(one_array(table[USER]), offsets, items.astype(np.int32), ts.astype(np.int64), n_train, n_val)

    def __len__(self) -> int:
        return len(self.n_train)

    def history(self, user: int, split: Split) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """Items and times of everything before the targets of a split (user is a row, not an id).

        For `train` that is nothing: its targets are the user's first n_train events.
        """
        start = int(self.offsets[user])
        return self._slice(start, start + self._bounds(user, split)[0])

    def targets(self, user: int, split: Split) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """Items and times of the targets of a split, in time order; empty when the user has none in it."""
        start = int(self.offsets[user])
        first, last = self._bounds(user, split)
        return self._slice(start + first, start + last)

    def training_events(self) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.int64]]:
        """User rows, items and times of each user's first n_train events, user by user in time order, all (E,)."""
        user = np.repeat(np.arange(len(self)), np.diff(self.offsets))
        kept = np.arange(len(self.items)) - self.offsets[user] < self.n_train[user]
        return user[kept], self.items[kept], self.ts[kept]

    def _bounds(self, user: int, split: Split) -> tuple[int, int]:
        n_train, n_val = int(self.n_train[user]), int(self.n_val[user])
        length = int(self.offsets[user + 1] - self.offsets[user])
        return {"train": (0, n_train), "validation": (n_train, n_val), "test": (n_val, length)}[split]

    def _slice(self, start: int, stop: int) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        return self.items[start:stop], self.ts[start:stop]


def _flatten(column: pa.ChunkedArray) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Lengths (U,) and values (E,) of a list column."""
    lengths = [np.diff(to_numpy(chunk.offsets)) for chunk in column.chunks]
    values = [to_numpy(chunk.flatten()) for chunk in column.chunks]
    empty = np.empty(0, np.int64)
    return np.concatenate([empty, *lengths]), np.concatenate(values) if values else empty

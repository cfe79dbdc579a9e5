"""The codes of all items: one row an item, a few bytes, instead of its embedding.

N catalogue  L layers
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from hymirec.catalog.parts import part_paths, read_table, to_numpy
from hymirec.catalog.schemas import CODES, INDEX, MAGNITUDES
from hymirec.errors import ArtifactDamagedError


@dataclass(frozen=True)
class ItemCodes:
    """Row i belongs to the item with index i: codes uint16 (N, L), magnitudes fp16 or fp32 (N, L)."""

    codes_NL: NDArray[np.uint16]
    magnitudes_NL: NDArray[np.floating[Any]]

    @classmethod
    def open(cls, codes_dir: Path) -> ItemCodes:
        """Read all parts of a directory.

        Raises ArtifactMissingError when there is none, and ArtifactDamagedError when items are not 0..N-1 in order or
        parts differ in their layers.
        """
        codes, magnitudes, position = [], [], 0
        for path in part_paths(codes_dir):
            table = read_table(path)
            try:
                index = to_numpy(table[INDEX])
                codes.append(_matrix(table[CODES]))
                magnitudes.append(_matrix(table[MAGNITUDES]))
            except (KeyError, AttributeError, pa.ArrowInvalid) as e:
                raise ArtifactDamagedError(
                    f"{path} holds no codes ({e}); delete {codes_dir} and run the codes step again"
                ) from e
            expected = np.arange(position, position + len(index))
            if not np.array_equal(index, expected) or codes[-1].shape[1] != codes[0].shape[1]:
                raise ArtifactDamagedError(
                    f"{path}: expected items {position}..{position + len(index)} in order with {codes[0].shape[1]} "
                    f"codes each; delete {codes_dir} and run the codes step again"
                )
            position += len(index)
        return cls(np.concatenate(codes), np.concatenate(magnitudes))

    def __len__(self) -> int:
        return len(self.codes_NL)

    def take(self, rows: NDArray[np.int64]) -> ItemCodes:
        """Some of the rows, in the order asked for."""
        return ItemCodes(self.codes_NL[rows], self.magnitudes_NL[rows])

    @property
    def layers(self) -> int:
        """Number of codes an item (L)."""
        return int(self.codes_NL.shape[1])

    @property
    def bytes_per_item(self) -> int:
        """Bytes of one row as it is stored, uncompressed: a 16-bit id and a magnitude for each layer."""
        return int(self.layers * (self.codes_NL.itemsize + self.magnitudes_NL.itemsize))


def _matrix(column: pa.ChunkedArray) -> NDArray[Any]:
    """A fixed-size list column as a matrix."""
    width = column.type.list_size
    flat = [to_numpy(chunk.flatten()) for chunk in column.chunks]
    values: NDArray[Any] = np.concatenate(flat) if flat else np.empty(0, column.type.value_type.to_pandas_dtype())
    return values.reshape(-1, width)

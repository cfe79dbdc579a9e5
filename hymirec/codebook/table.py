"""The table of all items' codes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hymirec.catalog.parts import one_array, part_paths, read_table, to_numpy
from hymirec.catalog.schemas import CODES, INDEX, MAGNITUDES
from hymirec.errors import ArtifactDamagedError


@dataclass(frozen=True)
class ItemCodes:
    """Row i belongs to the item with index i."""

    codes_NL: NDArray[np.uint16]
    magnitudes_NL: NDArray[np.floating]

    @classmethod
    def open(cls, codes_dir: Path) -> ItemCodes:
        """Read all parts. Raises ArtifactMissingError, or ArtifactDamagedError when rows are not 0..N-1 in order."""
        codes, magnitudes, position = [], [], 0
        for path in part_paths(codes_dir):
            table = read_table(path)
            index = to_numpy(table[INDEX])
            if not np.array_equal(index, np.arange(position, position + len(index))):
                raise ArtifactDamagedError(f"{path}: items are not in order; delete {codes_dir} and run the step again")
            position += len(index)
            codes.append(to_numpy(one_array(table[CODES]).flatten()).reshape(len(index), -1))
            magnitudes.append(to_numpy(one_array(table[MAGNITUDES]).flatten()).reshape(len(index), -1))
        return cls(np.concatenate(codes), np.concatenate(magnitudes))

    def __len__(self) -> int:
        return len(self.codes_NL)

    @property
    def bytes_per_item(self) -> int:
        """Bytes of one row as it is stored: a 16-bit id and a magnitude a layer."""
        return int(self.codes_NL.shape[1] * (self.codes_NL.itemsize + self.magnitudes_NL.itemsize))

"""What the pipeline and the light recommender need of whatever stands for an item's embedding.

Three kinds keep to it: `ResidualCodebook` (cosine), `EuclideanCodebook`, and `RawVectors` (no codes at all). The last
two are there to be compared with the first. `kinds.py` opens and fits them.

N rows  D width  L layers  K centroids
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor


class ItemTable(Protocol):
    """Items as they are stored. Row i is `sum_l magnitudes[i, l] * lookup[l, codes[i, l]]` of its quantizer."""

    @property
    def codes_NL(self) -> NDArray[Any]:  # noqa: N802
        """Codes (N, L), whole numbers."""

    @property
    def magnitudes_NL(self) -> NDArray[np.floating[Any]]:  # noqa: N802
        """Magnitudes (N, L), in the unit of the vectors."""

    @property
    def layers(self) -> int:
        """Number of codes an item (L)."""

    @property
    def bytes_per_item(self) -> int:
        """Bytes of one row as it is stored, uncompressed."""

    def __len__(self) -> int: ...

    def take(self, rows: NDArray[np.int64]) -> ItemTable:
        """Some of the rows, in the order asked for."""


class ItemQuantizer(Protocol):
    """Embeddings to a few bytes an item, and back to what the light recommender reads."""

    kind: str
    info: dict[str, Any]

    @property
    def layers(self) -> int:
        """Number of table rows that make an item (L)."""

    @property
    def centroids(self) -> int:
        """Number of centroids a layer (K); 0 where there are none."""

    @property
    def width(self) -> int:
        """Number of dimensions of an embedding (D)."""

    def encode_items(self, vectors_ND: NDArray[np.floating[Any]]) -> ItemTable:
        """Vectors in memory, as they would be stored."""

    def code_part(self, source: Path, target: Path) -> int:
        """Write the items of a part of embeddings, atomically; returns its number of rows."""

    def open_items(self, codes_dir: Path) -> ItemTable:
        """All parts that `code_part` wrote to a directory.

        Raises ArtifactMissingError or ArtifactDamagedError with the name of the file.
        """

    def lookup(self, items: ItemTable) -> Tensor:
        """The table (L, K or N, D) that codes point into, fp32. A linear layer may be applied to it beforehand."""

    def save_pretrained(self, directory: Path | str) -> None:
        """Write config.json (whose `model_type` names the kind) and the tensors; equal ones give equal bytes."""

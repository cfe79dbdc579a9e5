"""No codebook: every item keeps its embedding in fp16. What all the bytes would buy, for comparison.

The light recommender then reads W e of every event's embedding e, with the same weights W that read decoded items.

N items  D width
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hymirec.artifacts import read_json
from hymirec.catalog.parts import read_table, write_table
from hymirec.catalog.schemas import EMBEDDING, INDEX
from hymirec.catalog.vectors import read_vectors
from hymirec.codebook.files import CONFIG_FILE, FORMAT, write_config
from hymirec.codebook.quantizer import ItemTable
from hymirec.errors import ArtifactDamagedError

MODEL_TYPE = "hymirec_raw_vectors"


@dataclass(frozen=True)
class RawItems:
    """Row i belongs to the item with index i: its own code, with magnitude 1, in a table that is the vectors."""

    vectors_ND: NDArray[np.float16]

    @property
    def codes_NL(self) -> NDArray[np.int32]:  # noqa: N802
        """0..N-1, as (N, 1): of no cost, because they are not stored."""
        return np.arange(len(self.vectors_ND), dtype=np.int32)[:, None]

    @property
    def magnitudes_NL(self) -> NDArray[np.float32]:  # noqa: N802
        """Ones, (N, 1)."""
        return np.ones((len(self.vectors_ND), 1), np.float32)

    @property
    def layers(self) -> int:
        """One."""
        return 1

    @property
    def bytes_per_item(self) -> int:
        """2 bytes a dimension."""
        return int(self.vectors_ND.itemsize * self.vectors_ND.shape[1])

    def __len__(self) -> int:
        return len(self.vectors_ND)

    def take(self, rows: NDArray[np.int64]) -> RawItems:
        """Some of the rows, in the order asked for."""
        return RawItems(self.vectors_ND[rows])


class RawVectors:
    """The `none` kind: nothing is fitted and nothing is coded. `width` is that of the embeddings (D)."""

    kind = "none"

    def __init__(self, width: int) -> None:
        if width < 1:
            raise ValueError(f"expected a width of at least 1, got {width}")
        self._width = width
        self.info: dict[str, Any] = {}

    @property
    def layers(self) -> int:
        """One: an item is one row of the table."""
        return 1

    @property
    def centroids(self) -> int:
        """None."""
        return 0

    @property
    def width(self) -> int:
        """Number of dimensions (D)."""
        return self._width

    def encode_items(self, vectors_ND: NDArray[np.floating[Any]] | Tensor) -> RawItems:
        """Vectors (N, D) rounded to fp16."""
        values = np.asarray(vectors_ND)
        if values.ndim != 2 or values.shape[1] != self.width:
            raise ValueError(f"expected rows of shape (N, {self.width}), got {values.shape}")
        return RawItems(values.astype(np.float16))

    def code_part(self, source: Path, target: Path) -> int:
        """Copy a part of embeddings, which are fp16 already; returns its number of rows."""
        table = read_table(source, [INDEX, EMBEDDING])
        write_table(target, table)
        return int(table.num_rows)

    def open_items(self, codes_dir: Path) -> RawItems:
        """Read all parts.

        Raises ArtifactMissingError, or ArtifactDamagedError when items are not 0..N-1 or of another width.
        """
        items = RawItems(read_vectors(codes_dir).astype(np.float16))
        if items.vectors_ND.shape[1] != self.width:
            raise ArtifactDamagedError(
                f"{codes_dir}: expected vectors of width {self.width}, got {items.vectors_ND.shape[1]}; delete it and "
                "run the codes step again"
            )
        return items

    def lookup(self, items: ItemTable) -> Tensor:
        """The vectors themselves, fp32 (1, N, D)."""
        assert isinstance(items, RawItems)
        return torch.from_numpy(items.vectors_ND.astype(np.float32))[None]

    def save_pretrained(self, directory: Path | str) -> None:
        """Write config.json, which is all there is."""
        write_config(Path(directory), MODEL_TYPE, {"width": self.width})

    @classmethod
    def from_pretrained(cls, directory: Path | str) -> RawVectors:
        """Load what `save_pretrained` wrote.

        Raises ArtifactMissingError or ArtifactDamagedError.
        """
        path = Path(directory) / CONFIG_FILE
        config = read_json(path)
        width = config.get("width")
        if (
            config.get("model_type") != MODEL_TYPE
            or config.get("format") != FORMAT
            or not isinstance(width, int)
            or width < 1
        ):
            raise ArtifactDamagedError(f"{path} describes no raw vectors; delete it and run the codebook step again")
        return cls(width)

"""Embeddings -> codes: of vectors in memory, and of a part file."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from torch import Tensor

from hymirec.catalog.parts import read_table, to_numpy, write_table
from hymirec.catalog.schemas import INDEX, codes_schema
from hymirec.catalog.vectors import read_vectors
from hymirec.codebook.residual import ResidualCodebook
from hymirec.codebook.table import ItemCodes
from hymirec.errors import ModelError

Magnitudes = Literal["float16", "float32"]


def item_codes(
    codebook: ResidualCodebook, vectors_ND: Tensor | NDArray[np.floating[Any]], magnitudes: Magnitudes = "float16"
) -> ItemCodes:
    """Codes of vectors (N, D) as they are stored.

    Raises ModelError when a magnitude does not fit float16, and NonFiniteEmbeddingError naming the row.
    """
    codes, values = codebook.encode(vectors_ND)
    with np.errstate(over="ignore"):
        stored = values.cpu().numpy().astype(magnitudes)
    if not np.isfinite(stored).all():
        row = int(np.argmin(np.isfinite(stored).all(axis=1)))
        raise ModelError(
            f"the vector of row {row} is {float(values[row].abs().max()):.3g} long, beyond float16; set "
            "codebook.magnitudes=float32"
        )
    return ItemCodes(codes.cpu().numpy().astype(np.uint16), stored)


def code_part(codebook: ResidualCodebook, source: Path, target: Path, magnitudes: Magnitudes | None = None) -> int:
    """Code `source` (embeddings part) into `target` (codes part, written atomically); returns its number of rows.

    Magnitudes are stored as given, else as the codebook's config says, else as float16. Equal rows give equal bytes.
    """
    index = to_numpy(read_table(source, [INDEX])[INDEX])
    if magnitudes is None:
        magnitudes = codebook.info.get("magnitudes", "float16")
    first = int(index[0]) if len(index) else 0
    coded = item_codes(codebook, read_vectors([source], first, first + len(index)), magnitudes)
    schema = codes_schema(codebook.layers, magnitudes)
    columns = [
        pa.array(index, pa.int32()),
        pa.FixedSizeListArray.from_arrays(pa.array(coded.codes_NL.reshape(-1)), type=schema.field(1).type),
        pa.FixedSizeListArray.from_arrays(pa.array(coded.magnitudes_NL.reshape(-1)), type=schema.field(2).type),
    ]
    write_table(target, pa.table(columns, schema=schema))
    return len(index)

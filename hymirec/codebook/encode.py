"""Code a part file of embeddings."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import torch

from hymirec.catalog.parts import read_table, to_numpy, write_table
from hymirec.catalog.schemas import INDEX, codes_schema
from hymirec.catalog.vectors import read_vectors
from hymirec.codebook.residual import ResidualCodebook

ROWS = 8192


def code_part(codebook: ResidualCodebook, source: Path, target: Path, magnitudes: Literal["float16", "float32"]) -> int:
    """Code `source` (embeddings part) into `target` (codes part); returns its rows. Equal rows give equal bytes."""
    index = to_numpy(read_table(source, [INDEX])[INDEX])
    vectors = torch.from_numpy(read_vectors([source], int(index[0]), int(index[-1]) + 1))
    codes = np.empty((len(index), codebook.layers), np.uint16)
    values = np.empty((len(index), codebook.layers), magnitudes)
    for start in range(0, len(index), ROWS):
        code, magnitude = codebook.encode(vectors[start : start + ROWS])
        codes[start : start + ROWS] = code.numpy().astype(np.uint16)
        values[start : start + ROWS] = magnitude.numpy()
    schema = codes_schema(codebook.layers, magnitudes)
    columns = [
        pa.array(index, pa.int32()),
        pa.FixedSizeListArray.from_arrays(pa.array(codes.reshape(-1)), type=schema.field(1).type),
        pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), type=schema.field(2).type),
    ]
    write_table(target, pa.table(columns, schema=schema))
    return len(index)

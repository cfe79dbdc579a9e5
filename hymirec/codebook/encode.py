"""Embeddings -> codes: of vectors in memory, and of a part file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from torch import Tensor

from hymirec.catalog.parts import read_table, to_numpy, write_table
from hymirec.catalog.schemas import INDEX, codes_schema
from hymirec.catalog.vectors import read_vectors
from hymirec.codebook.magnitudes import LEVEL_BITS, MagnitudeCodec, MagnitudeKind, magnitude_codec
from hymirec.codebook.residual import ResidualCodebook
from hymirec.codebook.table import ItemCodes
from hymirec.errors import ModelError


def item_codes(
    codebook: ResidualCodebook,
    vectors_ND: Tensor | NDArray[np.floating[Any]],
    magnitudes: MagnitudeKind | None = None,
) -> ItemCodes:
    """Codes of vectors (N, D) as they are stored; magnitudes in the codebook's own way, or as given.

    Raises ModelError when a magnitude does not fit float16 or no levels were fitted, and NonFiniteEmbeddingError naming
    the row.
    """
    codec = _codec(codebook, magnitudes)
    codes, values = codebook.encode(vectors_ND)
    return ItemCodes.of(codes.cpu().numpy(), values.cpu().numpy(), codebook.centroids, codec)


def code_part(codebook: ResidualCodebook, source: Path, target: Path, magnitudes: MagnitudeKind | None = None) -> int:
    """Code `source` (embeddings part) into `target` (codes part, written atomically); returns its number of rows.

    Magnitudes are stored in the codebook's own way, or as given. Equal rows give equal bytes.
    """
    index = to_numpy(read_table(source, [INDEX])[INDEX])
    first = int(index[0]) if len(index) else 0
    coded = item_codes(codebook, read_vectors([source], first, first + len(index)), magnitudes)
    write_codes_part(target, index, coded)
    return len(index)


def write_codes_part(path: Path, index: NDArray[np.int32], codes: ItemCodes) -> None:
    """Write one part atomically: item indices (n,) and their packed rows, with the layout in the schema."""
    layout = codes.layout
    schema = codes_schema(layout.row_bytes, json.dumps(layout.as_dict(), sort_keys=True).encode())
    packed = pa.py_buffer(np.ascontiguousarray(codes.packed_NR))
    rows = pa.FixedSizeBinaryArray.from_buffers(schema.field(1).type, len(codes), [None, packed])
    write_table(path, pa.table([pa.array(index, pa.int32()), rows], schema=schema))


def _codec(codebook: ResidualCodebook, kind: MagnitudeKind | None) -> MagnitudeCodec:
    if kind is None or kind == codebook.magnitudes.kind:
        return codebook.magnitudes
    if kind in LEVEL_BITS:
        raise ModelError(
            f"the codebook holds no levels for {kind} magnitudes but is of {codebook.magnitudes.kind}; set "
            f"codebook.magnitudes={kind} and run the codebook step again"
        )
    return magnitude_codec(kind)

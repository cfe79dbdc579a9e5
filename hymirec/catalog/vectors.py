"""Vectors of items on disk: Parquet parts of (index, embedding), shared by whoever writes and whoever reads them.

Half precision: an L2-normalised embedding loses less than 5e-4 of a component's value, and the files are half as big.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from hymirec.catalog.parts import part_paths, part_rows, read_table, to_numpy, write_table
from hymirec.catalog.schemas import EMBEDDING, INDEX, vectors_schema
from hymirec.errors import ArtifactDamagedError, ArtifactMissingError, NonFiniteEmbeddingError


def write_vectors(path: Path, index: NDArray[np.int32], vectors: NDArray[np.floating]) -> None:
    """Write one part atomically: item indices (n,) and their vectors (n, D), stored as float16.

    Raises NonFiniteEmbeddingError when a vector holds NaN or does not fit float16, naming the item's index.
    """
    if vectors.ndim != 2 or index.shape != (len(vectors),):
        raise ValueError(f"expected index (n,) and vectors (n, D), got {index.shape} and {vectors.shape}")
    with np.errstate(over="ignore"):
        half = np.ascontiguousarray(vectors, dtype=np.float16)
    finite = np.isfinite(half).all(axis=1)
    if not finite.all():
        row = int(np.argmin(finite))
        raise NonFiniteEmbeddingError(
            f"the vector of the item with index {int(index[row])} holds NaN or a value beyond float16; "
            "look at the text of that item and at the weights that encoded it"
        )
    schema = vectors_schema(vectors.shape[1])
    values = pa.FixedSizeListArray.from_arrays(pa.array(half.reshape(-1), pa.float16()), type=schema.field(1).type)
    write_table(path, pa.table([pa.array(index, pa.int32()), values], schema=schema))


def read_vectors(source: Path | Sequence[Path], start: int = 0, stop: int | None = None) -> NDArray[np.float32]:
    """Read the vectors of items start..stop (by item index; stop None: to the end), shape (stop - start, D).

    `source` is a directory of all parts, or some part files in order (`start` is then at or after their first item).
    Only parts that overlap the range are read.
    Raises ArtifactMissingError for a range that is not there and ArtifactDamagedError for rows out of order.
    """
    paths = part_paths(source) if isinstance(source, Path) else list(source)
    first = 0 if isinstance(source, Path) or not paths else int(to_numpy(read_table(paths[0], [INDEX])[INDEX])[0])
    blocks: list[NDArray[np.float32]] = []
    position = first
    for path in paths:
        rows = part_rows(path)
        if position + rows > start and (stop is None or position < stop):
            lo, hi = max(start - position, 0), rows if stop is None else min(stop - position, rows)
            blocks.append(_read_part(path, position)[lo:hi])
        position += rows
    if start < first or (stop is not None and stop > position) or start > position:
        raise ArtifactMissingError(
            f"vectors {start}..{stop if stop is not None else position} were asked for, {first}..{position} are there; "
            "run the step that writes them to its end"
        )
    if not blocks:
        width = _part_width(paths[0]) if paths else 0
        return np.empty((0, width), np.float32)
    return np.concatenate(blocks) if len(blocks) > 1 else blocks[0]


def read_rows(directory: Path, rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """Vectors of some items of a directory, by ascending index: only the parts that hold them are read."""
    ends = np.flatnonzero(np.diff(rows) != 1) + 1
    blocks = [read_vectors(directory, int(b[0]), int(b[-1]) + 1) for b in np.split(rows, ends) if len(b)]
    return np.concatenate(blocks) if blocks else np.empty((0, vector_width(directory)), np.float32)


def _read_part(path: Path, position: int) -> NDArray[np.float32]:
    """All vectors of one part, whose rows must be the items position, position + 1, ..."""
    table = read_table(path, [INDEX, EMBEDDING])
    index = to_numpy(table[INDEX])
    if not np.array_equal(index, np.arange(position, position + len(index))):
        raise ArtifactDamagedError(
            f"{path}: expected items {position}..{position + len(index)} in order; delete its directory and run the "
            "step again"
        )
    return as_matrix(table[EMBEDDING])


def as_matrix(column: pa.ChunkedArray) -> NDArray[np.float32]:
    """A column of vectors as fp32 (n, D)."""
    flat = [to_numpy(chunk.flatten()) for chunk in column.chunks]
    values = np.concatenate(flat) if len(flat) != 1 else flat[0]
    return values.astype(np.float32).reshape(-1, column.type.list_size)


def _part_width(path: Path) -> int:
    try:
        return int(pq.ParquetFile(path).schema_arrow.field(EMBEDDING).type.list_size)
    except FileNotFoundError as e:
        raise ArtifactMissingError(f"{path} is not there; run the step that writes it") from e
    except (pa.ArrowInvalid, KeyError, AttributeError, OSError) as e:
        raise ArtifactDamagedError(f"{path} holds no vectors ({e}); delete its directory and run the step again") from e


def vector_width(directory: Path) -> int:
    """Number of dimensions of the vectors of a directory, from the first part's footer."""
    return _part_width(part_paths(directory)[0])


def count_rows(directory: Path) -> int:
    """Number of rows over all parts of a directory, from their footers."""
    return sum(part_rows(path) for path in part_paths(directory))

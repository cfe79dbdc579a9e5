"""Part files: a table cut into fixed ranges of item indices, so that a part is the unit of work and of resuming.

A part is written to a temporary file and renamed, so a part that exists is whole, and equal rows give equal bytes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from hymirec.artifacts import replacing
from hymirec.errors import ArtifactDamagedError, ArtifactMissingError

_PART = re.compile(r"part-(\d{5,})\.parquet")


def part_name(number: int) -> str:
    """File name of a part: `part-00000.parquet`, `part-00001.parquet`, ..."""
    return f"part-{number:05d}.parquet"


def part_paths(directory: Path) -> list[Path]:
    """The part files of a directory in order of their number.

    Raises ArtifactMissingError when there is none.
    """
    numbered = [(int(match[1]), path) for path in directory.glob("part-*") if (match := _PART.fullmatch(path.name))]
    if not numbered:
        raise ArtifactMissingError(f"{directory} holds no part-*.parquet; run the step that writes it")
    return [path for _, path in sorted(numbered)]


def write_table(path: Path, table: pa.Table) -> None:
    """Write a Parquet file so that a reader sees the old one or the new one; equal tables give equal bytes."""
    with replacing(path) as f:
        pq.write_table(table, f, compression="zstd")


def read_table(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Read one Parquet file of an artifact.

    Raises ArtifactMissingError or ArtifactDamagedError with the name of the file.
    """
    try:
        return pq.ParquetFile(path).read(columns=list(columns) if columns is not None else None)
    except FileNotFoundError as e:
        raise ArtifactMissingError(f"{path} is not there; run the step that writes it") from e
    except (pa.ArrowInvalid, pa.ArrowKeyError, OSError) as e:
        raise ArtifactDamagedError(f"{path} cannot be read ({e}); delete its directory and run the step again") from e


def part_rows(path: Path) -> int:
    """Number of rows of a part, from its footer alone."""
    try:
        return int(pq.ParquetFile(path).metadata.num_rows)
    except FileNotFoundError as e:
        raise ArtifactMissingError(f"{path} is not there; run the step that writes it") from e
    except (pa.ArrowInvalid, OSError) as e:
        raise ArtifactDamagedError(f"{path} cannot be read ({e}); delete its directory and run the step again") from e


def same_rows(source: Path, target: Path) -> bool:
    """Whether two parts have as many rows. Raises ArtifactDamagedError when one cannot be read."""
    return part_rows(target) == part_rows(source)


def pending_parts(source: Path, target: Path, done: Callable[[Path, Path], bool] = same_rows) -> list[Path]:
    """Parts of `source` without a whole counterpart in `target` (parts are renamed into place when complete).

    `done(part, counterpart)` says whether a counterpart is whole.
    """
    pending = []
    for part in part_paths(source):
        made = target / part.name
        try:
            whole = made.is_file() and done(part, made)
        except ArtifactDamagedError:
            whole = False
        if not whole:
            pending.append(part)
    return pending


def to_numpy(column: pa.ChunkedArray | pa.Array) -> NDArray[Any]:
    """A column without nulls as one writable numpy array (torch warns about arrays it must not write to)."""
    array: NDArray[Any] = column.to_numpy(zero_copy_only=False) if isinstance(column, pa.Array) else column.to_numpy()
    return array if array.flags.writeable else array.copy()


def one_array(column: pa.ChunkedArray) -> pa.Array:
    """A column as one Arrow array.

    Strings that together pass 2 GiB do not fit one `string` array: they come back as `large_string`.
    """
    if column.num_chunks == 1:
        return column.chunk(0)
    if pa.types.is_string(column.type) and column.nbytes >= 2**31:
        column = column.cast(pa.large_string())
    combined = column.combine_chunks()
    return combined.chunk(0) if isinstance(combined, pa.ChunkedArray) else combined

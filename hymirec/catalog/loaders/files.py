"""Source files of a data set, on any file system fsspec knows: found by name, read as Arrow tables."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, TypeVar

import fsspec
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from hymirec.errors import DataError

T = TypeVar("T")
_GLOB = re.compile(r"[*?\[]")
_TABLE_SUFFIX = re.compile(r"\.(parquet|csv|csv\.(gz|bz2|xz|zst))$")


@dataclass(frozen=True)
class SourceFiles:
    """Files below `data.path`: `names` are full names in `filesystem`, sorted."""

    filesystem: Any
    names: tuple[str, ...]
    path: str

    @classmethod
    def find(cls, path: str) -> SourceFiles:
        """List all files of a directory, a glob or an fsspec URL (s3://, gs://, hf://, ...).

        Raises DataError when nothing is there or the place cannot be reached.
        """
        try:
            filesystem, root = fsspec.core.url_to_fs(path)
            names: set[str] = set()
            for found in sorted(filesystem.glob(root)) if _GLOB.search(root) else [root]:
                names.update(filesystem.find(found) if filesystem.isdir(found) else [found] * filesystem.isfile(found))
        except (ImportError, ValueError) as e:
            raise DataError(f"data.path={path}: {e}; install the file system's package, or give a local path") from e
        except OSError as e:
            raise DataError(f"data.path={path} cannot be listed ({e}); check the path, network and credentials") from e
        if not names:
            raise DataError(f"data.path={path} names no file; give a directory of items and interactions tables")
        return cls(filesystem, tuple(sorted(names)), path)

    def tables_named(self, table: str) -> list[str]:
        """Files of one table: `items.parquet`, `items-0001.parquet`, `items.csv.gz`, or anything in `items/`."""
        return [name for name in self.names if _belongs(PurePosixPath(name), table)]

    def with_name(self, *names: str) -> str | None:
        """The first file with one of these base names, or None."""
        by_base = {PurePosixPath(name).name: name for name in reversed(self.names)}
        return next((by_base[name] for name in names if name in by_base), None)

    def bytes_of(self, name: str) -> bytes:
        """A file's bytes, decompressed by its suffix."""
        return self._read(name, lambda f: bytes(f.read()), compression="infer")

    def parquet(self, name: str, columns: Sequence[str] | None = None) -> pa.Table:
        """A Parquet file; of `columns` those it has."""

        def read(f: Any) -> pa.Table:
            file = pq.ParquetFile(f)
            kept = None if columns is None else [c for c in columns if c in file.schema_arrow.names]
            return file.read(columns=kept)

        return self._read(name, read)

    def csv(self, name: str, columns: Sequence[str] | None = None, strings: Sequence[str] = ()) -> pa.Table:
        """A CSV file with a header; of `columns` those it has; `strings` are not guessed at but kept as text."""

        def read(f: Any) -> pa.Table:
            table = pacsv.read_csv(
                f,
                parse_options=pacsv.ParseOptions(newlines_in_values=True),
                convert_options=pacsv.ConvertOptions(
                    column_types={column: pa.string() for column in strings},
                    strings_can_be_null=True,
                    null_values=[""],  # "NA" or "null" may be a title
                ),
            )
            return table if columns is None else table.select([c for c in columns if c in table.column_names])

        return self._read(name, read, compression="infer")

    def table(self, name: str, columns: Sequence[str] | None = None) -> pa.Table:
        """A Parquet or CSV file, by its suffix."""
        return self.parquet(name, columns) if name.endswith(".parquet") else self.csv(name, columns)

    def csv_header(self, name: str) -> list[str]:
        """Column names of a CSV file."""
        line = self._read(name, lambda f: bytes(f.readline()), compression="infer")
        return [cell.strip().strip('"') for cell in line.decode("utf-8-sig", errors="replace").strip().split(",")]

    def _read(self, name: str, read: Callable[[Any], T], compression: str | None = None) -> T:
        try:
            with self.filesystem.open(name, "rb", compression=compression) as f:
                return read(f)
        except FileNotFoundError as e:
            raise DataError(f"{name} is not there; check data.path={self.path}") from e
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError, EOFError, ValueError) as e:
            raise DataError(f"{name} cannot be read ({e}); write it again or leave it out of {self.path}") from e


def concat(tables: Sequence[pa.Table], what: str) -> pa.Table:
    """Rows of several files, in order; a column that a file lacks is null there.

    Raises DataError when one column has types that do not go together.
    """
    try:
        return pa.concat_tables(tables, promote_options="permissive")
    except (pa.ArrowInvalid, pa.ArrowTypeError) as e:
        raise DataError(f"the files of {what} do not have one schema ({e}); write them with equal column types") from e


def _belongs(name: PurePosixPath, table: str) -> bool:
    base = name.name
    suffix = _TABLE_SUFFIX.search(base)
    if suffix is None or base.startswith((".", "_")):
        return False
    stem = base[: suffix.start()]
    return name.parent.name == table or re.fullmatch(rf"{table}([-_.].*)?", stem) is not None

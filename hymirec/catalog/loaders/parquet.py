"""Any directory, glob or URL of the two tables, as Parquet or CSV.

`items.parquet` + `interactions.parquet`, or directories `items/` + `interactions/` of parts, or the same as CSV.
"""

from __future__ import annotations

import pyarrow as pa

from hymirec.catalog.loaders.files import SourceFiles, concat
from hymirec.catalog.schemas import ACTION, ITEM, TS, USER
from hymirec.errors import DataError


def load(path: str) -> tuple[pa.Table, pa.Table]:
    """Items with all their columns, and interactions(user, item, ts[, action]); rows in order of file name, then row.

    Raises DataError naming the table that is missing or the file that cannot be read.
    """
    source = SourceFiles.find(path)
    found = {table: source.tables_named(table) for table in ("items", "interactions")}
    for table, names in found.items():
        if not names:
            raise DataError(
                f"{path}: no {table} table; expected {table}.parquet (or {table}/*.parquet, or CSV), "
                f"found {_some(source.names)}"
            )
    items = concat([source.table(name) for name in found["items"]], "items")
    columns = (USER, ITEM, TS, ACTION)
    interactions = concat([source.table(name, columns) for name in found["interactions"]], "interactions")
    return items, interactions


def _some(names: tuple[str, ...]) -> str:
    return ", ".join(name.rsplit("/", 1)[-1] for name in names[:5]) + (", ..." if len(names) > 5 else "")

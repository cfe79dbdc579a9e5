"""New items for a catalogue that is released: which rows of a table of items are new to it.

The table may hold the whole catalogue of today: what is known already is left out and keeps what it has.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from hymirec.artifacts import hash_json
from hymirec.catalog.keys import item_keys
from hymirec.catalog.loaders.files import SourceFiles, concat
from hymirec.catalog.normalise import plain
from hymirec.catalog.parts import one_array, part_name, part_paths, read_table, to_numpy, write_table
from hymirec.catalog.prepare import write_items
from hymirec.catalog.prepared import Catalog
from hymirec.catalog.schemas import INDEX, ITEM, TITLE
from hymirec.catalog.text import text_columns
from hymirec.catalog.validation import find_item_problems, refuse
from hymirec.errors import DataError

HASHED_ROWS = 10_000


@dataclass(frozen=True)
class NewItems:
    """Items that a catalogue does not know, in ascending order of id; `known` rows of the source it does know."""

    table: pa.Table
    columns: Sequence[str]
    known: int

    def __len__(self) -> int:
        return int(self.table.num_rows)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of what the items say, whatever files they came in."""
        digest = hashlib.sha256()
        for batch in self.table.to_batches(HASHED_ROWS):
            digest.update(hash_json(batch.to_pylist()).encode())
        return digest.hexdigest()

    def write(self, directory: Path, part_rows: int) -> None:
        """Write parts like those of a run, texts and all, with indices from 0. Nobody has interacted with them yet."""
        popularity = np.zeros(len(self), np.int64)
        write_items(self.table, one_array(self.table[ITEM]), popularity, list(self.columns), part_rows, directory)


def find_new_items(path: str, catalog: Catalog, columns: Sequence[str]) -> NewItems:
    """Those of the items at `path` that the catalogue does not know; `columns` make the texts, as they did in the run.

    `path` is a Parquet or CSV file, or a directory, glob or URL of `items` tables as `data.path` is.
    Raises ValidationError for rows that cannot be used, DataError for ids of another type than the catalogue's, a
    missing text column, or an id whose key is that of another item.
    """
    source = SourceFiles.find(path)
    names = source.names if len(source.names) == 1 else source.tables_named("items")
    if not names:
        raise DataError(f"{path}: no items table; expected a file, or items.parquet, items/*.parquet or CSV")
    table = plain(concat([source.table(name) for name in names], "items"))
    refuse(find_item_problems(table))
    text_columns(table, columns)
    table = _with_ids_of(catalog, table)
    ids = one_array(table[ITEM])
    index = catalog.indices_of_keys(item_keys(ids.to_pylist()))
    for row in np.flatnonzero(index >= 0).tolist():
        if catalog.item_id(int(index[row])) != ids[row].as_py():
            raise DataError(
                f"item {ids[row].as_py()!r} has the 64-bit key of {catalog.item_id(int(index[row]))!r}, which the "
                "catalogue holds; rename it"
            )
    new = table.filter(pa.array(index < 0)).select(list(dict.fromkeys([ITEM, TITLE, *columns])))
    return NewItems(new.take(pc.sort_indices(new[ITEM])), columns, int((index >= 0).sum()))


def _with_ids_of(catalog: Catalog, items: pa.Table) -> pa.Table:
    """The table with ids of the catalogue's type: numbers are also good names where names are strings."""
    number = pa.types.is_int64(items.schema.field(ITEM).type)
    if number == (catalog.id_type == "int64"):
        return items
    if not number:
        raise DataError(f"items, column {ITEM}: ids are strings, those of the catalogue are int64; use int64 ids")
    place = items.column_names.index(ITEM)
    return items.set_column(place, ITEM, items[ITEM].cast(pa.string()))


def append_parts(source: Path, target: Path, offset: int) -> None:
    """Copy the parts of `source` behind those of `target`, with indices that go on from `offset`; columns as there."""
    have = part_paths(target)
    columns = read_table(have[0]).column_names
    number = int(have[-1].stem.removeprefix("part-")) + 1
    for path in part_paths(source):
        table = read_table(path, columns)
        index = pa.array(to_numpy(table[INDEX]) + np.int32(offset), pa.int32())
        place = table.column_names.index(INDEX)
        shifted = table.set_column(place, table.schema.field(INDEX), index)
        write_table(target / part_name(number), shifted)
        number += 1

"""Check the two tables before anything runs: every problem named with table, row and column.

Rows count from 0 over all files of a table in their order. At most 20 lines a kind of problem, then their number.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt
from numpy.typing import NDArray

from hymirec.catalog.keys import item_keys
from hymirec.catalog.normalise import Tables
from hymirec.catalog.parts import to_numpy
from hymirec.catalog.schemas import ACTION, ITEM, MAX_TS, TITLE, TS, USER
from hymirec.catalog.text import clean
from hymirec.errors import ValidationError

MAX_LINES = 20
_ID = "int64 or string"
_COLUMNS = {
    "items": {ITEM: _ID, TITLE: "string"},
    "interactions": {USER: _ID, ITEM: _ID, TS: "int64 seconds or a timestamp", ACTION: "string"},
}
_OPTIONAL = {ACTION}

Describe = Callable[[int], str]


def find_problems(items: pa.Table, interactions: pa.Table) -> list[str]:
    """Everything that keeps the tables (in plain types, see `normalise`) from being used, one line a problem."""
    found = find_item_problems(items) + _shape("interactions", interactions)
    usable = {name for name, wanted in _COLUMNS["interactions"].items() if _fits(interactions, name, wanted)}
    for column in (USER, ITEM, TS):
        if column in usable:
            found += _null_lines("interactions", interactions, column)
    if _fits(items, ITEM, _ID) and ITEM in usable:
        found += _unknown_items(items[ITEM], interactions[ITEM])
    if TS in usable:
        found += _times(interactions[TS])
    return found


def find_item_problems(items: pa.Table) -> list[str]:
    """Everything that keeps a table of items alone (in plain types) from being used, one line a problem."""
    found = _shape("items", items)
    if _fits(items, ITEM, _ID):
        found += _null_lines("items", items, ITEM)
        found += _duplicates(items[ITEM])
        found += _collisions(items[ITEM])
    return found


def find_warnings(items: pa.Table, interactions: pa.Table) -> list[str]:
    """What can be used but is worth a look: items without a title, items nobody interacted with. Needs valid tables."""
    found = _lines("items", TITLE, np.flatnonzero(to_numpy(pc.equal(clean(items[TITLE]), ""))), lambda row: "is empty")
    cold = int(pc.sum(pc.invert(pc.is_in(items[ITEM], value_set=pc.unique(interactions[ITEM])))).as_py() or 0)
    if cold:
        found.append(
            f"items: {cold} of {items.num_rows} are in no interaction (data.unseen_items=drop leaves them out)"
        )
    return found


def check(tables: Tables) -> None:
    """Raise ValidationError with every problem of the tables, if there is any."""
    refuse(find_problems(tables.items, tables.interactions))


def refuse(problems: list[str]) -> None:
    """Raise ValidationError with the problems, if there is any."""
    if problems:
        shown = "\n  ".join(problems[:MAX_LINES])
        more = f"\n  ... and {len(problems) - MAX_LINES} lines more" if len(problems) > MAX_LINES else ""
        raise ValidationError(
            "the tables cannot be used (rows count from 0); mend the files and run `hymirec validate` on them:\n  "
            f"{shown}{more}",
            problems,
        )


def colliding_keys(keys: NDArray[np.uint64]) -> list[tuple[int, int]]:
    """Pairs of rows (earlier, later) whose keys are equal, in order of the later row."""
    order = np.argsort(keys, kind="stable")
    equal = np.flatnonzero(keys[order][1:] == keys[order][:-1])
    pairs = [(int(order[i]), int(order[i + 1])) for i in equal]
    return sorted(pairs, key=lambda pair: pair[1])


def _shape(table: str, data: pa.Table) -> list[str]:
    """Missing columns, wrong types, no rows, ids of two types."""
    found = []
    for column, wanted in _COLUMNS[table].items():
        if column not in data.column_names:
            if column not in _OPTIONAL:
                found.append(
                    f"{table}: no column {column} ({wanted}); its columns are {', '.join(data.column_names) or 'none'}"
                )
        elif not _fits(data, column, wanted):
            found.append(f"{table}, column {column}: expected {wanted}, got {data.schema.field(column).type}")
    if data.num_rows == 0:
        found.append(f"{table}: the table is empty")
    return found


def _fits(data: pa.Table, column: str, wanted: str) -> bool:
    if column not in data.column_names:
        return False
    kind = data.schema.field(column).type
    # A string column that is null everywhere has no type of its own when read from CSV.
    as_string = pt.is_string(kind) or (wanted == "string" and pt.is_null(kind))
    return (as_string and "string" in wanted) or (pt.is_int64(kind) and "int64" in wanted)


def _lines(table: str, column: str, rows: NDArray[np.int64], describe: Describe) -> list[str]:
    """One line for each of the first rows, then how many there are in all."""
    found = [f"{table} row {row}, column {column}: {describe(int(row))}" for row in rows[:MAX_LINES]]
    if len(rows) > MAX_LINES:
        found.append(f"{table}, column {column}: {len(rows) - MAX_LINES} rows more of that kind ({len(rows)} in all)")
    return found


def _null_lines(table: str, data: pa.Table, column: str) -> list[str]:
    return _lines(table, column, _nulls(data[column]), lambda row: "is null; give it a value or leave the row out")


def _nulls(column: pa.ChunkedArray) -> NDArray[np.int64]:
    if column.null_count == 0:
        return np.empty(0, np.int64)
    return np.flatnonzero(to_numpy(pc.is_null(column)))


def _value(column: pa.ChunkedArray, row: int) -> str:
    return repr(column[row].as_py())


def _duplicates(ids: pa.ChunkedArray) -> list[str]:
    """Rows whose id was there before (nulls are named elsewhere)."""
    distinct = pc.unique(ids)
    if len(distinct) == len(ids):
        return []
    number = to_numpy(pc.index_in(ids, value_set=distinct))
    _, first = np.unique(number, return_index=True)
    again = np.ones(len(ids), bool)
    again[first] = False
    again &= to_numpy(pc.is_valid(ids))
    return _lines(
        "items",
        ITEM,
        np.flatnonzero(again),
        lambda row: f"{_value(ids, row)} is there already (row {first[number[row]]}); an item has one row",
    )


def _collisions(ids: pa.ChunkedArray) -> list[str]:
    """Different ids with one 64-bit key."""
    distinct = pc.drop_null(pc.unique(ids))
    pairs = colliding_keys(item_keys(distinct.to_pylist()))
    ids_of = [(distinct[a].as_py(), distinct[b].as_py()) for a, b in pairs[:MAX_LINES]]
    return [f"items, column {ITEM}: {a!r} and {b!r} have one 64-bit key; rename one of them" for a, b in ids_of]


def _unknown_items(known: pa.ChunkedArray, used: pa.ChunkedArray) -> list[str]:
    if known.type != used.type:
        return [
            f"interactions, column {ITEM}: ids are {used.type}, those of items are {known.type}; use one type in both"
        ]
    unknown = pc.and_(pc.is_valid(used), pc.invert(pc.is_in(used, value_set=pc.unique(known))))
    return _lines(
        "interactions", ITEM, np.flatnonzero(to_numpy(unknown)), lambda row: f"{_value(used, row)} is not in items"
    )


def _times(ts: pa.ChunkedArray) -> list[str]:
    values = to_numpy(pc.fill_null(ts, 0))

    def describe(row: int) -> str:
        if values[row] < 0:
            return f"{values[row]} is negative; times are seconds since 1970"
        return f"{values[row]} is beyond {MAX_TS} (year 2106); times are seconds since 1970, not milliseconds"

    return _lines("interactions", TS, np.flatnonzero((values < 0) | (values > MAX_TS)), describe)

"""Bring tables as they come from anywhere to the types the catalogue works with, where that loses nothing.

Integers of any width -> int64, any kind of string -> string, timestamps and dates -> int64 seconds, lists of strings
-> one string. What cannot be brought there is left as it is, for `validation` to name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt

from hymirec.catalog.schemas import ACTION, ITEM, TS, USER


@dataclass(frozen=True)
class Tables:
    """The two tables of a data set: items(item, title, ...) and interactions(user, item, ts[, action])."""

    items: pa.Table
    interactions: pa.Table


def normalise(items: pa.Table, interactions: pa.Table) -> Tables:
    """Bring both tables to the types of `schemas`; interactions keep only the columns that are used."""
    kept = [name for name in (USER, ITEM, TS, ACTION) if name in interactions.column_names]
    return Tables(plain(items), plain(interactions.select(kept)))


def plain(table: pa.Table) -> pa.Table:
    """One table in the types of `schemas`."""
    return _each(table, _plain)


def _each(table: pa.Table, change: Callable[[str, pa.ChunkedArray], pa.ChunkedArray]) -> pa.Table:
    names = table.column_names
    return pa.table([change(name, table.column(i)) for i, name in enumerate(names)], names=names)


def _plain(name: str, column: pa.ChunkedArray) -> pa.ChunkedArray:
    """One column in its plain type."""
    if pt.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    kind = column.type
    if pt.is_list(kind) or pt.is_large_list(kind):
        return _joined(column)
    if pt.is_large_string(kind) or pt.is_string_view(kind):
        return column.cast(pa.string())
    if name == TS and (pt.is_timestamp(kind) or pt.is_date(kind)):
        return _seconds(column)
    if pt.is_integer(kind) and not pt.is_int64(kind):
        return _widened(column)
    return column


def _widened(column: pa.ChunkedArray) -> pa.ChunkedArray:
    try:
        return column.cast(pa.int64())
    except pa.ArrowInvalid:  # uint64 beyond int64: left to validation, which names the type
        return column


def _seconds(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Seconds since 1970, rounded down; a time without zone is UTC."""
    if pt.is_date(column.type):
        column = column.cast(pa.timestamp("s"))
    ticks = column.cast(pa.int64())
    per_second = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[column.type.unit]
    if per_second == 1:
        return ticks
    quotient = pc.divide(ticks, per_second)
    # Integer division rounds towards zero: one less for a time before 1970 with a fraction.
    below = pc.less(pc.subtract(ticks, pc.multiply(quotient, per_second)), 0)
    return pc.subtract(quotient, pc.cast(below, pa.int64()))


def _joined(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A list of strings as "a, b, c"; a list of anything else is left as it is."""
    if not (pt.is_string(column.type.value_type) or pt.is_large_string(column.type.value_type)):
        return column
    strings = column.cast(pa.list_(pa.string()))
    return pc.binary_join(strings, ", ")

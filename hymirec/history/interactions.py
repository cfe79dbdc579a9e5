"""Past interactions as messages: what a backfill applies before the log, and what verifies it.

`user, item, ts[, action][, event_id]`, Parquet. A user's rows are ordered by time, equal times as in the file. A row
without an event id has one that its place gives it, so that applying the same file again doubles nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from hymirec.catalog.events import action_code
from hymirec.catalog.keys import item_keys
from hymirec.catalog.schemas import MAX_TS
from hymirec.errors import DataError
from hymirec.history.store import Entry
from hymirec.history.verify import Placed

# In place of a topic's id.
SOURCE = "interactions"
COLUMNS = ("user", "item", "ts", "action", "event_id")


def interaction_files(path: Path) -> list[Path]:
    """A Parquet file, or all files of a directory (in order of name). Raises DataError when there is none."""
    files = sorted(path.glob("*.parquet")) if path.is_dir() else [path] if path.is_file() else []
    if not files:
        raise DataError(f"{path} is no Parquet file and no directory of them; expected the columns user, item, ts")
    return files


def checked_columns(path: Path) -> list[str]:
    """Those of COLUMNS that a file has. Raises DataError when one that is needed is missing."""
    try:
        names = pq.read_schema(path).names
    except (pa.ArrowInvalid, OSError) as e:
        raise DataError(f"{path} cannot be read as Parquet: {e}") from e
    missing = [name for name in COLUMNS[:3] if name not in names]
    if missing:
        raise DataError(f"{path} lacks the columns {missing}; expected user, item, ts, and perhaps action and event_id")
    return [name for name in COLUMNS if name in names]


def read_interactions(path: Path) -> pa.Table:
    """All rows of a file or directory, columns as in COLUMNS where they are there; users as text."""
    tables = []
    for file in interaction_files(path):
        table = pq.read_table(file, columns=checked_columns(file))
        tables.append(table.set_column(0, "user", table["user"].cast(pa.string())))
    return pa.concat_tables(tables, promote_options="permissive")


def interaction_times(table: pa.Table) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Time (N,) of every row, in seconds since 1970.

    Raises DataError for a missing id or a time that no history can hold.
    """
    if any(table[name].null_count for name in COLUMNS[:3]):
        raise DataError("interactions: user, item and ts must not be empty; `hymirec validate` names the rows")
    ts_N = _seconds(table["ts"])
    if len(ts_N) and not 0 <= int(ts_N.min()) <= int(ts_N.max()) <= MAX_TS:
        raise DataError(f"interactions: ts from {ts_N.min()} to {ts_N.max()}; expected seconds since 1970")
    return ts_N


def entries_of(table: pa.Table) -> Iterator[Entry]:
    """Entries of all rows, user by user in order of first appearance; offsets count from 0.

    Raises DataError for a missing id or a time that no history can hold.
    """
    ts_N = interaction_times(table)
    users = table["user"].combine_chunks().dictionary_encode()
    user_N, names = users.indices.to_numpy(), users.dictionary.to_pylist()
    items = table["item"].combine_chunks().dictionary_encode()
    key_N = item_keys(items.dictionary.to_pylist())[items.indices.to_numpy()]
    actions = table["action"].to_pylist() if "action" in table.column_names else None
    ids = table["event_id"].to_pylist() if "event_id" in table.column_names else None
    last, place = -1, 0
    for offset, row in enumerate(np.lexsort((ts_N, user_N)).tolist()):
        user = int(user_N[row])
        place = place + 1 if user == last else 0
        last = user
        given = None if ids is None else ids[row]
        event_id = f"{SOURCE}:{place}" if given is None else str(given)
        action = action_code("view" if actions is None else actions[row] or "view")
        event_hash = xxhash.xxh3_64_intdigest(event_id.encode())
        yield Entry(offset, names[user], int(key_N[row]), int(ts_N[row]), action, event_hash)


def placed(entries: Iterable[Entry]) -> Iterator[Placed]:
    """As messages of a source of their own, ahead of the log."""
    return (Placed(SOURCE, 0, entry) for entry in entries)


def _seconds(column: pa.ChunkedArray) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    if pa.types.is_timestamp(column.type):
        column = column.cast(pa.timestamp("s"), safe=False)
    seconds: np.ndarray[tuple[int], np.dtype[np.int64]] = column.cast(pa.int64()).combine_chunks().to_numpy()
    return seconds

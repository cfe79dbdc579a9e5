"""Histories of everyone, cut into parts of so many users: the unit of work and of resuming.

They come from the prepared data of a run, or from a Parquet file or directory in one of three forms:

    user, item, ts          one row an interaction, as in `interactions.parquet`
    user, items, ts         one row a user, lists of equal length
    user, item_key, ts      the same with keys, as `hymirec history export` writes them

Users stand in ascending order of their ids within a file of interactions, else as they came.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from hymirec.catalog.keys import item_keys
from hymirec.catalog.normalise import plain
from hymirec.catalog.parts import one_array, part_name, to_numpy, write_table
from hymirec.catalog.prepared import Catalog, Sequences
from hymirec.catalog.schemas import ITEM, ITEMS, MAX_TS, SEQUENCES_FILE, TS, USER
from hymirec.errors import DataError

ITEM_KEY = "item_key"
FORMS = f"({USER}, {ITEM}, {TS}), ({USER}, {ITEMS}, {TS}) with lists, or ({USER}, {ITEM_KEY}, {TS}) with lists of keys"
# Beside the histories in an export: users that were erased.
TOMBSTONES = "tombstones.parquet"
# Users of a file that are held in memory at once.
ROWS = 20_000

Keys = NDArray[np.uint64]
Times = NDArray[np.int64]


@dataclass(frozen=True)
class _Block:
    """Some users: the history of the n-th is keys[offsets[n]:offsets[n + 1]]."""

    users: pa.Array
    offsets: NDArray[np.int64]
    keys: Keys
    ts: Times

    def slice(self, start: int, stop: int) -> pa.Table:
        """Users start..stop as a part: user, keys, ts."""
        ends = self.offsets[start : stop + 1]
        offsets = pa.array((ends - ends[0]).astype(np.int32))
        span = slice(int(ends[0]), int(ends[-1]))
        lists = [pa.ListArray.from_arrays(offsets, pa.array(values[span])) for values in (self.keys, self.ts)]
        return pa.table([self.users.slice(start, stop - start), *lists], names=[USER, ITEM_KEY, TS])


def cut_histories(source: Path, target: Path, part_users: int) -> int:
    """Write the histories of `source` as parts (user, item_key, ts) of `part_users` users; returns the newest time.

    `source` is the `data` directory of a run or Parquet. Parts that `target` held before are removed.
    Raises DataError for columns of no known form, empty ids, or times that are no seconds since 1970.
    """
    shutil.rmtree(target, ignore_errors=True)
    number, newest = 0, 0
    for block in _run_blocks(source) if (source / SEQUENCES_FILE).is_file() else _file_blocks(source):
        newest = max(newest, int(block.ts.max(initial=0)))
        for start in range(0, len(block.users), part_users):
            write_table(target / part_name(number), block.slice(start, min(start + part_users, len(block.users))))
            number += 1
    if not number:
        raise DataError(f"{source} holds no history; give the histories of at least one user")
    return newest


def _run_blocks(data_dir: Path) -> Iterator[_Block]:
    """All events of a run's users, those of validation and test included."""
    sequences, catalog = Sequences.open(data_dir), Catalog.open(data_dir)
    yield _Block(sequences.users, sequences.offsets, catalog.keys[sequences.items], sequences.ts)


def _file_blocks(source: Path) -> Iterator[_Block]:
    histories = history_files(source)
    forms = {_form(path) for path in histories}
    if len(forms) > 1:
        raise DataError(f"{source}: files of several forms; expected one of {FORMS} in all of them")
    if forms == {ITEM}:
        yield _grouped(pa.concat_tables([_columns(pq.read_table(path), ITEM) for path in histories]))
        return
    (column,) = forms
    for path in histories:
        for batch in pq.ParquetFile(path).iter_batches(ROWS, columns=[USER, column, TS]):
            yield _of_lists(pa.Table.from_batches([batch]), column, path)


def history_files(source: Path) -> list[Path]:
    """A Parquet file, or those of a directory in order of name. Raises DataError when there is none."""
    files = sorted(source.glob("*.parquet")) if source.is_dir() else [source] if source.is_file() else []
    histories = [path for path in files if path.name != TOMBSTONES]
    if not histories:
        raise DataError(f"{source} is neither the data of a run nor Parquet of histories; expected {FORMS}")
    return histories


def _form(path: Path) -> str:
    """Name of the column with items."""
    try:
        names = pq.read_schema(path).names
    except (pa.ArrowInvalid, OSError) as e:
        raise DataError(f"{path} cannot be read as Parquet: {e}") from e
    found = next((name for name in (ITEM_KEY, ITEMS, ITEM) if name in names), None)
    if found is None or USER not in names or TS not in names:
        raise DataError(f"{path} has the columns {', '.join(names)}; expected {FORMS}")
    return found


def _columns(table: pa.Table, item: str) -> pa.Table:
    """The three columns in plain types. Raises DataError for nulls."""
    table = plain(table.select([USER, item, TS]))
    if empty := [name for name in table.column_names if table[name].null_count]:
        raise DataError(f"histories: {', '.join(empty)} must not be empty; leave such rows out")
    return table


def _grouped(table: pa.Table) -> _Block:
    """One row an interaction: gathered by user, equal times in order of the file."""
    users = pc.unique(table[USER])
    users = users.take(pc.sort_indices(users))
    user_E = to_numpy(pc.index_in(table[USER], value_set=users)).astype(np.int64)
    ts_E = _checked(to_numpy(table[TS]).astype(np.int64))
    order = np.lexsort((ts_E, user_E))
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(np.bincount(user_E, minlength=len(users)))])
    return _Block(users, offsets, _keys_of(one_array(table[ITEM]))[order], ts_E[order])


def _of_lists(table: pa.Table, column: str, path: Path) -> _Block:
    """One row a user."""
    if table[USER].null_count or table[column].null_count or table[TS].null_count:
        raise DataError(f"{path}: {USER}, {column} and {TS} must not be empty; leave such rows out")
    lists, times = one_array(table[column]), one_array(table[TS])
    items, ts = lists.flatten(), times.flatten()
    lengths = to_numpy(lists.value_lengths()).astype(np.int64)
    if items.null_count or ts.null_count or not np.array_equal(lengths, to_numpy(times.value_lengths())):
        raise DataError(f"{path}: {column} and {TS} must be lists of equal length without nulls")
    keys = to_numpy(items).astype(np.uint64) if column == ITEM_KEY else _keys_of(items)
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
    return _Block(one_array(table[USER]), offsets, keys, _checked(to_numpy(ts).astype(np.int64)))


def _keys_of(items: pa.Array) -> Keys:
    """Keys of ids: each distinct id is hashed once."""
    distinct = items.dictionary_encode()
    if not len(items):
        return np.empty(0, np.uint64)
    keys: Keys = item_keys(distinct.dictionary.to_pylist())[to_numpy(distinct.indices)]
    return keys


def _checked(ts: Times) -> Times:
    if len(ts) and not 0 <= int(ts.min()) <= int(ts.max()) <= MAX_TS:
        raise DataError(f"histories: {TS} from {ts.min()} to {ts.max()}; expected seconds since 1970")
    return ts

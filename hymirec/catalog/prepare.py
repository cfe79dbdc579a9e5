"""Cut the two tables into the prepared catalogue: items by index, every user's history, and its split.

Events are ordered by (user, ts, original order). All steps are whole-column operations; 10^7 interactions take seconds.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from hymirec.artifacts import write_json
from hymirec.catalog.keys import item_keys
from hymirec.catalog.normalise import Tables
from hymirec.catalog.parts import one_array, part_name, to_numpy, write_table
from hymirec.catalog.schemas import (
    ITEM,
    ITEMS_DIR,
    SEQUENCES_FILE,
    STATS_FILE,
    TITLE,
    TS,
    USER,
    items_schema,
    sequences_schema,
)
from hymirec.catalog.text import clean, render, text_columns
from hymirec.catalog.validation import colliding_keys
from hymirec.config import DataConfig
from hymirec.errors import DataError

Ints = NDArray[np.int64]


@dataclass
class _Events:
    """Interactions in order of (user, ts, original order); users and items by number. U users, E events."""

    users: pa.Array
    user: Ints
    item: Ints
    ts: Ints

    def take(self, kept: NDArray[np.bool_]) -> _Events:
        """Only the events of a mask (E,)."""
        return _Events(self.users, self.user[kept], self.item[kept], self.ts[kept])

    def lengths(self) -> Ints:
        """Events a user, shape (U,)."""
        return np.bincount(self.user, minlength=len(self.users)).astype(np.int64)


def prepare(tables: Tables, config: DataConfig, out: Path) -> dict[str, Any]:
    """Write `items/part-*.parquet`, `sequences.parquet` and `stats.json` below `out`; returns the stats.

    Equal tables and config give equal bytes. Expects tables that `validation.check` accepts.
    Raises DataError when no user is left, a split would be empty, or two items have one key.
    """
    columns = text_columns(tables.items, config.text_columns)
    ids = _sorted_unique(tables.items[ITEM])
    read = _ordered_events(tables.interactions, ids)
    first = _first_of_each(read, len(ids)) if config.repeats == "first" else read
    events = _active_users(first, config.min_user_interactions)
    if config.unseen_items == "drop":
        ids, events = _seen_items(ids, events)
    n_train, n_val = _split(events, config)
    lengths = events.lengths()
    step = np.arange(len(events.user)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    training = step < np.repeat(n_train, lengths)
    popularity = np.bincount(events.item[training], minlength=len(ids)).astype(np.int64)

    without_text = write_items(tables.items, ids, popularity, columns, config.part_rows, out / ITEMS_DIR)
    _write_sequences(events, lengths, n_train, n_val, out)
    stats = {
        **_stats(events, lengths, n_train, n_val, popularity),
        "items_without_text": without_text,
        "text_columns": columns,
        "left_out": {
            "repeats": len(read.user) - len(first.user),
            "users": len(first.users) - len(events.users),
            "interactions_of_users": len(first.user) - len(events.user),
            "items": tables.items.num_rows - len(ids),
        },
    }
    write_json(out / STATS_FILE, stats)
    return stats


def _sorted_unique(column: pa.ChunkedArray) -> pa.Array:
    """Distinct ids, ascending (strings by their UTF-8 bytes)."""
    distinct = pc.unique(column)
    return distinct.take(pc.sort_indices(distinct))


def _numbers(column: pa.ChunkedArray, values: pa.Array, what: str) -> Ints:
    """Position of each id in `values`."""
    found = pc.index_in(column, value_set=values)
    if found.null_count:
        raise DataError(
            f"interactions name {found.null_count} {what} that are not there; run `hymirec validate` on the tables"
        )
    return to_numpy(found).astype(np.int64)


def _ordered_events(interactions: pa.Table, ids: pa.Array) -> _Events:
    users = _sorted_unique(interactions[USER])
    user = _numbers(interactions[USER], users, "users")
    item = _numbers(interactions[ITEM], ids, "items")
    ts = to_numpy(interactions[TS]).astype(np.int64)
    order = np.lexsort((ts, user))  # stable: equal (user, ts) keep file order
    return _Events(users, user[order], item[order], ts[order])


def _first_of_each(events: _Events, items: int) -> _Events:
    """Only the first event of each (user, item)."""
    pair = events.user * items + events.item
    order = np.argsort(pair, kind="stable")
    new = np.ones(len(pair), bool)
    new[1:] = pair[order][1:] != pair[order][:-1]
    kept = np.zeros(len(pair), bool)
    kept[order[new]] = True
    return events.take(kept)


def _active_users(events: _Events, least: int) -> _Events:
    """Only users with at least `least` events, numbered anew in their order."""
    lengths = events.lengths()
    active = lengths >= least
    if not active.any():
        raise DataError(
            f"no user has data.min_user_interactions={least} interactions (the most active of {len(lengths)} has "
            f"{lengths.max(initial=0)}); lower it (3 is the least), or give data with longer histories"
        )
    kept = events.take(active[events.user])
    return _Events(events.users.filter(pa.array(active)), (np.cumsum(active) - 1)[kept.user], kept.item, kept.ts)


def _seen_items(ids: pa.Array, events: _Events) -> tuple[pa.Array, _Events]:
    """Only items of the events, numbered anew in their order."""
    seen = np.zeros(len(ids), bool)
    seen[events.item] = True
    return ids.filter(pa.array(seen)), _Events(events.users, events.user, (np.cumsum(seen) - 1)[events.item], events.ts)


def _split(events: _Events, config: DataConfig) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Events of each user before the validation and before the test targets, both (U,)."""
    lengths = events.lengths()
    if config.split == "leave-one-out":
        return (lengths - 2).astype(np.int32), (lengths - 1).astype(np.int32)
    ordered = np.sort(events.ts)
    # A cut falls between two times: events with equal ts are on one side of it.
    first_val = ordered[int(len(ordered) * (1 - config.validation_share - config.test_share))]
    first_test = ordered[int(len(ordered) * (1 - config.test_share))]
    users = len(events.users)
    n_train = np.bincount(events.user[events.ts < first_val], minlength=users)
    n_val = np.bincount(events.user[events.ts < first_test], minlength=users)
    sizes = {"training": n_train.sum(), "validation": (n_val - n_train).sum(), "test": (lengths - n_val).sum()}
    empty = [name for name, size in sizes.items() if not size]
    if empty:
        raise DataError(
            f"data.split=global-time leaves no event for {', '.join(empty)}: too many events have one ts "
            f"(cuts at {first_val} and {first_test}); change data.validation_share and data.test_share, or use "
            "data.split=leave-one-out"
        )
    return n_train.astype(np.int32), n_val.astype(np.int32)


def write_items(items: pa.Table, ids: pa.Array, popularity: Ints, columns: list[str], part_rows: int, out: Path) -> int:
    """Write the items with these ids, in this order, as parts of a directory, and remove what parts it held before.

    Index i is the i-th id; texts are made of `columns`. Returns the number of items without any text. Raises DataError
    when two items have one key.
    """
    keys = item_keys(ids.to_pylist())
    for a, b in colliding_keys(keys)[:1]:
        raise DataError(f"items {ids[a].as_py()!r} and {ids[b].as_py()!r} have one 64-bit key; rename one of them")
    row = to_numpy(pc.index_in(ids, value_set=one_array(items[ITEM])))
    used = items.select(list(dict.fromkeys([TITLE, *columns])))
    shutil.rmtree(out, ignore_errors=True)  # parts of a run that was cut off
    schema = items_schema(ids.type)
    without_text = 0
    for number, start in enumerate(range(0, len(ids), part_rows)):
        stop = min(start + part_rows, len(ids))
        rows = used.take(pa.array(row[start:stop]))
        text = render(rows, columns)
        without_text += int(pc.sum(pc.equal(text, "")).as_py())
        arrays = [
            pa.array(np.arange(start, stop, dtype=np.int32)),
            ids.slice(start, stop - start),
            pa.array(keys[start:stop]),
            clean(rows[TITLE]),
            text,
            pa.array(popularity[start:stop]),
        ]
        write_table(out / part_name(number), pa.table(arrays, schema=schema))
    return without_text


def _write_sequences(
    events: _Events, lengths: Ints, n_train: NDArray[np.int32], n_val: NDArray[np.int32], out: Path
) -> None:
    # Row groups of bounded size: an Arrow list counts its values in 32 bits.
    schema = sequences_schema(events.users.type)
    ends = np.cumsum(lengths)
    pieces, user, limit = [], 0, 1 << 28
    while user < len(lengths):
        start = int(ends[user - 1]) if user else 0
        last = max(int(np.searchsorted(ends, start + limit, side="right")), user + 1)
        offsets = np.concatenate([[0], ends[user:last] - start]).astype(np.int32)
        span = slice(start, int(ends[last - 1]))
        arrays = [
            events.users.slice(user, last - user),
            pa.ListArray.from_arrays(offsets, pa.array(events.item[span].astype(np.int32))),
            pa.ListArray.from_arrays(offsets, pa.array(events.ts[span])),
            pa.array(n_train[user:last]),
            pa.array(n_val[user:last]),
        ]
        pieces.append(pa.table(arrays, schema=schema))
        user = last
    write_table(out / SEQUENCES_FILE, pa.concat_tables(pieces))


def _stats(
    events: _Events, lengths: Ints, n_train: NDArray[np.int32], n_val: NDArray[np.int32], popularity: Ints
) -> dict[str, Any]:
    users, items, interactions = len(lengths), len(popularity), len(events.user)
    return {
        "users": users,
        "items": items,
        "interactions": interactions,
        "mean_length": round(interactions / users, 4),
        "max_length": int(lengths.max()),
        "density": round(interactions / (users * items), 8),
        "first_ts": int(events.ts.min()),
        "last_ts": int(events.ts.max()),
        "cold_items": int((popularity == 0).sum()),
        "split": {
            "train": int(n_train.sum()),
            "validation": int((n_val - n_train).sum()),
            "test": int((lengths - n_val).sum()),
        },
    }

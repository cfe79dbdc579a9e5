"""A store's first histories from past interactions, made in shards of users, anywhere; then the log takes over.

Each shard is folded in memory as the history writer would have done it, and comes back as values that a store takes as
they are. The positions go in last: a store without them is one that is not finished.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from hymirec.config import HistoryConfig
from hymirec.errors import ConfigError, DataError
from hymirec.history.archive import is_empty
from hymirec.history.interactions import SOURCE, entries_of, read_interactions
from hymirec.history.memory import MemoryStore
from hymirec.history.store import PartitionBatch, Position, RawStore

SHARD, FILE, ROW = "shard", "file", "row"
VALUES = pa.schema(
    [
        pa.field("user", pa.string()),
        pa.field("keys", pa.list_(pa.binary())),
        pa.field("values", pa.list_(pa.binary())),
        # A worker's own error comes back as a row: of an exception Ray Data keeps only the text of its stack trace.
        pa.field("error", pa.string()),
    ]
)


def sharded(path: Path, number: int, shards: int) -> pa.Table:
    """The rows of one file, with the shard of their user and their place among all rows. Raises DataError."""
    table = read_interactions(path)
    names = table["user"].combine_chunks().dictionary_encode()
    shard_N = np.array([_shard(name, shards) for name in names.dictionary.to_pylist()], np.int32)
    indices = names.indices.fill_null(0).to_numpy()
    table = table.append_column(SHARD, pa.array(shard_N[indices] if len(indices) else np.empty(0, np.int32)))
    table = table.append_column(FILE, pa.array(np.full(table.num_rows, number, np.int32)))
    return table.append_column(ROW, pa.array(np.arange(table.num_rows)))


def _shard(user: str, shards: int) -> int:
    return xxhash.xxh3_64_intdigest(user.encode()) % shards


def fold_shard(table: pa.Table, history: Mapping[str, Any]) -> pa.Table:
    """The values of all users of a shard, with the bounds of a history config; or one row that tells the error."""
    ordered = table.sort_by([(FILE, "ascending"), (ROW, "ascending")])
    bounds = {name: history[name] for name in ("max_events", "dedup_horizon", "max_age_days")}
    store = MemoryStore(HistoryConfig(store="memory", **bounds))
    try:
        entries = list(entries_of(ordered))
    except DataError as e:
        return pa.Table.from_pylist([{"error": str(e)}], VALUES)
    store.apply(PartitionBatch(SOURCE, SOURCE, 0, None, len(entries), entries))
    dumps = ((user, store.dump(user)) for user in store.users())
    rows = [{"user": user, "keys": list(dump), "values": list(dump.values())} for user, dump in dumps]
    return pa.Table.from_pylist(rows, VALUES)


def take_in(store: RawStore, tables: Iterable[pa.Table]) -> int:
    """Put folded shards into an empty store; returns the number of users. Raises DataError for a shard's error."""
    if not is_empty(store):
        raise ConfigError("the new store holds histories; name a place where there is nothing, or remove what is there")
    users = 0
    for table in tables:
        if told := pc.drop_null(table["error"]).to_pylist():
            raise DataError(told[0])
        for row in table.to_pylist():
            store.restore(row["user"], dict(zip(row["keys"], row["values"], strict=True)))
            users += 1
    return users


def hand_over(store: RawStore, topic: str, topic_id: str, positions: Mapping[int, int]) -> None:
    """Say where the log takes over: the history writer begins there."""
    for partition, offset in positions.items():
        store.reset_position(topic, partition, Position(topic_id, offset))

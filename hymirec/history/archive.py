"""Histories out of a store and into another one, as Parquet: a copy that can be read, and loses nothing.

A directory of `histories.parquet`, one row a user with lists in order of appending; `tombstones.parquet`, keys and
values as stored, since ids of erased users are not kept; and a manifest, written last, with the positions of a topic.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hymirec.artifacts import verify, write_manifest
from hymirec.errors import ArtifactDamagedError
from hymirec.history.pages import event_ids, head_key, kept_columns, read_pages, user_values
from hymirec.history.record import PAGE_RECORDS, RECORD, Head
from hymirec.history.store import Position, RawStore

KIND = "histories"
FORMAT = 1
# Users of a row group: what is held in memory at once.
GROUP_USERS = 5_000
SCHEMA = pa.schema(
    [
        pa.field("user", pa.string(), nullable=False),
        pa.field("item_key", pa.list_(pa.uint64()), nullable=False),
        pa.field("ts", pa.list_(pa.uint32()), nullable=False),
        pa.field("action", pa.list_(pa.uint8()), nullable=False),
        # Of the newest events only, as many as the store remembers.
        pa.field("event_hash", pa.list_(pa.uint64()), nullable=False),
        # Older events that the bounds of a history have removed.
        pa.field("removed", pa.int64(), nullable=False),
    ]
)
TOMBSTONES = pa.schema([pa.field("key", pa.binary(), nullable=False), pa.field("value", pa.binary(), nullable=False)])


def export_store(store: RawStore, topic: str, directory: Path) -> int:
    """Write everything of a store, and the positions of one topic; returns the number of users.

    The directory must not exist. Raises StoreDamagedError for a user whose pages are not whole, and leaves nothing.
    """
    work = directory.with_name(f".{directory.name}.work")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    positions = store.positions(topic)
    count, users = 0, store.users()
    try:
        with pq.ParquetWriter(work / "histories.parquet", SCHEMA, compression="zstd") as writer:
            while names := list(islice(users, GROUP_USERS)):
                rows = [_row(name, store.dump(name)) for name in names]
                writer.write_table(pa.Table.from_pylist(rows, SCHEMA))
                count += len(names)
        buried = [{"key": key, "value": value} for key, value in dict(store.tombstones()).items()]
        pq.write_table(pa.Table.from_pylist(buried, TOMBSTONES), work / "tombstones.parquet")
        stored = {str(partition): [at.topic_id, at.offset] for partition, at in positions.items()}
        write_manifest(work, KIND, info={"format": FORMAT, "topic": topic, "positions": stored, "users": count})
        work.rename(directory)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise
    return count


def import_store(directory: Path, store: RawStore) -> int:
    """Put an export into an empty store, positions last; returns the number of users.

    Raises ArtifactMissingError or ArtifactDamagedError before anything is written.
    """
    info = _checked(directory)
    count = 0
    for batch in pq.ParquetFile(directory / "histories.parquet").iter_batches(batch_size=GROUP_USERS):
        for row in batch.to_pylist():
            store.restore(row["user"], _values(row))
            count += 1
    for batch in pq.ParquetFile(directory / "tombstones.parquet").iter_batches(batch_size=GROUP_USERS):
        store.bury({row["key"]: row["value"] for row in batch.to_pylist()})
    for partition, (topic_id, offset) in info["positions"].items():
        store.reset_position(info["topic"], int(partition), Position(topic_id, offset))
    return count


def _checked(directory: Path) -> dict[str, Any]:
    manifest = verify(directory)
    if manifest.kind != KIND or manifest.info.get("format") != FORMAT:
        raise ArtifactDamagedError(
            f"{directory} holds {manifest.kind!r}, format {manifest.info.get('format')}; expected {KIND!r}, format "
            f"{FORMAT}. Export again with this program"
        )
    return manifest.info


def _row(user_id: str, values: Mapping[bytes, bytes]) -> dict[str, Any]:
    """A user's values as a row. Raises StoreDamagedError."""
    name = f"user {user_id!r}"
    head = Head.unpack(values[head_key(user_id)], f"head of {name}")
    pages = read_pages(lambda wanted: [*map(values.get, wanted)], user_id, head)
    keys, times, actions = kept_columns(user_id, head, pages)
    removed = head.first_page * PAGE_RECORDS
    return {
        "user": user_id,
        "item_key": keys,
        "ts": times,
        "action": actions,
        "event_hash": event_ids(user_id, head, values),
        "removed": removed,
    }


def _values(row: Mapping[str, Any]) -> dict[bytes, bytes]:
    """The row's values, as a store would have them into which nothing but these events was ever appended."""
    records = np.empty(len(row["item_key"]), RECORD)
    records["key"], records["ts"], records["action"] = row["item_key"], row["ts"], row["action"]
    return user_values(row["user"], row["removed"] // PAGE_RECORDS, records, np.array(row["event_hash"], np.uint64))


def is_empty(store: RawStore) -> bool:
    """Whether nobody has a history here."""
    users: Iterator[str] = store.users()
    return next(users, None) is None

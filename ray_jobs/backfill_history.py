"""Build a store's histories from past interactions, in a new place, for the event log to go on from a position.

    python ray_jobs/backfill_history.py --config serve_apps/configs/recommend.yaml --interactions PAST --to NEW

PAST is a Parquet file or a directory of them (user, item, ts[, action][, event_id]), on storage that all nodes share.
NEW is the directory of a RocksDB, or redis://host:port/db, with nothing in it; the service goes on with the old store
meanwhile. The log takes over at its end of now, or where `--at P=OFFSET` says: what it holds from there on must not be
in PAST, unless with its event ids. When the job is done, put NEW into the service's YAML and deploy it.
"""

from __future__ import annotations

import sys
from contextlib import closing
from pathlib import Path
from typing import Annotated

import pyarrow as pa
import ray.data
import typer

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from hymirec.config import ComputeConfig, HistoryConfig
from hymirec.errors import ConfigError
from hymirec.history import open_store
from hymirec.history.backfill import SHARD, fold_shard, hand_over, sharded, take_in
from hymirec.history.interactions import checked_columns, interaction_files
from hymirec.history_cli import offsets_of, service_of
from hymirec.streaming import open_log
from ray_jobs.cluster import connect
from ray_jobs.console import Screen, spoken_errors

SHARDS = 64


def backfill(history: HistoryConfig, interactions: Path, shards: int) -> int:
    """Fill the store of `history` on the cluster that is connected; returns the number of users.

    Raises ConfigError when the store is not empty, DataError when the interactions cannot be used.
    """
    files = interaction_files(interactions)
    for file in files:
        checked_columns(file)
    rows = [{"path": str(file.absolute()), "number": number} for number, file in enumerate(files)]
    read = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
        _read, batch_size=1, batch_format="pyarrow", fn_kwargs={"shards": shards}
    )
    folded = read.groupby(SHARD).map_groups(
        fold_shard, batch_format="pyarrow", fn_kwargs={"history": history.model_dump()}
    )
    # Closing the store puts it on disk.
    with closing(open_store(history.model_copy(update={"sync": False}))) as store:
        return take_in(store, folded.iter_batches(batch_size=None, batch_format="pyarrow"))


def _read(batch: pa.Table, shards: int) -> pa.Table:
    """Runs in a task: the rows of the files in the batch."""
    tables = [sharded(Path(row["path"]), row["number"], shards) for row in batch.to_pylist()]
    return pa.concat_tables(tables, promote_options="permissive")


def placed_at(history: HistoryConfig, place: str) -> HistoryConfig:
    """The same store's bounds in another place."""
    if "://" in place:
        return history.model_copy(update={"store": "redis", "url": place, "path": None})
    path = Path(place).expanduser().absolute()
    if path.exists() and any(path.iterdir()):
        raise ConfigError(f"{path} is not empty; name a new directory, or remove what a broken-off job left there")
    return history.model_copy(update={"store": "rocksdb", "path": str(path), "url": None})


def run(config: Path, interactions: Path, to: str, at: list[str], shards: int) -> list[str]:
    """Everything; returns what is to be said."""
    service = service_of(config)
    history, stream = placed_at(service.history, to), service.stream
    with closing(open_log(stream).source(group=False)) as source:
        topic_id, begin = source.topic_id(), offsets_of(at)
        positions = {p: begin.get(p, source.end(p)) for p in source.assigned()}
        if unknown := sorted(set(begin) - set(positions)):
            raise ConfigError(f"--at names the partitions {unknown}, the topic has {sorted(positions)}")
    connect(ComputeConfig())
    users = backfill(history, interactions, shards)
    with closing(open_store(history)) as store:
        hand_over(store, stream.topic, topic_id, positions)
    starts = " ".join(f"--from {partition}={offset}" for partition, offset in positions.items())
    return [
        f"{users} histories in {to}; the log takes over at {positions}",
        f"with {to} in the YAML: hymirec history verify --replay --config {config} --parquet {interactions} {starts}",
    ]


def main(
    config: Annotated[Path, typer.Option(help="Serve YAML of the service (or its plain values)")],
    interactions: Annotated[Path, typer.Option(help="Parquet file or directory of past interactions")],
    to: Annotated[str, typer.Option(help="the new store: a directory, or redis://host:port/db")],
    at: Annotated[list[str] | None, typer.Option(help="P=OFFSET where the log takes over; again a partition")] = None,
    shards: Annotated[int, typer.Option(help="shards of users; one must fit into a worker's memory", min=1)] = SHARDS,
) -> None:
    """Build a store from past interactions."""
    screen = Screen()
    with spoken_errors(screen, Path("/tmp/ray/session_latest/logs")):
        lines = run(config, interactions, to, at or [], shards)
    for line in lines:
        screen.console.print(line, markup=False, soft_wrap=True)


if __name__ == "__main__":
    typer.run(main)

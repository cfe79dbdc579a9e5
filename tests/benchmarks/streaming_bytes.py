"""What an event takes on disk in RocksDB, with real histories: its record, and with it the id that keeps it unique."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench_kit import Figure, main, value
from past_events import past_events

from hymirec.config import HistoryConfig
from hymirec.history import Entry, PartitionBatch, open_store

BATCH = 2_000


def table_bytes(events: list[Entry], directory: Path, horizon: int, kinds: bytes) -> float:
    """Bytes an event of the table files of a store that was closed, with keys of these kinds only."""
    written = open_store(
        HistoryConfig(store="rocksdb", path=str(directory / "written"), sync=False, dedup_horizon=horizon)
    )
    position = None
    for start in range(0, len(events), BATCH):
        part = events[start : start + BATCH]
        written.apply(PartitionBatch("events", "id", 0, position, part[-1].offset + 1, part))
        position = part[-1].offset + 1
    copied = open_store(HistoryConfig(store="rocksdb", path=str(directory / "copied"), sync=False))
    for user in written.users():
        copied.restore(user, {key: content for key, content in written.dump(user).items() if key[0] in kinds})
    written.close()
    copied.close()
    return sum(path.stat().st_size for path in (directory / "copied").glob("*.sst")) / len(events)


def figures() -> Iterator[Figure]:
    """Records (the ids of the last page lie in the head with it), and all that is kept with two horizons of ids."""
    events = past_events()
    users = len({event.user_id for event in events})
    name = f"bytes an event, {len(events):,} events of {users:,} users"
    layouts = (
        ("records and ids of the last page", 1_024, b"mh"),
        ("records and 1,024 event ids a user", 1_024, b"mhd"),
    )
    for what, horizon, kinds in (*layouts, ("records and 64 event ids a user", 64, b"mhd")):
        with tempfile.TemporaryDirectory() as directory:
            found = table_bytes(events, Path(directory), horizon, kinds)
        yield value(f"{name}: {what}", found, 0, 8, "bytes", at_least=False)


if __name__ == "__main__":
    main(figures)

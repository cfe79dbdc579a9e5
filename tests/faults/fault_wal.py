"""RocksDB's files cut short or with a flipped bit: what is opened again is a whole number of batches, or refused."""

from __future__ import annotations

import os
import random
import shutil
import signal
from collections import Counter
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from fault_stream import messages
from fault_writer import PROCESSES

from hymirec.config import HistoryConfig
from hymirec.errors import EventError, StoreDamagedError, StoreUnavailableError, UnsupportedFormatError
from hymirec.history import Entry, PartitionBatch
from hymirec.history.memory import MemoryStore
from hymirec.history.rocksdb import RocksDBStore
from hymirec.streaming import decode

BATCHES = 60
FLUSHED = 20
TOPIC = "events"
Dump = dict[bytes, bytes]


def batches(seed: int) -> list[PartitionBatch]:
    """A seeded stream in batches of 1 to 30 messages."""
    rng, stream = random.Random(seed), messages(seed, users=20)
    found: list[PartitionBatch] = []
    offset = 0
    for _ in range(BATCHES):
        start, entries = offset, list[Entry]()
        for _, value in islice(stream, rng.randint(1, 30)):
            offset += 1
            try:
                entries.append(decode(value, offset - 1, 1_700_000_000_000).entry)
            except EventError:
                continue
        found.append(PartitionBatch(TOPIC, "id", 0, start or None, offset, entries))
    return found


def fill(history: HistoryConfig, seed: int) -> None:
    """Apply all batches and die. The first ones are in a table file, the others in the write-ahead log only."""
    store = RocksDBStore(history)
    for i, batch in enumerate(batches(seed)):
        if i == FLUSHED:
            store.close()
            store = RocksDBStore(history)
        store.apply(batch)
    os.kill(os.getpid(), signal.SIGKILL)


@dataclass(frozen=True)
class Wreck:
    """A killed store, and what it must hold, byte for byte, after each number of batches."""

    history: HistoryConfig
    batches: list[PartitionBatch]
    dumps: list[Dump]

    def files(self, *endings: str) -> list[Path]:
        """Its files with these endings that hold anything."""
        path = Path(self.history.path or "")
        return sorted(p for e in endings for p in path.glob(f"*{e}") if p.stat().st_size)


def wreck(directory: Path, seed: int) -> Wreck:
    """Fill a store in a process that kills itself."""
    history = HistoryConfig(store="rocksdb", path=str(directory / "store"), max_events=100, dedup_horizon=16)
    process = PROCESSES.Process(target=fill, args=(history, seed))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    oracle = MemoryStore(history)
    made = batches(seed)
    dumps = [dict(oracle._scan(b""))]
    for batch in made:
        oracle.apply(batch)
        dumps.append(dict(oracle._scan(b"")))
    return Wreck(history, made, dumps)


def truncated(wreck: Wreck, copy: Path, rng: random.Random) -> str:
    """Cut the write-ahead log anywhere, and open."""
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(wreck.history.path or "", copy)
    (log,) = wreck.files(".log")
    os.truncate(copy / log.name, rng.randrange(log.stat().st_size))
    return _open_again(wreck, copy, whole=FLUSHED)


def flipped(wreck: Wreck, copy: Path, rng: random.Random, *endings: str) -> str:
    """Flip one bit of one file, and open."""
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(wreck.history.path or "", copy)
    path = copy / rng.choice(wreck.files(*endings)).name
    data = bytearray(path.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(bytes(data))
    return _open_again(wreck, copy, whole=0)


def _open_again(wreck: Wreck, copy: Path, whole: int) -> str:
    """ "refused", "prefix" or "whole"; what must not be begins with "wrong"."""
    history = wreck.history.model_copy(update={"path": str(copy), "sync": False})
    try:
        store = RocksDBStore(history)
    except (StoreDamagedError, StoreUnavailableError):
        return "refused at opening"
    try:
        found = dict(store._scan(b""))
        if found not in wreck.dumps[whole:]:
            return f"wrong: {len(found)} keys, not the state after any batch"
        count = wreck.dumps.index(found)
        # What is missing is still in the event log, and is applied from the position on.
        for batch in wreck.batches[count:]:
            store.apply(batch)
        if dict(store._scan(b"")) != wreck.dumps[-1]:
            return "wrong: did not go on to the whole"
        return "whole" if count == BATCHES else "prefix"
    except (StoreDamagedError, StoreUnavailableError, UnsupportedFormatError):
        return "refused at reading"
    finally:
        store.close()


def trials(directory: Path, seed: int, truncations: int, flips: int) -> dict[str, Counter[str]]:
    """So many of each; what came of them."""
    rng = random.Random(seed)
    ruin = wreck(directory, seed)
    copy = directory / "copy"
    found = {"cut write-ahead log": Counter(truncated(ruin, copy, rng) for _ in range(truncations))}
    kinds = {"bit of the log": ".log", "bit of a table": ".sst", "bit of the manifest": "MANIFEST-*"}
    for name, ending in kinds.items():
        share = flips // len(kinds)
        found[name] = Counter(flipped(ruin, copy, rng, ending) for _ in range(share))
    return found

"""A store against the fold of its log: what was lost, doubled or reordered, with the dead letters."""

from __future__ import annotations

import base64
import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from patience import happens

from hymirec.config import HistoryConfig
from hymirec.errors import EventError
from hymirec.history import HistoryStore, Position, open_store
from hymirec.history.redis import RedisStore
from hymirec.history.rocksdb import RocksDBStore
from hymirec.history.verify import Placed, Row, fold
from hymirec.streaming import Message, decode
from hymirec.streaming.source import EventSource

Letter = tuple[int, int, bytes]
Cut = Callable[[int, str], int]
READ_SECONDS = 20.0


def open_reader(history: HistoryConfig) -> HistoryStore | None:
    """The store, unchanged by looking at it; None while there is none."""
    if history.store != "rocksdb":
        return open_store(history)
    if not (Path(history.path or "") / "CURRENT").exists():
        return None
    return RocksDBStore(history, read_only=True)


def read_on(source: EventSource, have: list[Message], partition: int, end: int) -> None:
    """Append the messages from where `have` ends to `end`."""
    if len(have) >= end:
        return
    for waiting in source.assigned():
        source.pause(waiting)
    source.seek(partition, len(have))

    def read() -> bool:
        have.extend(source.poll(0.2, 10_000))
        return len(have) >= end

    assert happens(read, READ_SECONDS), f"partition {partition} was not read to {end} in {READ_SECONDS:.0f} s"


def place(messages: Iterable[Message], topic_id: str) -> tuple[list[Placed], list[Letter]]:
    """Usable messages, and the dead letters that the others become."""
    placed: list[Placed] = []
    letters: list[Letter] = []
    for message in messages:
        try:
            placed.append(
                Placed(topic_id, message.partition, decode(message.value, message.offset, message.log_ms).entry)
            )
        except EventError:
            letters.append((message.partition, message.offset, message.value or b""))
    return placed, letters


def cut_of(store: HistoryStore, topic: str) -> tuple[dict[int, Position], Cut]:
    """Positions of a topic, and up to where a user's events of a partition are in the store.

    In Redis each shard of users has a position of its own, and the partition's is the lowest.
    """
    positions = store.positions(topic)
    if not isinstance(store, RedisStore):
        return positions, lambda partition, user: positions[partition].offset if partition in positions else 0
    known = {partition: shards for (name, partition), shards in store._known.items() if name == topic}

    def cut(partition: int, user: str) -> int:
        position = known[partition][store._shard(user)] if partition in known else None
        return 0 if position is None else position.offset

    return positions, cut


def compare(store: HistoryStore, placed: Sequence[Placed], history: HistoryConfig) -> Counter[str]:
    """How many events of all users are lost and doubled, and how many users have them in another order."""
    faults: Counter[str] = Counter()
    for user, expected in fold(placed, history.max_events, history.dedup_horizon).items():
        kept = store.read(user)
        found: list[Row] = list(zip(kept.ts.tolist(), kept.keys.tolist(), kept.actions.tolist(), strict=True))
        if found != expected:
            lost, doubled = Counter(expected) - Counter(found), Counter(found) - Counter(expected)
            faults["lost"] += lost.total()
            faults["doubled"] += doubled.total()
            faults["reordered"] += not lost and not doubled
    return +faults


def compare_letters(found: Sequence[Letter], expected: Sequence[Letter], final: bool) -> Counter[str]:
    """A letter may be there before its position; at the end there is exactly one of each."""
    counts = Counter(found)
    faults = Counter(
        {
            "letters lost": (Counter(expected) - counts).total(),
            "letters doubled": (counts - Counter(set(found))).total(),
            "letters too many": len(set(found) - set(expected)) if final else 0,
        }
    )
    return +faults


def file_letters(path: Path) -> list[Letter]:
    """Dead letters of the embedded log; a line that a crash left torn is none."""
    found = []
    for line in path.read_bytes().splitlines() if path.exists() else ():
        try:
            letter = json.loads(line)
        except ValueError:
            continue
        value = base64.b64decode(letter["value_base64"]) if "value_base64" in letter else letter["value"].encode()
        found.append((letter["partition"], letter["offset"], value))
    return found


def topic_letters(source: EventSource) -> list[Letter]:
    """Dead letters of a Kafka topic."""
    messages: list[Message] = []
    for partition in source.assigned():
        read_on(source, messages, partition, source.end(partition))
    headers = [dict(message.headers) for message in messages]
    return [
        (int(header["partition"]), int(header["offset"]), message.value or b"")
        for header, message in zip(headers, messages, strict=True)
    ]

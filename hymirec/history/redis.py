"""The cluster store: Redis or Valkey.

Users hash to a fixed number of shards, and all keys of a shard carry its hash tag, so that a shard's keys lie on one
node of a cluster and can change in one MULTI. Each (shard, partition) has a position of its own, in the same
transaction as the shard's part of a batch. A batch is therefore several transactions, each atomic with its position: a
crash between two leaves some shards ahead, the consumer starts again at the lowest position, and shards that are ahead
skip what they have.

Two fences. WATCH on the position: a late writer's transaction fails. And a shard's position must be the one that this
process knows: a server that came back without its last writes (a failover, `appendfsync everysec`) is found even when
the client reconnected silently, and the consumer reads the positions again and fills the hole from the log.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import redis

from hymirec.config import HistoryConfig
from hymirec.errors import PositionConflictError, StoreUnavailableError
from hymirec.history.append import Appender
from hymirec.history.pages import (
    Bounds,
    Changes,
    empty_history,
    every_page,
    found_pages,
    head_key,
    history_of,
    record_keys,
    tombstone_key,
)
from hymirec.history.positions import check_expected, check_topic, pack_position, unpack_position
from hymirec.history.record import Head
from hymirec.history.redis_keys import RedisKeys
from hymirec.history.store import ApplyResult, Entry, History, PartitionBatch, Position

ATTEMPTS = 8
# As commands: redis-py's pipelines of a cluster refuse these methods, in whatever slots the keys lie.
MGET, EVAL = "MGET", "EVAL"
MOVE_POSITION = (
    "if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('SET', KEYS[1], ARGV[2]) return 1 end return 0"
)
START_POSITION = "return redis.call('SET', KEYS[1], ARGV[1], 'NX') and 1 or 0"

Place = tuple[str, int]


class RedisStore(RedisKeys):
    """A `HistoryStore` on a Redis server."""

    def __init__(self, config: HistoryConfig) -> None:
        super().__init__(config)
        self._bounds = Bounds.of(config)
        self._known: dict[Place, list[Position | None]] = {}
        self._next: dict[Place, Position | None] = {}

    def _position_key(self, shard: int, place: Place) -> bytes:
        return self._tag(shard) + b"p" + place[0].encode() + b":%d" % place[1]

    def _partitions_key(self, topic: str) -> bytes:
        return b"{hymirec}partitions:" + topic.encode()

    def _learn(self, place: Place) -> Position | None:
        """Read the positions of all shards; the lowest is the partition's, None while a shard has none."""
        pipe = self._redis.pipeline(transaction=False)
        for shard in range(self._config.shards):
            pipe.get(self._position_key(shard, place))
        name = f"position of {place[0]}[{place[1]}]"
        known = [None if value is None else unpack_position(value, name) for value in pipe.execute()]
        stored = [position for position in known if position is not None]
        lowest = min(stored, key=lambda position: position.offset) if len(stored) == len(known) else None
        self._known[place], self._next[place] = known, lowest
        return lowest

    def positions(self, topic: str) -> dict[int, Position]:
        """Lowest position over the shards: everything before it is applied everywhere."""
        with self._lock, self._guarded():
            partitions = sorted(int(p) for p in self._redis.smembers(self._partitions_key(topic)))
            found = {partition: self._learn((topic, partition)) for partition in partitions}
        return {partition: position for partition, position in found.items() if position is not None}

    def apply(self, batch: PartitionBatch) -> ApplyResult:
        """See `HistoryStore.apply`; a shard that is ahead of `expected` skips what it has."""
        by_shard: dict[int, list[Entry]] = {}
        for entry in batch.entries:
            by_shard.setdefault(self._shard(entry.user_id), []).append(entry)
        place = (batch.topic, batch.partition)
        result = ApplyResult()
        with self._lock:
            try:
                with self._guarded():
                    if place not in self._next:
                        self._redis.sadd(self._partitions_key(batch.topic), batch.partition)
                        self._learn(place)
                    # Of all shards: a reset that was broken off left some of them at the old topic.
                    for position in self._known[place]:
                        check_topic(batch, position)
                    check_expected(batch, self._next[place])
                    for shard, entries in sorted(by_shard.items()):
                        _add(result, self._apply_shard(shard, batch, entries))
                    self._move(batch, [shard for shard in range(self._config.shards) if shard not in by_shard])
            except BaseException:
                # Whatever went wrong, only the server knows now how far each shard is.
                self._known.pop(place, None)
                self._next.pop(place, None)
                raise
            self._next[place] = Position(batch.topic_id, batch.next_offset)
        return result

    def _apply_shard(self, shard: int, batch: PartitionBatch, entries: Sequence[Entry]) -> ApplyResult:
        place = (batch.topic, batch.partition)
        key, tag = self._position_key(shard, place), self._tag(shard)
        known = self._known[place][shard]
        if known is not None and known.offset >= batch.next_offset:
            return ApplyResult()
        fresh = [entry for entry in entries if known is None or entry.offset >= known.offset]
        users = {entry.user_id for entry in fresh}
        # A user may have events in two partitions (after some were added), so another writer may change the same user.
        watched = [key, *(tag + k for user in users for k in (head_key(user), tombstone_key(user)))]
        moved = Position(batch.topic_id, batch.next_offset)
        for _ in range(ATTEMPTS):
            with self._redis.pipeline(transaction=True) as pipe:
                pipe.watch(*watched)
                self._fence(batch, shard, known, pipe.get(key))
                changes, result = self._changes(pipe, tag, batch, fresh)
                pipe.multi()
                for gone in changes.deletes:
                    pipe.delete(tag + gone)
                for name, content in changes.puts.items():
                    pipe.set(tag + name, content)
                pipe.set(key, pack_position(moved))
                try:
                    pipe.execute()
                except redis.exceptions.WatchError:
                    continue
            self._known[place][shard] = moved
            return result
        raise _conflict(batch, shard, f"its users changed {ATTEMPTS} times while this batch was applied")

    def _changes(
        self, pipe: Any, tag: bytes, batch: PartitionBatch, entries: Sequence[Entry]
    ) -> tuple[Changes, ApplyResult]:
        def get_many(keys: Sequence[bytes]) -> Sequence[bytes | None]:
            values: list[bytes | None] = pipe.execute_command(MGET, *(tag + key for key in keys)) if keys else []
            return values

        appender = Appender(get_many, self._bounds)
        result = appender.apply(batch, entries)
        return appender.write(), result

    def _fence(self, batch: PartitionBatch, shard: int, known: Position | None, value: bytes | None) -> None:
        stored = None if value is None else unpack_position(value, f"position of {batch.topic}")
        check_topic(batch, stored)
        if stored != known:
            have = "none" if stored is None else stored.offset
            want = "none" if known is None else known.offset
            raise _conflict(batch, shard, f"expected position {want}, the store has {have}")

    def _move(self, batch: PartitionBatch, shards: Sequence[int]) -> None:
        """Move the position of shards that the batch has nothing for; one round trip for all."""
        place = (batch.topic, batch.partition)
        moved = Position(batch.topic_id, batch.next_offset)
        pipe = self._redis.pipeline(transaction=False)
        behind: list[int] = []
        for shard in shards:
            key, known = self._position_key(shard, place), self._known[place][shard]
            if known is None:
                pipe.execute_command(EVAL, START_POSITION, 1, key, pack_position(moved))
            elif known.offset < moved.offset:
                check_topic(batch, known)
                pipe.execute_command(EVAL, MOVE_POSITION, 1, key, pack_position(known), pack_position(moved))
            else:
                continue
            behind.append(shard)
        for shard, done in zip(behind, pipe.execute() if behind else [], strict=True):
            if not done:
                raise _conflict(batch, shard, "the position is not the one this writer knows")
            self._known[place][shard] = moved

    def flush(self, due: bool = False) -> None:
        """See `HistoryStore.flush`: each batch was written when it was applied."""

    def written(self, topic: str) -> dict[int, int]:
        """See `HistoryStore.written`."""
        with self._lock:
            known = list(self._next.items())
        return {place[1]: at.offset for place, at in known if place[0] == topic and at is not None}

    def reset_position(self, topic: str, partition: int, position: Position | None) -> None:
        """See `HistoryStore.reset_position`; all shards alike."""
        place = (topic, partition)
        with self._lock, self._guarded():
            self._redis.sadd(self._partitions_key(topic), partition)
            for shard in range(self._config.shards):
                if position is None:
                    self._redis.delete(self._position_key(shard, place))
                else:
                    self._redis.set(self._position_key(shard, place), pack_position(position))
            self._known.pop(place, None)
            self._next.pop(place, None)

    def read(self, user_id: str, limit: int | None = None) -> History:
        """See `HistoryStore.read`: head and pages are read in one command, repeated if the head moved before it."""
        tag = self._tag(self._shard(user_id))
        name = tag + head_key(user_id)
        with self._guarded():
            for _ in range(ATTEMPTS):
                value = self._redis.get(name)
                if value is None:
                    return empty_history()
                head = Head.unpack(value, f"head of user {user_id!r}")
                keys = [tag + key for key in record_keys(user_id, every_page(head))]
                now, *values = self._redis.mget([name, *keys])
                if now == value:
                    pages = found_pages(user_id, values, head.records)
                    return history_of(user_id, head, pages, self._bounds, limit)
        raise StoreUnavailableError(f"the history of user {user_id!r} changed {ATTEMPTS} times while it was read")


def _add(total: ApplyResult, part: ApplyResult) -> None:
    total.applied += part.applied
    total.duplicates += part.duplicates
    total.erased += part.erased
    total.suppressed += part.suppressed
    total.users += part.users


def _conflict(batch: PartitionBatch, shard: int, why: str) -> PositionConflictError:
    return PositionConflictError(
        f"{batch.topic}[{batch.partition}], shard {shard}: {why}; another writer owns this partition, or the server "
        "lost writes. Read the position again and go on from there"
    )

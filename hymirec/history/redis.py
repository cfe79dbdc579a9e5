"""The cluster store: Redis or Valkey.

Users hash to a fixed number of shards, and all keys of a shard carry its hash tag, so that a shard's keys lie on one
node of a cluster and can change in one MULTI. Each (shard, partition) has a position of its own, in the same
transaction as the shard's part of a batch. A batch is therefore several transactions, each atomic with its position: a
crash between two leaves some shards ahead, the consumer starts again at the lowest position, and shards that are ahead
skip what they have. WATCH on the position is the fence: a late writer's transaction fails, it reads the position again
and finds its events already there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import redis
import xxhash

from hymirec.config import HistoryConfig
from hymirec.errors import PositionConflictError, StoreUnavailableError
from hymirec.history.pages import Appender, Changes, empty_history, head_key, history_of, page_keys
from hymirec.history.positions import check_topic, pack_position, unpack_position
from hymirec.history.record import Head
from hymirec.history.store import ApplyResult, Entry, History, PartitionBatch, Position

ATTEMPTS = 8
# Shards that a batch has nothing for are moved along when they lag this many messages, so that the lowest position,
# where a consumer starts, stays near the newest.
IDLE_LAG = 1_000
CONNECTION_ERRORS = (redis.exceptions.ConnectionError, redis.exceptions.TimeoutError)


class RedisStore:
    """A `HistoryStore` on a Redis server or cluster."""

    def __init__(self, config: HistoryConfig) -> None:
        assert config.url is not None
        self._config = config
        self._url = config.url
        # The client's own types admit text, which it returns only when asked to decode.
        self._redis: Any = redis.Redis.from_url(config.url, socket_timeout=5, socket_connect_timeout=5)
        self._idle: dict[tuple[str, int], int] = {}
        try:
            policy = self._redis.config_get("maxmemory-policy").get("maxmemory-policy", "noeviction")
        except redis.exceptions.ResponseError:
            # Managed servers forbid CONFIG; their policy is the operator's to check.
            policy = "noeviction"
        except CONNECTION_ERRORS as e:
            raise StoreUnavailableError(f"Redis at {config.url} cannot be reached: {e}") from e
        if policy != "noeviction":
            raise StoreUnavailableError(
                f"Redis at {config.url} may evict histories (maxmemory-policy {policy}); "
                "run `CONFIG SET maxmemory-policy noeviction`"
            )

    def _shard(self, user_id: str) -> int:
        return xxhash.xxh3_64_intdigest(user_id.encode()) % self._config.shards

    @staticmethod
    def _tag(shard: int) -> bytes:
        return b"{s%d}" % shard

    def _position_key(self, shard: int, topic: str, partition: int) -> bytes:
        return self._tag(shard) + b"p" + topic.encode() + b":%d" % partition

    def _partitions_key(self, topic: str) -> bytes:
        return b"{hymirec}partitions:" + topic.encode()

    def positions(self, topic: str) -> dict[int, Position]:
        """Lowest position over the shards: everything before it is applied everywhere."""
        with self._guarded():
            partitions = sorted(int(p) for p in self._redis.smembers(self._partitions_key(topic)))
            found: dict[int, Position] = {}
            for partition in partitions:
                pipe = self._redis.pipeline(transaction=False)
                for shard in range(self._config.shards):
                    pipe.get(self._position_key(shard, topic, partition))
                stored = [unpack_position(v, f"position of {topic}") for v in pipe.execute() if v is not None]
                if len(stored) == self._config.shards:
                    found[partition] = min(stored, key=lambda position: position.offset)
            return found

    def apply(self, batch: PartitionBatch) -> ApplyResult:
        """See `HistoryStore.apply`; a shard that is ahead of `expected` skips what it has."""
        by_shard: dict[int, list[Entry]] = {}
        for entry in batch.entries:
            by_shard.setdefault(self._shard(entry.user_id), []).append(entry)
        place = (batch.topic, batch.partition)
        lag = batch.next_offset - self._idle.get(place, -IDLE_LAG)
        everyone = batch.expected is None or lag >= IDLE_LAG or place not in self._idle
        result = ApplyResult()
        with self._guarded():
            if batch.expected is None:
                self._redis.sadd(self._partitions_key(batch.topic), batch.partition)
            for shard in range(self._config.shards) if everyone else sorted(by_shard):
                part = self._apply_shard(shard, batch, by_shard.get(shard, []))
                result.applied += part.applied
                result.duplicates += part.duplicates
                result.erased += part.erased
                result.users += part.users
        if everyone:
            self._idle[place] = batch.next_offset
        return result

    def _apply_shard(self, shard: int, batch: PartitionBatch, entries: Sequence[Entry]) -> ApplyResult:
        key = self._position_key(shard, batch.topic, batch.partition)
        tag = self._tag(shard)
        for _ in range(ATTEMPTS):
            with self._redis.pipeline(transaction=True) as pipe:
                pipe.watch(key)
                value = pipe.get(key)
                stored = None if value is None else unpack_position(value, f"position of {batch.topic}")
                check_topic(batch, stored)
                if stored is not None and stored.offset >= batch.next_offset:
                    return ApplyResult()
                changes = Changes()

                def get_many(keys: Sequence[bytes], pipe: Any = pipe, tag: bytes = tag) -> Sequence[bytes | None]:
                    values: list[bytes | None] = pipe.mget([tag + k for k in keys]) if keys else []
                    return values

                appender = Appender(get_many, self._config.max_events, self._config.dedup_horizon)
                fresh = [entry for entry in entries if stored is None or entry.offset >= stored.offset]
                result = appender.apply(fresh, changes)
                pipe.multi()
                for gone in changes.deletes:
                    pipe.delete(tag + gone)
                for name, content in changes.puts.items():
                    pipe.set(tag + name, content)
                pipe.set(key, pack_position(Position(batch.topic_id, batch.next_offset)))
                try:
                    pipe.execute()
                    return result
                except redis.exceptions.WatchError:
                    continue
        raise PositionConflictError(
            f"{batch.topic}[{batch.partition}], shard {shard}: the position moved {ATTEMPTS} times while this batch "
            "was applied; another writer owns this partition. Read the position again and go on from there"
        )

    def reset_position(self, topic: str, partition: int, position: Position | None) -> None:
        """See `HistoryStore.reset_position`; all shards alike."""
        with self._guarded():
            self._redis.sadd(self._partitions_key(topic), partition)
            for shard in range(self._config.shards):
                key = self._position_key(shard, topic, partition)
                if position is None:
                    self._redis.delete(key)
                else:
                    self._redis.set(key, pack_position(position))
        self._idle.pop((topic, partition), None)

    def read(self, user_id: str, limit: int | None = None) -> History:
        """See `HistoryStore.read`: head and pages are read in one transaction, repeated if the head moved before it."""
        tag = self._tag(self._shard(user_id))
        name = tag + head_key(user_id)
        with self._guarded():
            for _ in range(ATTEMPTS):
                value = self._redis.get(name)
                if value is None:
                    return empty_history()
                keys = [tag + key for key in page_keys(user_id, Head.unpack(value, f"head of user {user_id!r}"))]
                now, pages = self._redis.pipeline(transaction=True).get(name).mget(keys).execute()
                if now == value:
                    return history_of(user_id, pages, self._config.max_events, limit)
        raise StoreUnavailableError(f"the history of user {user_id!r} changed {ATTEMPTS} times while it was read")

    def _guarded(self) -> _Guard:
        return _Guard(self._url)

    def close(self) -> None:
        """Close the connections."""
        self._redis.close()


class _Guard:
    """Turns connection errors into StoreUnavailableError."""

    def __init__(self, url: str) -> None:
        self._url = url

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, CONNECTION_ERRORS):
            raise StoreUnavailableError(
                f"Redis at {self._url} does not answer: {error}. Start it again; the writer goes on by itself"
            ) from error

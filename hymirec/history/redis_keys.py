"""A Redis server as all of a store's keys: its shards and their tags, and what tools see of it."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import redis
import xxhash
from redis.backoff import NoBackoff
from redis.retry import Retry

from hymirec.config import HistoryConfig
from hymirec.errors import StoreDamagedError, StoreUnavailableError
from hymirec.history.pages import every_page, hash_keys, head_key, pages_prefix, record_keys, tombstone_key, user_of
from hymirec.history.record import Head

TIMEOUT_SECONDS = 5.0


class RedisKeys:
    """Users hash to shards, and all keys of a shard carry its hash tag."""

    def __init__(self, config: HistoryConfig) -> None:
        assert config.url is not None
        self._config = config
        # Typed as Any: the client's annotations mix its synchronous and asynchronous answers.
        place: dict[str, Any] = dict(redis.connection.parse_url(config.url))
        # The URL may hold a password.
        self._name = f"Redis at {place.get('host', place.get('path', 'localhost'))}:{place.get('port', '')}"
        kind: Any = redis.RedisCluster if config.cluster else redis.Redis
        try:
            # A cluster is asked for its nodes now, a single server with the first command.
            self._redis: Any = kind.from_url(
                config.url,
                socket_timeout=TIMEOUT_SECONDS,
                socket_connect_timeout=TIMEOUT_SECONDS,
                retry=Retry(NoBackoff(), 0),
            )
        except redis.exceptions.RedisError as e:
            raise StoreUnavailableError(f"{self._name} cannot be reached: {e}") from e
        self._lock = threading.Lock()
        self._refuse_eviction()

    def _of_each_node(self, ask: Callable[..., Any]) -> list[Any]:
        """What the server answers, or each node of a cluster that holds keys."""
        if not self._config.cluster:
            return [ask()]
        nodes = self._redis.get_primaries()
        return [ask(target_nodes=node) for node in nodes]

    def _refuse_eviction(self) -> None:
        try:
            found = self._of_each_node(lambda **where: self._redis.config_get("maxmemory-policy", **where))
        except redis.exceptions.ResponseError:
            # Managed servers forbid CONFIG; their policy is the operator's to check.
            return
        except redis.exceptions.RedisError as e:
            raise StoreUnavailableError(f"{self._name} cannot be reached: {e}") from e
        policies = {str(answer.get("maxmemory-policy", "noeviction")) for answer in found}
        for policy in policies - {"noeviction"}:
            raise StoreUnavailableError(
                f"{self._name} may evict histories (maxmemory-policy {policy}); "
                "run `CONFIG SET maxmemory-policy noeviction`"
            )

    def _shard(self, user_id: str) -> int:
        return xxhash.xxh3_64_intdigest(user_id.encode("utf-8", "surrogatepass")) % self._config.shards

    @staticmethod
    def _tag(shard: int) -> bytes:
        return b"{s%d}" % shard

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        """Any trouble with the server is StoreUnavailableError."""
        try:
            yield
        except redis.exceptions.RedisError as e:
            raise StoreUnavailableError(
                f"{self._name} does not answer as it should: {e}. Mend or start it; the writer goes on by itself"
            ) from e

    def close(self) -> None:
        """Close the connections."""
        self._redis.close()

    def users(self) -> Iterator[str]:
        """See `RawStore.users`."""
        # SCAN may tell a key twice.
        return (user_of(key) for key in dict.fromkeys(key for _, key in self._keys(head_key(""))))

    def stored_bytes(self) -> int:
        """See `RawStore.stored_bytes`."""
        with self._guarded():
            found = self._of_each_node(lambda **where: self._redis.info("memory", **where))
        return sum(int(answer["used_memory"]) for answer in found)

    def _keys(self, prefix: bytes, shard: bytes = b"*") -> Iterator[tuple[bytes, bytes]]:
        """(tag, key) of all keys of one or all shards that begin with a prefix."""
        literal = re.sub(rb"([*?\\[\]\\^])", rb"\\\1", prefix)
        with self._guarded():
            for name in self._redis.scan_iter(match=b"{s" + shard + b"}" + literal + b"*", count=1_000):
                tag, _, key = name.partition(b"}")
                if key.startswith(prefix):
                    yield tag + b"}", key

    def dump(self, user_id: str) -> dict[bytes, bytes]:
        """See `RawStore.dump`; pages that no head points to are found only when the head cannot be read."""
        shard = self._shard(user_id)
        tag = self._tag(shard)
        keys = [head_key(user_id), tombstone_key(user_id)]
        with self._guarded():
            head = self._redis.get(tag + keys[0])
            if head is not None:
                try:
                    at = Head.unpack(head, f"head of user {user_id!r}")
                    keys += [*record_keys(user_id, every_page(at)), *hash_keys(user_id, at)]
                except StoreDamagedError:
                    for kind in (b"h", b"d"):
                        keys += [key for _, key in self._keys(pages_prefix(kind, user_id), b"%d" % shard)]
            values = self._redis.mget([tag + key for key in keys])
        return {key: value for key, value in zip(keys, values, strict=True) if value is not None}

    def restore(self, user_id: str, values: Mapping[bytes, bytes]) -> None:
        """See `RawStore.restore`."""
        tag = self._tag(self._shard(user_id))
        gone = set(self.dump(user_id)) - set(values)
        with self._lock, self._guarded():
            pipe = self._redis.pipeline(transaction=True)
            for key in gone:
                pipe.delete(tag + key)
            for key, value in values.items():
                pipe.set(tag + key, value)
            pipe.execute()

    def tombstones(self) -> Iterator[tuple[bytes, bytes]]:
        """See `RawStore.tombstones`."""
        for tag, key in self._keys(tombstone_key("")[:1]):
            with self._guarded():
                value = self._redis.get(tag + key)
            if value is not None:
                yield key, value

    def bury(self, tombstones: Mapping[bytes, bytes]) -> None:
        """See `RawStore.bury`. In every shard: a tombstone does not tell whose it is."""
        with self._lock, self._guarded():
            for shard in range(self._config.shards):
                self._redis.mset({self._tag(shard) + key: value for key, value in tombstones.items()})

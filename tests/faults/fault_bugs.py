"""Planted bugs: each breaks the exactly-once machinery of one writer process in one way that has been seen in the wild.

`plant` is called in the writer before it opens anything, so nothing outside that process is changed.
"""

from __future__ import annotations

import importlib
import os
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec
import rocksdict
import xxhash

import hymirec.history.embedded
import hymirec.history.redis
import hymirec.streaming.filelog
from hymirec.errors import EventError
from hymirec.history import Entry
from hymirec.history.append import Appender
from hymirec.history.embedded import EmbeddedStore
from hymirec.history.pages import Changes
from hymirec.history.redis import RedisStore
from hymirec.history.rocksdb import RocksDBStore
from hymirec.streaming.decode import DecodedBatch
from hymirec.streaming.letters import LetterFile

# Under this name the package has the function.
decoding = importlib.import_module("hymirec.streaming.decode")
consuming = importlib.import_module("hymirec.streaming.consumer")


@dataclass(frozen=True)
class Bug:
    """What is wrong, and on which store it shows."""

    plant: Callable[[], None]
    store: str = "rocksdb"
    # Events that wait in memory.
    waiting: int = 0


def _two_writes(first: Callable[[bytes], bool]) -> Callable[[], None]:
    """A batch is no longer one write: keys that `first` says go before the others."""

    def plant() -> None:
        commit = RocksDBStore._commit

        def split(self: RocksDBStore, changes: Changes) -> None:
            for now in (True, False):
                part = Changes(
                    {key: value for key, value in changes.puts.items() if first(key) is now},
                    {key for key in changes.deletes if first(key) is now},
                )
                commit(self, part)

        RocksDBStore._commit = split  # type: ignore[method-assign]

    return plant


def _is_position(key: bytes) -> bool:
    return key.startswith(b"p")


def _no_fence() -> None:
    hymirec.history.embedded.check_expected = lambda batch, stored: None  # type: ignore[attr-defined]


def _no_topic_id() -> None:
    hymirec.streaming.filelog._Source.topic_id = lambda self: "events"  # type: ignore[method-assign]


def _no_dedup() -> None:
    append = Appender._append

    def forgetful(self: Appender, user_id: str, user: Any, entries: Sequence[Entry]) -> None:
        append(self, user_id, user, entries)
        user.recent.clear()

    Appender._append = forgetful  # type: ignore[method-assign]


def _swallowed_decode_error() -> None:
    """Events whose user id is a JSON number are dropped as if they were poison, and nobody is told of either."""
    decode = decoding.decode

    def careless(messages: Sequence[Any]) -> DecodedBatch:
        entries = []
        for message in messages:
            try:
                if isinstance(msgspec.json.decode(message.value)["user_id"], str):
                    entries.append(decode(message.value, message.offset, message.log_ms).entry)
            except (msgspec.DecodeError, KeyError, UnicodeDecodeError, EventError):
                continue
        return DecodedBatch(entries, Counter(), [])

    consuming.decode_all = careless  # type: ignore[attr-defined]


def _good_event_rejected() -> None:
    """An event whose user id is a JSON number becomes a dead letter."""
    decode = decoding.decode

    def strict(value: bytes, offset: int, log_ms: int) -> Any:
        decoded = decode(value, offset, log_ms)
        if not isinstance(msgspec.json.decode(value)["user_id"], str):
            raise EventError("bad_id", "not a string")
        return decoded

    decoding.decode = strict  # type: ignore[attr-defined]


def _unsynced_batch() -> None:
    """Batches stay in memory: what a power failure does to a write-ahead log that was never synced."""
    begin = RocksDBStore.__init__

    def unsynced(self: RocksDBStore, *arguments: Any, **options: Any) -> None:
        begin(self, *arguments, **options)
        self._write = rocksdict.WriteOptions()
        self._write.disable_wal = True  # type: ignore[method-assign,assignment]

    RocksDBStore.__init__ = unsynced  # type: ignore[method-assign]


def _stale_position_after_reconnect() -> None:
    """The server's position is never looked at again once it is known."""
    RedisStore._fence = lambda self, batch, shard, known, value: None  # type: ignore[method-assign]
    hymirec.history.redis.MOVE_POSITION = "redis.call('SET', KEYS[1], ARGV[2]) return 1"  # type: ignore[attr-defined]


def _wrong_shard() -> None:
    """Users hash to shards with a seed of this process."""

    def shard(self: RedisStore, user_id: str) -> int:
        return xxhash.xxh3_64_intdigest(user_id.encode(), seed=os.getpid()) % self._config.shards

    RedisStore._shard = shard  # type: ignore[method-assign,assignment]


def _letters_without_memory() -> None:
    LetterFile._read_on = lambda self, file: None  # type: ignore[method-assign]


def _position_one_too_far() -> None:
    apply = RocksDBStore.apply
    RocksDBStore.apply = lambda self, batch: apply(  # type: ignore[method-assign]
        self, replace(batch, next_offset=batch.next_offset + 1)
    )


def _late_event_dropped() -> None:
    append = Appender._append

    def impatient(self: Appender, user_id: str, user: Any, entries: Sequence[Entry]) -> None:
        for entry in entries:
            if not user.page.times or entry.ts >= user.page.times[-1] - 1_000:
                append(self, user_id, user, [entry])

    Appender._append = impatient  # type: ignore[method-assign]


def _batch_backwards() -> None:
    decode_all = decoding.decode_all

    def backwards(messages: Sequence[Any]) -> DecodedBatch:
        decoded: DecodedBatch = decode_all(messages)
        return decoded._replace(entries=decoded.entries[::-1])

    consuming.decode_all = backwards  # type: ignore[attr-defined]


def _some_users_flushed() -> None:
    write = Appender.write

    def some(self: Appender) -> Changes:
        self._unwritten = {
            user_id: user for user_id, user in self._unwritten.items() if zlib.crc32(user_id.encode()) % 4
        }
        return write(self)

    Appender.write = some  # type: ignore[method-assign]


def _published_before_written() -> None:
    EmbeddedStore.written = lambda self, topic: {  # type: ignore[method-assign]
        partition: position.offset for partition, position in self.positions(topic).items()
    }


BUGS = {
    "position before data": Bug(_two_writes(_is_position)),
    "position after data": Bug(_two_writes(lambda key: not _is_position(key))),
    "partial batch": Bug(_two_writes(lambda key: _is_position(key) or zlib.crc32(key) % 2 == 0)),
    "position one too far": Bug(_position_one_too_far),
    "no fence": Bug(_no_fence),
    "no topic id": Bug(_no_topic_id),
    "no dedup": Bug(_no_dedup),
    "swallowed decode error": Bug(_swallowed_decode_error),
    "good event rejected": Bug(_good_event_rejected),
    "unsynced batch": Bug(_unsynced_batch),
    "letters without memory": Bug(_letters_without_memory),
    "late event dropped": Bug(_late_event_dropped),
    "batch backwards": Bug(_batch_backwards),
    "position flushed before data": Bug(_two_writes(_is_position), waiting=60),
    "position flushed after data": Bug(_two_writes(lambda key: not _is_position(key)), waiting=60),
    "some users flushed": Bug(_some_users_flushed, waiting=60),
    "published before written": Bug(_published_before_written, waiting=60),
    "stale position after reconnect": Bug(_stale_position_after_reconnect, "redis"),
    "wrong shard": Bug(_wrong_shard, "redis"),
}

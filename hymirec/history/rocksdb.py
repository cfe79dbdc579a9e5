"""The embedded store: RocksDB, one writer, one write batch (synced) for events and positions together."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import cast

from rocksdict import (
    AccessType,
    BlockBasedOptions,
    BottommostLevelCompaction,
    Cache,
    CompactOptions,
    DBCompressionType,
    Options,
    Rdict,
    WriteBatch,
    WriteOptions,
)

from hymirec.config import HistoryConfig
from hymirec.errors import HistoryError, StoreDamagedError, StoreUnavailableError
from hymirec.history.embedded import EmbeddedStore
from hymirec.history.pages import Changes, tombstone_key
from hymirec.history.rocksdb_erased import Erased
from hymirec.history.rocksdb_logs import check_logs

DICTIONARY_BYTES, BLOCK_BYTES, CACHE_BYTES = 64 << 10, 16 << 10, 64 << 20
# Of a file, for its dictionary. Three times as much saves .2 % and costs an event 1 us.
TRAIN_BYTES = 32 * DICTIONARY_BYTES
# Up to so many values are found sooner one by one than together.
FEW = 6
TOMBSTONES = tombstone_key("")[:1]
# What opening needs beside the contents of the logs: manifest, options, a new log.
ROOM_BYTES = 256 << 10
# RocksDB's own defaults: window bits, level, strategy.
ZSTD = (-14, 32_767, 0)


class RocksDBStore(EmbeddedStore):
    """A directory."""

    def __init__(self, config: HistoryConfig, read_only: bool = False) -> None:
        assert config.path is not None
        self._path = Path(config.path)
        self._read_only = read_only
        self._write = WriteOptions()
        self._write.sync = config.sync
        self._failed = self._closed = False
        self._db = self._open()
        hours = None if read_only else config.erased_hours
        self._erased = Erased(self._path, None if hours is None else hours * 3600, self._rewrite)
        super().__init__(config)

    def _open(self) -> Rdict:
        options = _options()
        options.create_if_missing(not self._read_only)
        access = AccessType.read_only() if self._read_only else AccessType.read_write()
        check_logs(self._path)
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            return Rdict(str(self._path), options=options, access_type=access)
        except Exception as e:
            # rocksdict raises plain Exception for everything.
            if _damaged(e):
                raise self._trouble(e, "opened") from e
            why = "another process has it open" if "lock" in str(e).lower() else str(e)
            raise StoreUnavailableError(
                f"the history store at {self._path} cannot be opened: {why}. It has one writer; stop the other "
                "service, or give this one another history.path"
            ) from e

    def _trouble(self, error: Exception, what: str) -> HistoryError:
        if _damaged(error):
            return StoreDamagedError(
                f"the history store at {self._path} cannot be {what}: {error}. Restore the directory from a copy, or "
                "move it away and restart the history writer: it is built again from the log"
            )
        return StoreUnavailableError(
            f"the history store at {self._path} cannot be {what}: {error}. Free space or mend the disk; the history "
            "writer goes on by itself at the stored position"
        )

    def _get_many(self, keys: Sequence[bytes]) -> Sequence[bytes | None]:
        self._reopen_when_closed()
        try:
            if len(keys) > FEW:
                return cast("list[bytes | None]", self._db.get(list(keys)))
            get = self._db.get
            return [get(key) for key in keys]
        except Exception as e:
            raise self._trouble(e, "read") from e

    def _scan(self, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
        self._reopen_when_closed()
        try:
            iterator = self._db.iter()
            iterator.seek(prefix)
            while iterator.valid() and iterator.key().startswith(prefix):
                yield iterator.key(), iterator.value()
                iterator.next()
            # A damaged block ends an iteration early without an error; only the status tells.
            iterator.status()
        except Exception as e:
            raise self._trouble(e, "read") from e

    def _commit(self, changes: Changes) -> None:
        if changes.deletes and any(key.startswith(TOMBSTONES) for key in changes.puts):
            try:
                self._erased.note()
            except OSError as e:
                raise self._trouble(e, "written") from e
        batch = WriteBatch(raw_mode=True)
        delete, put = batch.delete, batch.put
        for key in changes.deletes:
            delete(key)
        for key, value in changes.puts.items():
            put(key, value)
        try:
            self._db.write(batch, write_opt=self._write)
        except Exception as e:
            self._failed = True
            raise self._trouble(e, "written") from e

    def flush(self, due: bool = False) -> None:
        """See `HistoryStore.flush`."""
        super().flush(due)
        if due:
            self._erased.begin_when_due()

    def _rewrite(self, stopped: Callable[[], bool]) -> bool:
        """Write all files anew, one after the other: what was deleted is in none of them, and in no log."""
        options = CompactOptions()
        options.set_bottommost_level_compaction(BottommostLevelCompaction.force())
        try:
            self._db.flush()
            for file in self._db.live_files():
                if stopped():
                    return False
                self._db.compact_range(file["start_key"], file["end_key"], options)
        except Exception as e:
            raise self._trouble(e, "rewritten") from e
        return True

    def _before_writing(self) -> None:
        """After a failed write RocksDB refuses all writes, also when space is back, until it is opened again.

        Whether the failed batch is there then, only the position tells that is read after this.
        """
        if self._failed and not self._closed:
            self._check_room()
            self._close()
            self._closed = True
        self._reopen_when_closed()

    def _reopen_when_closed(self) -> None:
        if self._closed:
            self._db = self._open()
            self._failed = self._closed = False

    def _check_room(self) -> None:
        """Opening writes what the logs hold into tables. Where there is no room for it, reads go on as it is."""
        size = sum(log.stat().st_size for log in self._path.glob("*.log"))
        try:
            with tempfile.TemporaryFile(dir=self._path) as probe:
                probe.write(bytes(size + ROOM_BYTES))
                probe.flush()
        except OSError as e:
            raise self._trouble(e, "written") from e

    def stored_bytes(self) -> int:
        """See `RawStore.stored_bytes`."""
        total = 0
        for file in self._path.iterdir():
            # Compaction removes files.
            with suppress(FileNotFoundError):
                total += file.stat().st_size
        return total

    def close(self) -> None:
        """Write what waits in memory, and release the lock."""
        with self._lock:
            try:
                self.flush()
            finally:
                self._close()

    def _close(self) -> None:
        try:
            self._erased.stop()
            self._db.close()
        except Exception as e:
            # After a failed write it fails once more. That batch was refused; all before it is in the write-ahead log.
            if not self._failed:
                raise self._trouble(e, "closed") from e


def _options() -> Options:
    """Raw mode always: without it rocksdict unpickles what it reads. Files are compressed with a dictionary each.

    Item keys are hashes, which nothing but a dictionary makes small: histories of MovieLens-1M take 4.5 bytes a record
    instead of 13. How a file is compressed it says itself, so stores that were written otherwise are read as they are.
    """
    options, blocks = Options(raw_mode=True), BlockBasedOptions()
    options.set_compression_type(DBCompressionType.zstd())
    options.set_compression_options(*ZSTD, DICTIONARY_BYTES)
    options.set_zstd_max_train_bytes(TRAIN_BYTES)
    blocks.set_block_size(BLOCK_BYTES)
    blocks.set_block_cache(Cache(CACHE_BYTES))
    blocks.set_bloom_filter(10, False)
    options.set_block_based_table_factory(blocks)
    return options


def _damaged(error: Exception) -> bool:
    return "corruption" in str(error).lower() or "checksum" in str(error).lower()

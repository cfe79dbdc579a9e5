"""The embedded store: RocksDB, one writer, one write batch (synced) for events and position together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from rocksdict import AccessType, Options, Rdict, WriteBatch, WriteOptions

from hymirec.config import HistoryConfig
from hymirec.errors import StoreUnavailableError
from hymirec.history.embedded import EmbeddedStore
from hymirec.history.pages import Changes


class RocksDBStore(EmbeddedStore):
    """A directory. Raw mode always: without it rocksdict unpickles what it reads."""

    def __init__(self, config: HistoryConfig, read_only: bool = False) -> None:
        assert config.path is not None
        self._path = Path(config.path)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        options = Options(raw_mode=True)
        options.create_if_missing(not read_only)
        access = AccessType.read_only() if read_only else AccessType.read_write()
        try:
            self._db = Rdict(str(self._path), options=options, access_type=access)
        except Exception as e:
            # rocksdict raises plain Exception for everything.
            why = "another process has it open" if "lock" in str(e).lower() else str(e)
            raise StoreUnavailableError(
                f"the history store at {self._path} cannot be opened: {why}. It has one writer; stop the other "
                "service, or give this one another history.path"
            ) from e
        self._write = WriteOptions()
        self._write.sync = config.sync
        super().__init__(config)

    def _get_many(self, keys: Sequence[bytes]) -> Sequence[bytes | None]:
        try:
            values: list[bytes | None] = list(self._db.get(list(keys)) or ())
        except Exception as e:
            raise StoreUnavailableError(f"the history store at {self._path} cannot be read: {e}") from e
        return values

    def _scan(self, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
        iterator = self._db.iter()
        iterator.seek(prefix)
        while iterator.valid():
            key = iterator.key()
            if not key.startswith(prefix):
                break
            yield key, iterator.value()
            iterator.next()
        # A damaged block ends an iteration early without an error; only the status tells.
        iterator.status()

    def _commit(self, changes: Changes) -> None:
        batch = WriteBatch(raw_mode=True)
        for key in changes.deletes:
            batch.delete(key)
        for key, value in changes.puts.items():
            batch.put(key, value)
        try:
            self._db.write(batch, write_opt=self._write)
        except Exception as e:
            raise StoreUnavailableError(
                f"the history store at {self._path} cannot be written: {e}. Free space or repair the disk, then "
                "restart the history writer: it goes on at the stored position"
            ) from e

    def close(self) -> None:
        """Flush and release the lock."""
        self._db.close()

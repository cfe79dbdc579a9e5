"""Compressed user histories, kept by reference, with the log position in the same atomic write."""

from hymirec.config import HistoryConfig
from hymirec.history.store import ApplyResult, Entry, History, HistoryStore, PartitionBatch, Position, RawStore

__all__ = ["ApplyResult", "Entry", "History", "HistoryStore", "PartitionBatch", "Position", "RawStore", "open_store"]


def open_store(config: HistoryConfig) -> RawStore:
    """Open the store that a config names.

    Raises StoreUnavailableError when it cannot be opened or reached.
    """
    # Each store brings its own client library; only the one that is used is loaded.
    if config.store == "rocksdb":
        from hymirec.history.rocksdb import RocksDBStore

        return RocksDBStore(config)
    if config.store == "redis":
        from hymirec.history.redis import RedisStore

        return RedisStore(config)
    from hymirec.history.memory import MemoryStore

    return MemoryStore(config)

"""RocksDB's files damaged, in short; `make faults` is the long form."""

from __future__ import annotations

from pathlib import Path

import pytest
from fault_wal import trials, wreck

from hymirec.errors import StoreDamagedError
from hymirec.history import open_store
from hymirec.history.rocksdb_logs import RECYCLED_TYPES


def test_a_damaged_rocksdb_is_a_whole_number_of_batches_or_refused(tmp_path: Path) -> None:
    found = trials(tmp_path, seed=5, truncations=30, flips=30)
    assert [outcome for counts in found.values() for outcome in counts if outcome.startswith("wrong")] == []
    assert found["cut write-ahead log"]["prefix"] == 30
    assert found["bit of the log"]["prefix"] > 0
    assert sum(n for outcome, n in found["bit of a table"].items() if outcome.startswith("refused")) > 0


@pytest.mark.parametrize("ending", [".log", "MANIFEST-*"])
def test_a_bit_that_rocksdb_would_never_come_back_from_is_told(tmp_path: Path, ending: str) -> None:
    ruin = wreck(tmp_path, seed=5)
    (path,) = ruin.files(ending)
    data = bytearray(path.read_bytes())
    # The type of the second record.
    place = 7 + int.from_bytes(data[4:6], "little") + 6
    data[place] ^= 4
    assert data[place] in RECYCLED_TYPES
    path.write_bytes(bytes(data))
    with pytest.raises(StoreDamagedError, match=path.name):
        open_store(ruin.history)

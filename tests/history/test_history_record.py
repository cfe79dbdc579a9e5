"""The format on disk: 13 bytes a record, columns, and no flipped bit that passes for data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hymirec.config import HistoryConfig
from hymirec.errors import StoreDamagedError, UnsupportedFormatError
from hymirec.history import Entry, PartitionBatch, open_store
from hymirec.history.record import RECORD, pack_hashes, pack_records, unpack_hash_pages, unpack_records

ROWS = st.lists(
    st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1), st.integers(0, 255)), min_size=1, max_size=64
)


@given(ROWS)
def test_a_page_comes_back_and_takes_13_bytes_a_record(rows: list[tuple[int, int, int]]) -> None:
    value = pack_records(np.array(rows, RECORD))
    assert len(value) == 13 * len(rows) + 9
    assert unpack_records(value, "page").tolist() == rows


@given(st.lists(st.integers(0, 2**64 - 1), max_size=64))
def test_event_ids_come_back(hashes: list[int]) -> None:
    assert unpack_hash_pages([pack_hashes(hashes)], "ids").tolist() == hashes


@given(ROWS, st.data())
def test_any_flipped_bit_is_an_error(rows: list[tuple[int, int, int]], data: st.DataObject) -> None:
    value = bytearray(pack_records(np.array(rows, RECORD)))
    value[data.draw(st.integers(0, len(value) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises((StoreDamagedError, UnsupportedFormatError), match="page of u"):
        unpack_records(bytes(value), "page of u")


def test_a_damaged_rocksdb_is_told_and_never_read_as_other_data(tmp_path: Path) -> None:
    config = HistoryConfig(store="rocksdb", path=str(tmp_path / "store"), sync=False)
    store = open_store(config)
    entries = [Entry(i, f"u{i % 50}", i, i, 1, i) for i in range(5000)]
    store.apply(PartitionBatch("events", "id", 0, None, 5000, entries))
    expected = {user: store.read(user).keys.tolist() for user in (f"u{i}" for i in range(50))}
    store.close()
    # Closing flushes to table files; flip one bit where the pages of records are.
    table = max((tmp_path / "store").glob("*.sst"), key=lambda path: path.stat().st_size)
    data = bytearray(table.read_bytes())
    data[len(data) * 2 // 3] ^= 1
    table.write_bytes(bytes(data))
    told = 0
    try:
        store = open_store(config)
    except StoreDamagedError:
        return
    for user, keys in expected.items():
        try:
            assert store.read(user).keys.tolist() == keys
        except StoreDamagedError:
            told += 1
    assert told > 0
    store.close()

"""Readers of the prepared catalogue: look-ups by id and key, and damage that is named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hymirec.catalog.keys import item_key, item_keys
from hymirec.catalog.normalise import Tables
from hymirec.catalog.prepare import prepare
from hymirec.catalog.prepared import Catalog, Sequences
from hymirec.config import DataConfig
from hymirec.errors import ArtifactDamagedError, ArtifactMissingError


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    items = pa.table({"item": [7, 3, 5, 11], "title": ["seven", "three", "five", "eleven"]})
    interactions = pa.table({"user": [1, 1, 1, 1], "item": [7, 3, 5, 11], "ts": [1, 2, 3, 4]})
    prepare(Tables(items, interactions), DataConfig(min_user_interactions=3, part_rows=3), tmp_path)
    return tmp_path


def test_an_item_is_found_by_number_and_by_text(data_dir: Path) -> None:
    catalog = Catalog.open(data_dir)
    assert (catalog.size, catalog.id_type, len(catalog.part_paths)) == (4, "int64", 2)
    assert [catalog.index_of(item) for item in (3, 5, 7, 11, "7", 4, "x")] == [0, 1, 2, 3, 2, None, None]
    assert catalog.item_id(3) == 11
    assert catalog.titles.to_pylist() == ["three", "five", "seven", "eleven"]
    assert catalog.texts(1) == ["Title: eleven"]


def test_many_keys_are_looked_up_at_once(data_dir: Path) -> None:
    catalog = Catalog.open(data_dir)
    keys = np.concatenate([item_keys([11, 99, 3]), np.array([0, 2**64 - 1], np.uint64)])
    assert catalog.indices_of_keys(keys).tolist() == [3, -1, 0, -1, -1]
    assert catalog.indices_of_keys(np.empty(0, np.uint64)).tolist() == []
    assert catalog.keys[3] == item_key("11")


def test_arrays_may_be_written_to(data_dir: Path) -> None:
    sequences, catalog = Sequences.open(data_dir), Catalog.open(data_dir)
    arrays = [sequences.items, sequences.ts, sequences.n_train, sequences.n_val, catalog.keys, catalog.popularity]
    assert all(array.flags.writeable for array in arrays)
    assert (sequences.items.dtype, sequences.ts.dtype, sequences.n_val.dtype) == (np.int32, np.int64, np.int32)


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactMissingError, match="items holds no part"):
        Catalog.open(tmp_path)
    with pytest.raises(ArtifactMissingError, match=r"sequences\.parquet is not there"):
        Sequences.open(tmp_path)


def test_a_lost_part_is_damage(data_dir: Path) -> None:
    (data_dir / "items" / "part-00000.parquet").unlink()
    with pytest.raises(ArtifactDamagedError, match=r"indices are not 0\.\.0"):
        Catalog.open(data_dir)


def test_a_file_that_is_no_parquet_is_damage(data_dir: Path) -> None:
    (data_dir / "sequences.parquet").write_bytes(b"not a table")
    with pytest.raises(ArtifactDamagedError, match=r"sequences\.parquet cannot be read"):
        Sequences.open(data_dir)


def test_a_split_beyond_the_history_is_damage(data_dir: Path) -> None:
    path = data_dir / "sequences.parquet"
    table = pq.read_table(path)
    pq.write_table(table.set_column(4, table.schema.field(4), pa.array([9], pa.int32())), path)
    with pytest.raises(ArtifactDamagedError, match="lengths and splits"):
        Sequences.open(data_dir)

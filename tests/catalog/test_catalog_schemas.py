"""The prepared files have the schemas that everyone reads them by."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hymirec.catalog.normalise import Tables
from hymirec.catalog.parts import part_name, part_paths, write_table
from hymirec.catalog.prepare import prepare
from hymirec.catalog.schemas import LAYOUT, codes_schema, id_type, items_schema, sequences_schema, vectors_schema
from hymirec.catalog.vectors import write_vectors
from hymirec.config import DataConfig
from hymirec.errors import ArtifactMissingError


@pytest.mark.parametrize("strings", [False, True])
def test_prepared_files_have_their_schemas(tmp_path: Path, strings: bool) -> None:
    ids = ["1", "2", "3"] if strings else [1, 2, 3]
    items = pa.table({"item": ids, "title": ["a", "b", "c"]})
    interactions = pa.table({"user": ids[:1] * 3, "item": ids, "ts": [1, 2, 3]})
    prepare(Tables(items, interactions), DataConfig(min_user_interactions=3), tmp_path)
    kind = pa.string() if strings else pa.int64()
    assert id_type(kind) == ("string" if strings else "int64")
    assert pq.read_schema(tmp_path / "items" / part_name(0)).equals(items_schema(kind))
    stored = pq.read_schema(tmp_path / "sequences.parquet")
    assert stored.names == sequences_schema(kind).names
    assert [f.type for f in stored] == [f.type for f in sequences_schema(kind)]


def test_vectors_are_fixed_size_lists_and_codes_packed_rows_that_tell_their_layout(tmp_path: Path) -> None:
    write_vectors(tmp_path / part_name(0), np.arange(2, dtype=np.int32), np.ones((2, 4), np.float32))
    assert [f.type for f in pq.read_schema(tmp_path / part_name(0))] == [f.type for f in vectors_schema(4)]
    schema = codes_schema(3, b'{"layers": 2}')
    columns = [pa.array([0], pa.int32()), pa.array([b"\x00\x01\xff"], pa.binary(3))]
    write_table(tmp_path / "codes.parquet", pa.table(columns, schema=schema))
    stored = pq.read_table(tmp_path / "codes.parquet")
    assert stored["codes"].to_pylist() == [b"\x00\x01\xff"]
    assert stored.schema.metadata[LAYOUT] == b'{"layers": 2}'
    assert stored.schema.field("codes").type == pa.binary(3)


def test_parts_are_in_order_of_their_number_and_remains_are_not_parts(tmp_path: Path) -> None:
    with pytest.raises(ArtifactMissingError):
        part_paths(tmp_path)
    for name in (part_name(100_000), part_name(99_999), ".part-00001.parquet.x7", "part-1.parquet", "part-00000.csv"):
        (tmp_path / name).touch()
    assert [p.name for p in part_paths(tmp_path)] == ["part-99999.parquet", "part-100000.parquet"]

"""Packed rows: exact for every shape and codec, on disk as in memory, damage found by name."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hymirec.catalog.parts import part_name, read_table, write_table
from hymirec.codebook.encode import write_codes_part
from hymirec.codebook.magnitudes import fit_magnitudes
from hymirec.codebook.packed import CodeLayout, unpack_rows
from hymirec.codebook.table import TABLE_FILE, ItemCodes
from hymirec.errors import ArtifactDamagedError, ArtifactMissingError

KINDS = ("lloyd4", "lloyd8", "float16", "float32")
# Of each number of bits the least and the largest, and powers of two.
SIZES = sorted({2**b + d for b in range(17) for d in (-1, 0, 1) if 1 <= 2**b + d <= 65_536})


def sample(
    rows: int, layers: int, centroids: int, kind: str, seed: int = 0
) -> tuple[ItemCodes, np.ndarray, np.ndarray]:
    """Items, their codes, and their magnitudes as they are stored."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, centroids, (rows, layers))
    if rows > 1:
        codes[0], codes[1] = 0, centroids - 1
    codec = fit_magnitudes(kind, rng.normal(0.3, 0.4, (60, layers)).astype(np.float32))
    magnitudes = codec.values(codec.quantise(rng.normal(0.3, 0.4, (rows, layers)).astype(np.float32)))
    return ItemCodes.of(codes, magnitudes, centroids, codec), codes, magnitudes


@given(st.integers(0, 40), st.integers(1, 16), st.sampled_from(SIZES), st.sampled_from(KINDS), st.integers(0, 2**31))
@settings(max_examples=120, deadline=None)
def test_packing_loses_nothing(rows: int, layers: int, centroids: int, kind: str, seed: int) -> None:
    items, codes, magnitudes = sample(rows, layers, centroids, kind, seed)
    bits = layers * (int(np.ceil(np.log2(centroids))) + {"lloyd4": 4, "lloyd8": 8, "float16": 16, "float32": 32}[kind])
    assert items.packed_NR.shape == (rows, -(-bits // 8))
    assert np.array_equal(items.codes_NL, codes)
    assert np.array_equal(items.magnitudes_NL, magnitudes)
    index = np.random.default_rng(seed).integers(0, max(rows, 1), 5 if rows else 0)
    got = items.rows(index)
    assert (got[0].dtype, got[1].dtype) == (np.uint16, np.float32)
    assert np.array_equal(got[0], codes[index])
    assert np.array_equal(got[1], magnitudes[index])
    taken = unpack_rows(torch.from_numpy(items.packed_NR[index]), items.layout)
    assert np.array_equal(taken[0].numpy(), codes[index])
    assert np.array_equal(taken[1].numpy(), magnitudes[index])


@given(st.integers(1, 6), st.sampled_from(SIZES), st.sampled_from(("lloyd4", "float16")))
@settings(max_examples=30, deadline=None)
def test_a_row_is_the_little_endian_number_of_its_fields(layers: int, centroids: int, kind: str) -> None:
    items, codes, magnitudes = sample(2, layers, centroids, kind)
    id_bits, bits = items.layout.id_bits, items.layout.magnitudes.bits
    stored = items.layout.magnitudes.quantise(magnitudes)
    for row in range(2):
        fields = [(int(value), id_bits) for value in codes[row]] + [(int(value), bits) for value in stored[row]]
        number, start = 0, 0
        for value, width in fields:
            number |= value << start
            start += width
        assert int.from_bytes(items.packed_NR[row].tobytes(), "little") == number


def test_three_layers_of_4096_take_6_bytes_and_six_take_12() -> None:
    assert [sample(1, layers, 4096, "lloyd4")[0].bytes_per_item for layers in (3, 6)] == [6, 12]
    assert sample(1, 3, 4096, "float32")[0].bytes_per_item == 17


def test_a_zero_row_stays_zero_in_4_bits() -> None:
    codec = fit_magnitudes("lloyd4", np.random.default_rng(0).uniform(0.3, 0.9, (500, 3)).astype(np.float32))
    items = ItemCodes.of(np.zeros((1, 3), int), np.zeros((1, 3), np.float32), 8, codec)
    assert items.magnitudes_NL.tolist() == [[0.0, 0.0, 0.0]]


def test_what_does_not_fit_is_refused() -> None:
    items, codes, magnitudes = sample(4, 2, 100, "float16")
    for wrong in (codes + 60, codes - 1):
        with pytest.raises(ValueError, match=r"codes 0\.\.99"):
            ItemCodes.of(wrong, magnitudes, 100, items.layout.magnitudes)
    with pytest.raises(ValueError, match="shape"):
        ItemCodes.of(codes, magnitudes[:, :1], 100, items.layout.magnitudes)
    for index in ([4], [-1]):
        with pytest.raises(IndexError, match=r"rows 0\.\.3"):
            items.rows(np.array(index))
    with pytest.raises(ValueError, match="centroids"):
        CodeLayout(2, 65_537, items.layout.magnitudes)
    with pytest.raises(ValueError, match="rows of 6 bytes"):
        ItemCodes(items.layout, np.zeros((3, 5), np.uint8))


def test_a_layout_comes_back_from_json() -> None:
    layout = sample(1, 3, 4096, "lloyd4")[0].layout
    again = CodeLayout.from_dict(json.loads(json.dumps(layout.as_dict())))
    assert again.as_dict() == layout.as_dict()
    assert again.magnitudes.levels_LV.tobytes() == layout.magnitudes.levels_LV.tobytes()
    with pytest.raises(ValueError, match="format"):
        CodeLayout.from_dict(layout.as_dict() | {"format": 2})


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [0, 1, 300])
def test_a_saved_table_is_mapped_and_the_same_bytes_again(tmp_path: Path, kind: str, rows: int) -> None:
    items, codes, magnitudes = sample(rows, 3, 300, kind)
    items.save(tmp_path)
    opened = ItemCodes.open(tmp_path)
    assert (len(opened), opened.layers, opened.bytes_per_item) == (rows, 3, items.bytes_per_item)
    assert np.array_equal(opened.codes_NL, codes)
    assert np.array_equal(opened.magnitudes_NL, magnitudes)
    if rows:
        assert isinstance(opened.packed_NR.base, np.memmap)
    opened.save(tmp_path / "again")
    assert (tmp_path / "again" / TABLE_FILE).read_bytes() == (tmp_path / TABLE_FILE).read_bytes()


def test_a_damaged_table_is_named(tmp_path: Path) -> None:
    items = sample(50, 2, 16, "lloyd4")[0]
    items.save(tmp_path)
    path = tmp_path / TABLE_FILE
    whole = path.read_bytes()
    for damaged in (b"", whole[:4], whole[:40], whole[:-1], whole + b"x", b"\xff" * 8 + whole[8:]):
        path.write_bytes(damaged)
        with pytest.raises(ArtifactDamagedError, match=r"items\.codes"):
            ItemCodes.open(tmp_path)
    path.write_bytes(whole.replace(b"lloyd4", b"lloyd8"))
    with pytest.raises(ArtifactDamagedError, match=r"items\.codes"):
        ItemCodes.open(tmp_path)


def test_parts_hold_the_packed_bytes(tmp_path: Path) -> None:
    items, codes, magnitudes = sample(50, 3, 4096, "lloyd4")
    for number, rows in enumerate((range(30), range(30, 50))):
        index = np.arange(rows.start, rows.stop, dtype=np.int32)
        write_codes_part(tmp_path / part_name(number), index, items.take(index))
    table = read_table(tmp_path / part_name(1))
    assert table.schema.field("codes").type == pa.binary(6)
    assert b"".join(table["codes"].to_pylist()) == items.packed_NR[30:].tobytes()
    opened = ItemCodes.open(tmp_path)
    assert np.array_equal(opened.codes_NL, codes)
    assert np.array_equal(opened.magnitudes_NL, magnitudes)


@pytest.mark.parametrize("other", ["levels", "kind", "centroids", "layers"])
def test_parts_of_two_codebooks_are_not_mixed(tmp_path: Path, other: str) -> None:
    first = sample(20, 3, 64, "lloyd4")[0]
    shape = {
        "levels": (3, 64, "lloyd4", 9),
        "kind": (3, 64, "lloyd8", 0),
        "centroids": (3, 60, "lloyd4", 0),
        "layers": (2, 64, "lloyd4", 0),
    }[other]
    write_codes_part(tmp_path / part_name(0), np.arange(20, dtype=np.int32), first)
    write_codes_part(tmp_path / part_name(1), np.arange(20, 40, dtype=np.int32), sample(20, *shape)[0])
    with pytest.raises(ArtifactDamagedError, match=r"part-00001.*layout of the first part"):
        ItemCodes.open(tmp_path)


def test_damaged_parts_are_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactMissingError):
        ItemCodes.open(tmp_path)
    path, items = tmp_path / part_name(0), sample(20, 3, 64, "lloyd4")[0]
    write_codes_part(path, np.arange(1, 21, dtype=np.int32), items)
    with pytest.raises(ArtifactDamagedError, match=r"part-00000.*0\.\.20"):
        ItemCodes.open(tmp_path)
    write_codes_part(path, np.arange(20, dtype=np.int32), items)
    whole, table = path.read_bytes(), read_table(path)
    write_table(path, table.replace_schema_metadata({"hymirec.layout": "{"}))
    with pytest.raises(ArtifactDamagedError, match="part-00000"):
        ItemCodes.open(tmp_path)
    write_table(path, table.replace_schema_metadata(None))
    with pytest.raises(ArtifactDamagedError, match="part-00000"):
        ItemCodes.open(tmp_path)
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ArtifactDamagedError, match="part-00000"):
        ItemCodes.open(tmp_path)

"""Vectors on disk: what is written comes back, by any range, and damage is named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hymirec.catalog.parts import part_name
from hymirec.catalog.vectors import count_rows, read_vectors, vector_width, write_vectors
from hymirec.errors import ArtifactDamagedError, ArtifactMissingError, NonFiniteEmbeddingError


def write_parts(directory: Path, rows: int, part_rows: int, width: int = 3) -> np.ndarray:
    vectors = np.random.default_rng(0).normal(size=(rows, width)).astype(np.float32)
    for number, start in enumerate(range(0, rows, part_rows)):
        stop = min(start + part_rows, rows)
        write_vectors(directory / part_name(number), np.arange(start, stop, dtype=np.int32), vectors[start:stop])
    return vectors.astype(np.float16).astype(np.float32)


def test_vectors_come_back_as_half_precision(tmp_path: Path) -> None:
    expected = write_parts(tmp_path, rows=10, part_rows=4)
    actual = read_vectors(tmp_path)
    assert actual.dtype == np.float32
    assert np.array_equal(actual, expected)
    assert vector_width(tmp_path) == 3
    assert count_rows(tmp_path) == 10


@settings(max_examples=25, deadline=None)
@given(rows=st.integers(1, 12), part_rows=st.integers(1, 5), data=st.data())
def test_any_range_is_the_slice_of_the_whole(
    tmp_path_factory: pytest.TempPathFactory, rows: int, part_rows: int, data: st.DataObject
) -> None:
    directory = tmp_path_factory.mktemp("parts")
    expected = write_parts(directory, rows, part_rows)
    start = data.draw(st.integers(0, rows))
    stop = data.draw(st.integers(start, rows))
    assert np.array_equal(read_vectors(directory, start, stop), expected[start:stop])
    assert read_vectors(directory, start, stop).shape == (stop - start, 3)


def test_some_parts_are_read_by_item_index(tmp_path: Path) -> None:
    expected = write_parts(tmp_path, rows=10, part_rows=4)
    paths = [tmp_path / part_name(1), tmp_path / part_name(2)]
    assert np.array_equal(read_vectors(paths, 5, 9), expected[5:9])
    with pytest.raises(ArtifactMissingError, match=r"0\.\.6 were asked for, 4\.\.10 are there"):
        read_vectors(paths, 0, 6)


def test_a_range_beyond_the_end_is_missing(tmp_path: Path) -> None:
    write_parts(tmp_path, rows=5, part_rows=4)
    with pytest.raises(ArtifactMissingError, match=r"0\.\.5 are there"):
        read_vectors(tmp_path, 0, 6)


def test_no_part_and_a_lost_part_are_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactMissingError, match="holds no part"):
        read_vectors(tmp_path)
    write_parts(tmp_path, rows=9, part_rows=3)
    (tmp_path / part_name(1)).unlink()
    with pytest.raises(ArtifactDamagedError, match="part-00002"):
        read_vectors(tmp_path)


def test_a_truncated_part_is_named(tmp_path: Path) -> None:
    write_parts(tmp_path, rows=3, part_rows=3)
    path = tmp_path / part_name(0)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ArtifactDamagedError, match="part-00000"):
        read_vectors(tmp_path)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e6])
def test_a_vector_that_float16_cannot_hold_names_its_item(tmp_path: Path, bad: float) -> None:
    vectors = np.ones((3, 2), np.float32)
    vectors[1, 0] = bad
    with pytest.raises(NonFiniteEmbeddingError, match="index 41"):
        write_vectors(tmp_path / part_name(0), np.array([40, 41, 42], np.int32), vectors)
    assert not list(tmp_path.iterdir())


def test_equal_vectors_give_equal_bytes(tmp_path: Path) -> None:
    write_parts(tmp_path / "a", rows=7, part_rows=7)
    write_parts(tmp_path / "b", rows=7, part_rows=7)
    assert (tmp_path / "a" / part_name(0)).read_bytes() == (tmp_path / "b" / part_name(0)).read_bytes()

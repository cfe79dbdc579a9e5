"""Magnitude codecs: fitted levels against brute force and even levels, ties, zero, floats, save and load."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from safetensors.torch import load_file, save_file

from hymirec.codebook import ResidualCodebook
from hymirec.codebook.magnitudes import (
    FloatMagnitudes,
    LevelMagnitudes,
    fit_magnitudes,
    lloyd_levels,
    magnitude_codec,
    squared_error,
)
from hymirec.errors import ArtifactDamagedError, ModelError

KINDS = ("lloyd4", "lloyd8", "float16", "float32")
numbers = st.floats(-8, 8, width=32).map(lambda x: round(x, 3))


def brute_force(values: np.ndarray, count: int) -> float:
    """Least squared error of sorted values cut into `count` intervals, one of them around 0."""
    best = np.inf
    for cuts in itertools.combinations_with_replacement(range(len(values) + 1), count - 1):
        cells = [values[a:b] for a, b in itertools.pairwise((0, *cuts, len(values)))]
        own = [float(((cell - cell.mean()) ** 2).sum()) if len(cell) else 0.0 for cell in cells]
        for zero, cell in enumerate(cells):
            best = min(best, sum(own) - own[zero] + float((cell**2).sum()))
    return best


@given(st.lists(numbers, min_size=1, max_size=9), st.integers(2, 4))
@settings(max_examples=60, deadline=None)
def test_levels_are_the_optimum_of_few_values(drawn: list[float], count: int) -> None:
    values = np.sort(np.array(drawn))
    levels = lloyd_levels(values, count)
    assert len(levels) == count
    assert 0 in levels
    assert squared_error(values, levels) == pytest.approx(brute_force(values, count), abs=1e-9)


@given(st.integers(0, 2**31), st.sampled_from(["normal", "uniform", "two humps", "heavy"]), st.sampled_from([16, 256]))
@settings(max_examples=12, deadline=None)
def test_levels_are_no_worse_than_even_ones(seed: int, shape: str, count: int) -> None:
    rng = np.random.default_rng(seed)
    values = {
        "normal": rng.normal(0.5, 0.1, 3000),
        "uniform": rng.uniform(-1, 1, 3000),
        "two humps": np.concatenate([rng.normal(-1, 0.1, 1500), rng.normal(2, 0.3, 1500)]),
        "heavy": rng.standard_cauchy(3000),
    }[shape]
    even = np.linspace(values.min(), values.max(), count)
    even[np.abs(even).argmin()] = 0.0
    assert squared_error(values, lloyd_levels(values, count)) <= squared_error(values, np.sort(even)) * (1 + 1e-12)


def test_4_bits_come_near_the_known_optimum_of_a_normal_variable() -> None:
    values = np.random.default_rng(0).normal(0, 1, (50_000, 2)).astype(np.float32)
    codec = fit_magnitudes("lloyd4", values)
    error = ((codec.values(codec.quantise(values)) - values) ** 2).mean(0)
    # 16 free levels: 0.0095 (Max, 1960); 0 as a level of its own costs little where it lies among the values.
    assert (error < 0.0108).all()


def test_a_fit_does_not_depend_on_the_order_of_rows() -> None:
    values = np.random.default_rng(1).normal(0.4, 0.1, (2000, 2)).astype(np.float32)
    levels = [fit_magnitudes("lloyd4", rows).levels_LV for rows in (values, values[::-1])]
    assert levels[0].tobytes() == levels[1].tobytes()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [0, 1, 3, 400])
def test_zero_is_kept_exactly_by_every_kind(kind: str, rows: int) -> None:
    sample = np.random.default_rng(2).uniform(0.3, 0.9, (rows, 3)).astype(np.float32)
    codec = fit_magnitudes(kind, sample)
    assert codec.values(codec.quantise(np.zeros((2, 3), np.float32))).tolist() == [[0.0] * 3] * 2


@given(arrays(np.float32, (7, 2), elements=st.floats(-3, 3, width=32)), st.sampled_from(KINDS))
@settings(max_examples=60, deadline=None)
def test_few_different_magnitudes_are_kept_exactly(values: np.ndarray, kind: str) -> None:
    codec = fit_magnitudes(kind, values)
    expected = values.astype(np.float16).astype(np.float32) if kind == "float16" else values
    assert np.array_equal(codec.values(codec.quantise(values)), expected)


def test_the_nearest_level_is_taken_ties_low_and_beyond_the_ends_clipped() -> None:
    levels = np.array([[-1, 0, *range(1, 15)]], np.float32)
    codec = LevelMagnitudes("lloyd4", levels)
    stored = codec.quantise(np.array([[-9.0], [-0.5], [0.5], [0.51], [2.5], [99.0]], np.float32))
    assert codec.values(stored)[:, 0].tolist() == [-1.0, -1.0, 0.0, 1.0, 2.0, 14.0]
    assert stored.dtype == np.uint8


@pytest.mark.parametrize("kind", KINDS)
def test_a_magnitude_that_cannot_be_stored_is_refused_with_its_row(kind: str) -> None:
    codec = fit_magnitudes(kind, np.ones((4, 2), np.float32))
    rows = np.ones((3, 2), np.float32)
    rows[2, 1] = np.inf
    with pytest.raises(ModelError, match="row 2"):
        codec.quantise(rows)
    rows[2, 1] = 70_000
    if kind == "float16":
        with pytest.raises(ModelError, match=r"row 2 .*magnitudes=float32"):
            codec.quantise(rows)


def test_levels_that_are_no_levels_are_refused() -> None:
    unsorted, no_zero = np.zeros((1, 16), np.float32), np.ones((1, 16), np.float32)
    unsorted[0, 3] = 1
    for levels in (unsorted, no_zero, np.zeros((1, 15), np.float32), np.zeros((1, 16))):
        with pytest.raises(ValueError):
            LevelMagnitudes("lloyd4", levels)
    for kind, levels in (("float16", unsorted), ("lloyd8", None), ("int3", None)):
        with pytest.raises(ValueError, match="expected magnitudes"):
            magnitude_codec(kind, levels)
    with pytest.raises(ValueError, match="shape"):
        fit_magnitudes("lloyd4", np.zeros(3, np.float32))


@pytest.mark.parametrize("kind", ["lloyd4", "lloyd8"])
def test_levels_are_saved_with_the_codebook(tmp_path: Path, kind: str) -> None:
    codec = fit_magnitudes(kind, np.random.default_rng(3).uniform(0, 1, (500, 2)).astype(np.float32))
    codebook = ResidualCodebook(torch.randn(2, 4, 3), {"balance": "none"}, codec)
    codebook.save_pretrained(tmp_path)
    loaded = ResidualCodebook.from_pretrained(tmp_path)
    assert loaded.magnitudes.kind == loaded.info["magnitudes"] == kind
    assert np.array_equal(loaded.magnitudes.levels_LV, codec.levels_LV)
    tensors = load_file(tmp_path / "codebook.safetensors")
    save_file({"centroids": tensors["centroids"]}, tmp_path / "codebook.safetensors")
    with pytest.raises(ArtifactDamagedError, match=r"codebook\.safetensors"):
        ResidualCodebook.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="2 layers"):
        ResidualCodebook(torch.randn(2, 4, 3), None, fit_magnitudes(kind, np.ones((5, 3), np.float32)))


def test_a_codebook_without_levels_stores_floats(tmp_path: Path) -> None:
    assert ResidualCodebook(torch.randn(2, 4, 3)).magnitudes == FloatMagnitudes("float16")
    ResidualCodebook(torch.randn(2, 4, 3), {"magnitudes": "float32"}).save_pretrained(tmp_path)
    assert ResidualCodebook.from_pretrained(tmp_path).magnitudes == FloatMagnitudes("float32")

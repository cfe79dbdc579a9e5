"""Arithmetic that depends on the numbers alone."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hymirec.codebook.exact import (
    MAX_PRODUCT,
    exact_products,
    exact_scores,
    mix,
    row_cosines,
    to_units,
    tree_sum,
    unit_length,
)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=70))
def test_a_tree_sum_is_the_sum(values: list[float]) -> None:
    assert float(tree_sum(torch.tensor([values], dtype=torch.float64))) == pytest.approx(math.fsum(values), abs=1e-6)


def test_a_tree_sum_leaves_its_argument_alone() -> None:
    x = torch.ones(3, 5)
    tree_sum(x)
    assert torch.equal(x, torch.ones(3, 5))


@pytest.mark.parametrize("width", [1, 2, 3, 31, 96, 384, 2048, 4096])
def test_products_of_units_are_exact_even_where_they_are_largest(width: int) -> None:
    rng = np.random.default_rng(width)
    rows = torch.from_numpy(rng.normal(size=(40, width)))
    rows = torch.cat([rows, torch.ones(1, width), torch.eye(width)[:1] * 1e-30, -rows[:1] * 1e30])
    units = to_units(rows)
    with exact_products():
        scores = exact_scores(units, units.float().T.contiguous())
    expected = units.numpy().astype(np.int64) @ units.numpy().astype(np.int64).T
    assert np.array_equal(scores.numpy().astype(np.int64), expected)
    assert expected.max() <= MAX_PRODUCT


def test_units_do_not_depend_on_neighbours_or_length_and_keep_the_direction() -> None:
    x = torch.randn(4200, 96, generator=torch.Generator().manual_seed(0))
    units = to_units(x)
    assert torch.equal(units, torch.cat([to_units(row) for row in x.split(37)]))
    assert torch.equal(units, to_units(x * 1024.0))
    assert float(row_cosines(x, units).min()) > 1 - 1e-5


def test_a_zero_row_and_an_underflowing_row_are_defined() -> None:
    units = to_units(torch.tensor([[0.0, 0.0], [3e-45, 0.0], [3e38, -3e38]]))
    length = unit_length(2)
    assert units[0].tolist() == [0, 0]
    assert units[1].tolist() == [length, 0]
    assert units[2].tolist() == [round(length / math.sqrt(2)), -round(length / math.sqrt(2))]
    assert row_cosines(units[[0, 1]], units[[1, 1]]).tolist() == [0.0, 1.0]


def test_products_stay_exact_when_the_process_prefers_faster_ones() -> None:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with exact_products():
            assert torch.get_float32_matmul_precision() == "highest"
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


def test_a_hash_of_row_numbers_is_even_one_to_one_and_salted() -> None:
    rows = np.arange(100_000, dtype=np.uint64)
    counts = np.bincount((mix(rows, 17) % np.uint64(32)).astype(np.int64), minlength=32)
    assert len(np.unique(mix(rows, 17))) == len(rows)
    assert counts.max() / counts.mean() < 1.06
    assert not np.array_equal(mix(rows, 17), mix(rows, 18))


def test_a_width_beyond_exactness_is_refused() -> None:
    with pytest.raises(ValueError, match="dimensions"):
        unit_length(1 << 21)

"""Coverage, Gini, novelty and MRR by hand, and what must hold for any lists."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hymirec.evaluation.metrics import count_lists, coverage, gini, means, novelty, per_user

exposures = st.lists(st.integers(0, 50), min_size=1, max_size=30).map(lambda own: np.array(own, np.int64))


def test_mrr_is_of_the_first_target_and_nothing_beyond_k() -> None:
    values = per_user(np.array([3, 1, 9]), np.array([0, 0, 1]), [5, 10], 2)
    assert values["MRR@5"].tolist() == [1 / 2, 0.0]
    assert values["MRR@10"].tolist() == [1 / 2, 1 / 10]
    assert means(values)["MRR@10"] == pytest.approx(0.3)


def test_places_without_an_item_are_not_counted() -> None:
    assert count_lists(np.array([[0, 2, -1], [2, -1, -1]]), 4).tolist() == [1, 0, 2, 0]


def test_coverage_by_hand() -> None:
    assert coverage(np.array([3, 0, 1, 0])) == 0.5


def test_gini_by_hand() -> None:
    # Mean absolute difference over twice the mean: pairs of (0, 1, 3) differ by 1, 3, 2; sum over ordered pairs 12.
    assert gini(np.array([3, 0, 1])) == pytest.approx(12 / (2 * 3 * 3 * (4 / 3)))
    assert gini(np.array([5, 5, 5, 5])) == 0.0
    assert gini(np.array([0, 0, 0, 7])) == pytest.approx(3 / 4)


def test_novelty_by_hand() -> None:
    # Shares with one more interaction each: 4/8, 2/8, 2/8, in bits 1, 2, 2.
    assert novelty(np.array([2, 1, 1]), np.array([3, 1, 1])) == pytest.approx((2 * 1 + 2 + 2) / 4)
    # A cold item is the most novel, and finite.
    assert novelty(np.array([0, 1]), np.array([7, 0])) == pytest.approx(-math.log2(1 / 9))


def test_no_lists_at_all() -> None:
    nothing = np.zeros(3, np.int64)
    assert (coverage(nothing), gini(nothing), novelty(nothing, nothing)) == (0.0, 0.0, 0.0)


@settings(deadline=None, max_examples=50)
@given(exposures, st.integers(1, 5), st.randoms())
def test_gini_knows_neither_names_nor_units(exposure: np.ndarray, factor: int, random: object) -> None:
    shuffled = np.array(sorted(exposure, key=lambda _: random.random()))  # type: ignore[attr-defined]
    value = gini(exposure)
    assert 0.0 <= value <= (len(exposure) - 1) / len(exposure) + 1e-12
    assert gini(shuffled) == pytest.approx(value)
    assert gini(exposure * factor) == pytest.approx(value)


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**31))
def test_mrr_lies_below_recall_of_one_target_and_grows_with_k(seed: int) -> None:
    ranks = np.random.default_rng(seed).integers(0, 30, 12)
    found = means(per_user(ranks, np.arange(12), [1, 5, 10], 12))
    assert found["MRR@1"] == found["R@1"]
    assert found["MRR@1"] <= found["MRR@5"] <= found["MRR@10"] <= found["R@10"]

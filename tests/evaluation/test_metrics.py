from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hymirec.evaluation.bootstrap import interval, paired_p_value
from hymirec.evaluation.metrics import means, per_user
from hymirec.recommender import ranking
from hymirec.recommender.ranking import rank


def test_one_target_a_user_by_hand() -> None:
    # Ranks 0, 2 and 10: hits at 10 are the first two; gains 1/log2(2) = 1 and 1/log2(4) = 1/2.
    found = means(per_user(np.array([0, 2, 10]), np.array([0, 1, 2]), [1, 10, 50], 3))
    assert found["R@1"] == pytest.approx(1 / 3)
    assert found["R@10"] == pytest.approx(2 / 3)
    assert found["R@50"] == 1.0
    assert found["N@1"] == pytest.approx(1 / 3)
    assert found["N@10"] == pytest.approx((1 + 0.5) / 3)
    assert found["N@50"] == pytest.approx((1 + 0.5 + 1 / math.log2(12)) / 3)


def test_several_targets_a_user_by_hand() -> None:
    # Targets at ranks 1 and 3. Ideal: ranks 0 and 1.
    found = means(per_user(np.array([1, 3]), np.array([0, 0]), [2, 10], 1))
    assert found["R@2"] == 0.5
    assert found["R@10"] == 1.0
    ideal = 1 + 1 / math.log2(3)
    assert found["N@2"] == pytest.approx((1 / math.log2(3)) / ideal)
    assert found["N@10"] == pytest.approx((1 / math.log2(3) + 1 / math.log2(5)) / ideal)


def test_more_targets_than_k_have_the_ideal_of_k() -> None:
    found = means(per_user(np.array([0, 1, 2]), np.array([0, 0, 0]), [2], 1))
    assert found["N@2"] == pytest.approx(1.0)
    assert found["R@2"] == pytest.approx(2 / 3)


def test_a_user_without_targets_counts_in_no_mean() -> None:
    values = per_user(np.array([0]), np.array([1]), [10], 3)
    assert np.isnan(values["R@10"][[0, 2]]).all()
    assert means(values) == {"R@10": 1.0, "N@10": 1.0, "MRR@10": 1.0}


def test_no_users_at_all_is_zero() -> None:
    nothing = np.empty(0, np.int64)
    assert means(per_user(nothing, nothing, [10], 0)) == {"R@10": 0.0, "N@10": 0.0, "MRR@10": 0.0}


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**31), st.integers(1, 4), st.integers(5, 60), st.integers(1, 17))
def test_ranks_equal_a_full_sort_for_any_chunking(seed: int, interests: int, items: int, chunk: int) -> None:
    rng = np.random.default_rng(seed)
    # Few distinct values: many ties.
    r = torch.from_numpy(rng.integers(-1, 2, (3, interests, 4)).astype(np.float32))
    v = torch.from_numpy(rng.integers(-1, 2, (items, 4)).astype(np.float32))
    targets = [rng.choice(items, 2, replace=False), rng.choice(items, 1), np.empty(0, np.int64)]
    masked = [np.setdiff1d(rng.choice(items, 3), t) for t in targets]
    old = ranking.CHUNK_SCORES
    ranking.CHUNK_SCORES = chunk * 3 * interests
    try:
        found = rank(r, v, targets, masked).ranks
    finally:
        ranking.CHUNK_SCORES = old
    for row in range(3):
        scores = (r[row] @ v.T).amax(dim=0).numpy()
        order = [i for i in np.lexsort((np.arange(items), -scores)) if i not in set(masked[row])]
        assert found[row].tolist() == [order.index(t) for t in targets[row]]


def test_a_masked_target_is_ranked_all_the_same() -> None:
    items = torch.eye(3)
    interests = torch.tensor([[[0.9, 0.5, 0.1]]])
    assert rank(interests, items, [np.array([0])], [np.array([0, 1])]).ranks[0].tolist() == [0]
    assert rank(interests, items, [np.array([2])], [np.array([0, 2])]).ranks[0].tolist() == [1]


def test_the_interval_covers_the_mean_and_narrows_with_users() -> None:
    rng = np.random.default_rng(0)
    few, many = rng.random(50), rng.random(5000)
    low, high = interval(few, 500, 1)  # type: ignore[misc]
    low_many, high_many = interval(many, 500, 1)  # type: ignore[misc]
    assert low < few.mean() < high
    assert high_many - low_many < (high - low) / 3
    assert interval(few, 0, 1) is None
    assert interval(few, 500, 1) == interval(few, 500, 1)


def test_the_paired_test_sees_a_small_consistent_difference_and_no_difference() -> None:
    rng = np.random.default_rng(0)
    a = rng.random(2000)
    assert paired_p_value(a + 0.01 + 0.05 * rng.standard_normal(2000), a, 1000, 1) < 0.01
    assert paired_p_value(rng.random(2000), rng.random(2000), 1000, 1) > 0.01

"""What is popular now: counts by hand, the choice on validation, and the same scores in evaluation and in serving."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from indifferent import Indifferent

from hymirec.catalog.prepared import Sequences
from hymirec.config import EvaluationConfig, TrendConfig
from hymirec.evaluation.evaluate import evaluate_model
from hymirec.recommender.trend import DAY, PastEvents, Trend, TrendCounts, open_trend, save_trend
from hymirec.recommender.trend_fit import fit_trend

ITEMS = 40


def test_counts_by_hand() -> None:
    """Item 1 had events two days and one day ago, item 2 one this second, which is not before it."""
    past = PastEvents(np.array([1, 1, 2]), np.array([0, DAY, 2 * DAY]), 4)
    counts_BN = past.before([2 * DAY, 0, 3 * DAY], half_life=1.0)
    np.testing.assert_allclose(counts_BN, [[0, 0.75, 0, 0], [0, 0, 0, 0], [0, 0.375, 0.5, 0]])
    np.testing.assert_allclose(Trend(0.1, 1.0).bonus(counts_BN[0]), 0.1 * np.log([1, 1.75, 1, 1]), rtol=1e-6)


def test_an_item_is_forgotten_after_ten_half_lives() -> None:
    """Then its count is exactly none, so that few items have a bonus."""
    counts = TrendCounts.of(np.array([3]), np.array([0]), 4, half_life=2.0)
    assert counts.before(20 * DAY - 1)[0].tolist() == [3]
    assert counts.before(20 * DAY + 2)[0].tolist() == []


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 40 * DAY)), min_size=1, max_size=60),
    st.sampled_from([0.5, 3.0, 30.0]),
    st.integers(0, 59),
    st.randoms(use_true_random=False),
)
def test_serving_counts_as_the_evaluation_does(events: list[tuple[int, int]], half_life: float, cut: int, rng) -> None:
    """Whatever part of the events comes later, and in whatever order."""
    events.sort(key=lambda event: event[1])
    items, ts = (np.array(column, np.int64) for column in zip(*events, strict=True))
    counts = TrendCounts.of(items[: cut + 1], ts[: cut + 1], 6, half_life)
    later = list(range(cut + 1, len(events)))
    rng.shuffle(later)
    for row in later:
        counts = counts.add(items[row : row + 1], ts[row : row + 1])
    now = int(ts[-1]) + DAY
    found, values = counts.before(now)
    expected = PastEvents(items, ts, 6).before([now], half_life)[0]
    dense = np.zeros(6, np.float32)
    dense[found] = values
    # A count at the edge of being none may fall on either side by rounding.
    np.testing.assert_allclose(dense, expected, rtol=1e-4, atol=2.0**-9)


def _fashions(users: int, fashionable: bool) -> Sequences:
    """Each week has one item; with `fashionable`, everyone's events of a week are of that week's item."""
    rng = np.random.default_rng(1)
    length = 4
    ts = np.sort(rng.integers(0, 70 * DAY, (users, length)), axis=1)
    items = ts // (7 * DAY) if fashionable else rng.integers(0, ITEMS, ts.shape)
    offsets = np.arange(0, users * length + 1, length)
    half = np.full(users, length - 2, np.int32)
    return Sequences(
        pa.array(range(users)), offsets, items.astype(np.int32).ravel(), ts.astype(np.int64).ravel(), half, half + 1
    )


def test_a_trend_is_found_where_there_is_one(tmp_path: Path) -> None:
    """Everyone takes this week's item: the trend finds it, and it survives the disk."""
    sequences, model, evaluation = _fashions(200, True), Indifferent(ITEMS), EvaluationConfig(mask_history=False)
    before = evaluate_model(model, sequences, "test", evaluation)
    fitted = fit_trend(model, sequences, TrendConfig(), evaluation)
    assert fitted.trend.weight > 0
    assert fitted.chosen.ndcg > fitted.chosen.without + 0.2
    model.trend = fitted.trend
    after = evaluate_model(model, sequences, "test", evaluation)
    assert after.means["R@10"] > before.means["R@10"] + 0.2
    save_trend(tmp_path, fitted.report(), fitted.trend, sequences, ITEMS)
    trend, counts = open_trend(tmp_path)
    assert trend == fitted.trend
    assert counts is not None
    assert counts.at == int(sequences.ts.max()) + 1


@pytest.mark.parametrize("weights", [TrendConfig().weights, ()])
def test_no_trend_where_there_is_none(weights: tuple[float, ...], tmp_path: Path) -> None:
    """A gain within its own error is no gain; without weights nothing is tried."""
    sequences = _fashions(200, False)
    fitted = fit_trend(Indifferent(ITEMS), sequences, TrendConfig(weights=weights), EvaluationConfig())
    assert fitted.trend == Trend()
    save_trend(tmp_path, fitted.report(), fitted.trend, sequences, ITEMS)
    assert open_trend(tmp_path) == (Trend(), None)

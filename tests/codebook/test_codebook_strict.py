"""Strict balance: the auction against SciPy's assignment, and its use in a fit."""

from __future__ import annotations

import numpy as np
import pytest
from codebook_workers import clustered, run_threads
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from hymirec.codebook import IdentityReducer, Reducer, ResidualCodebook, fit_codebook
from hymirec.codebook.strict import equal_codes
from hymirec.config import CodebookConfig
from hymirec.errors import ModelError


@settings(deadline=None, max_examples=150)
@given(
    rows=st.integers(1, 40), centroids=st.integers(1, 9), spare=st.integers(0, 3), top=st.sampled_from([2, 50, 10**6]),
    seed=st.integers(0, 10**6),
)  # fmt: skip
def test_the_auction_is_as_good_as_the_best_assignment(
    rows: int, centroids: int, spare: int, top: int, seed: int
) -> None:
    scores = np.random.default_rng(seed).integers(-top, top, (rows, centroids))
    capacity = -(-rows // centroids) + spare
    code = equal_codes(scores, capacity)
    assert np.bincount(code, minlength=centroids).max() <= capacity
    places = np.repeat(scores, capacity, axis=1)
    best = places[linear_sum_assignment(places, maximize=True)].sum()
    assert best - scores[np.arange(rows), code].sum() <= rows * centroids * capacity / 16


def test_too_few_places_are_refused() -> None:
    with pytest.raises(ValueError, match="places for 5 rows"):
        equal_codes(np.zeros((5, 2), np.int64), 2)


def strict(rows: np.ndarray, ids: np.ndarray, reducer: Reducer) -> ResidualCodebook:
    config = CodebookConfig(layers=2, centroids=16, iterations=4, balance="strict")
    return fit_codebook(rows[ids], ids, config, 3, reducer)


def test_a_strict_fit_loads_all_centroids_alike_for_any_number_of_workers() -> None:
    rows, ids = clustered(400, 12), np.arange(400)
    alone = strict(rows, ids, IdentityReducer())
    assert [usage["max_over_mean"] for usage in alone.info["usage"]] == [1.0, 1.0]
    shared = run_threads(2, lambda reducer: strict(rows, ids[reducer.rank :: 2], reducer))
    assert all(np.array_equal(each.centroids_LKD, alone.centroids_LKD) for each in shared)


def test_a_set_that_is_not_small_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hymirec.codebook.strict.MAX_SCORES", 399 * 16)
    with pytest.raises(ModelError, match="balance=prices"):
        strict(clustered(400, 12), np.arange(400), IdentityReducer())

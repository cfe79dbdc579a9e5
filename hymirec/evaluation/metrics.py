"""Recall and NDCG at K from the ranks of targets.

A rank counts from 0: the number of items that stand before the target. With leave-one-out there is one target a user,
so Recall@K is the hit rate; with several targets a user the ideal ordering places them all first.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def per_user(
    ranks: NDArray[np.int64], users: NDArray[np.int64], ks: Sequence[int], count: int
) -> dict[str, NDArray[np.float64]]:
    """Metrics of each user: {"R@K" and "N@K": (count,)}.

    `ranks` (T,) are 0-based ranks of targets in their user's full ranking, distinct within a user; `users` (T,) says
    whose target each is, 0..count-1. A user without targets has NaN.
    """
    targets = np.bincount(users, minlength=count).astype(np.float64)
    divisor = np.where(targets > 0, targets, np.nan)
    gain = 1.0 / np.log2(np.arange(2, max(2, int(targets.max(initial=0))) + 2))
    ideal_sum = np.concatenate([[0.0], np.cumsum(gain)])
    found: dict[str, NDArray[np.float64]] = {}
    for k in ks:
        hit = ranks < k
        found[f"R@{k}"] = np.bincount(users, weights=hit, minlength=count) / divisor
    for k in ks:
        hit = ranks < k
        dcg = np.bincount(users, weights=np.where(hit, 1.0 / np.log2(ranks + 2.0), 0.0), minlength=count)
        ideal = ideal_sum[np.minimum(targets, k).astype(np.int64)]
        found[f"N@{k}"] = dcg / np.where(targets > 0, ideal, np.nan)
    return found


def means(values: dict[str, NDArray[np.float64]]) -> dict[str, float]:
    """Mean over the users that have targets."""
    return {name: float(np.nanmean(value)) if np.isfinite(value).any() else 0.0 for name, value in values.items()}

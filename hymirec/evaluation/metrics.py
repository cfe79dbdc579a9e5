"""Metrics from the ranks of targets, and from how often each item was recommended.

A rank counts from 0: the number of items that stand before the target. With leave-one-out there is one target a user,
so Recall@K is the hit rate; with several targets a user the ideal ordering places them all first.

T targets  N catalogue
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def per_user(ranks: Ints, users: Ints, ks: Sequence[int], count: int) -> dict[str, Floats]:
    """Metrics of each user: {"R@K", "N@K" and "MRR@K": (count,)}.

    `ranks` (T,) are 0-based ranks of targets in their user's full ranking, distinct within a user; `users` (T,) says
    whose target each is, 0..count-1. MRR@K is 1 / (1 + rank) of the user's first target, 0 beyond K. A user without
    targets has NaN.
    """
    targets = np.bincount(users, minlength=count).astype(np.float64)
    known = targets > 0
    divisor = np.where(known, targets, np.nan)
    first = np.full(count, np.inf)
    np.minimum.at(first, users, ranks.astype(np.float64))
    gain = 1.0 / np.log2(np.arange(2, max(2, int(targets.max(initial=0))) + 2))
    ideal_sum = np.concatenate([[0.0], np.cumsum(gain)])
    recall, ndcg, mrr = {}, {}, {}
    for k in ks:
        hit = ranks < k
        recall[f"R@{k}"] = np.bincount(users, weights=hit, minlength=count) / divisor
        dcg = np.bincount(users, weights=np.where(hit, 1.0 / np.log2(ranks + 2.0), 0.0), minlength=count)
        ideal = ideal_sum[np.minimum(targets, k).astype(np.int64)]
        ndcg[f"N@{k}"] = dcg / np.where(known, ideal, np.nan)
        mrr[f"MRR@{k}"] = np.where(known, np.where(first < k, 1.0 / (1.0 + first), 0.0), np.nan)
    return {**recall, **ndcg, **mrr}


def means(values: dict[str, Floats]) -> dict[str, float]:
    """Mean over the users that have targets; 0 when there is none."""
    return {name: float(np.nanmean(value)) if np.isfinite(value).any() else 0.0 for name, value in values.items()}


def count_lists(top_BK: Ints, items: int) -> Ints:
    """How often each item (N,) is in the lists (B, K); -1 is no item."""
    return np.bincount(top_BK[top_BK >= 0], minlength=items)


def coverage(exposure_N: Ints) -> float:
    """Share of the catalogue that is in anyone's list."""
    return float((exposure_N > 0).mean())


def gini(exposure_N: Ints) -> float:
    """Gini index of exposure over all items: 0 when all are shown equally often, (N - 1) / N when one takes all."""
    n, total = len(exposure_N), int(exposure_N.sum())
    if total == 0:
        return 0.0
    weight = 2 * np.arange(1, n + 1) - n - 1
    return float(weight @ np.sort(exposure_N) / (n * total))


def novelty(exposure_N: Ints, popularity_N: Ints) -> float:
    """Mean of -log2 of an item's share of the training interactions over all places of all lists, in bits.

    `popularity_N` are training interactions; every item counts one more, so that a cold item has a share.
    """
    total = int(exposure_N.sum())
    if total == 0:
        return 0.0
    share_N = (popularity_N + 1.0) / (popularity_N.sum() + len(popularity_N))
    return float(exposure_N @ -np.log2(share_N) / total)

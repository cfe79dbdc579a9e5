"""Bootstrap over users: intervals of a mean and the paired test of two models.

Where U users have few distinct values, as metrics at K do, a resample is drawn as how often each value occurs in it, a
multinomial count. That is the same distribution as drawing users one by one, at one draw a value and not one a user:
1,000 resamples of the NDCG of 200,000 users take 7 ms instead of 2 s.

U users  V distinct values  R resamples
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

# Draws that are held at once.
CHUNK_DRAWS = 1 << 22
# A multinomial count costs about this many draws of a user.
COUNT_COST = 20


def interval(values: Floats, resamples: int, seed: int, level: float = 0.95) -> tuple[float, float] | None:
    """Percentile interval of the mean of (U,) values, users drawn with replacement; None without resamples or users."""
    values = values[np.isfinite(values)]
    if resamples == 0 or len(values) == 0:
        return None
    low, high = np.quantile(_resampled_means(values, resamples, seed), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def paired_p_value(a: Floats, b: Floats, resamples: int, seed: int) -> float:
    """Two-sided p-value of mean(a) = mean(b) over the same users, by the bootstrap of the paired difference.

    Never below 2 / (resamples + 1); 1 when no user has both values.
    """
    difference = a - b
    difference = difference[np.isfinite(difference)]
    if not len(difference):
        return 1.0
    means = _resampled_means(difference, resamples, seed)
    below = (1 + int((means <= 0).sum())) / (resamples + 1)
    above = (1 + int((means >= 0).sum())) / (resamples + 1)
    return min(1.0, 2 * min(below, above))


def _resampled_means(values: Floats, resamples: int, seed: int) -> Floats:
    """Means (R,) of resamples; equal values in any order and equal seeds give equal means."""
    rng = np.random.default_rng(seed)
    distinct_V, count_V = np.unique(values, return_counts=True)
    few = len(distinct_V) * COUNT_COST < len(values)
    ordered_U, share_V = np.repeat(distinct_V, count_V), count_V / len(values)

    def means(size: int) -> Floats:
        if few:
            return np.asarray(rng.multinomial(len(values), share_V, size) @ distinct_V / len(values))
        return np.asarray(ordered_U[rng.integers(0, len(values), (size, len(values)))].mean(axis=1))

    rows = max(1, CHUNK_DRAWS // (len(distinct_V) if few else len(values)))
    return np.concatenate([means(min(rows, resamples - start)) for start in range(0, resamples, rows)])

"""Bootstrap intervals over users."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def interval(values: NDArray[np.float64], resamples: int, seed: int, level: float = 0.95) -> tuple[float, float] | None:
    """Percentile interval of the mean of (U,) values, users drawn with replacement; None without resamples or users."""
    values = values[np.isfinite(values)]
    if resamples == 0 or len(values) == 0:
        return None
    low, high = np.quantile(_resampled_means(values, resamples, seed), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def paired_p_value(a: NDArray[np.float64], b: NDArray[np.float64], resamples: int, seed: int) -> float:
    """Two-sided p-value of mean(a) = mean(b) over the same users, by the bootstrap of the paired difference."""
    difference = a - b
    means = _resampled_means(difference[np.isfinite(difference)], resamples, seed)
    below = (1 + int((means <= 0).sum())) / (resamples + 1)
    above = (1 + int((means >= 0).sum())) / (resamples + 1)
    return min(1.0, 2 * min(below, above))


def _resampled_means(values: NDArray[np.float64], resamples: int, seed: int) -> NDArray[np.float64]:
    rng = np.random.default_rng(seed)
    return np.array([values[rng.integers(0, len(values), len(values))].mean() for _ in range(resamples)])

"""Pairs of items in histories, counted item by item and never held: memory is that of the neighbours kept.

N catalogue  K neighbours kept  E training events  W longest distance of a pair
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

Matrix = tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.float32]]
"""Neighbours of each item (N,), their indices (N, K) and similarities (N, K)."""


class Pairs(NamedTuple):
    """Events (E,) in which pairs are counted: user by user, in order; and where each item stands among them."""

    items_E: NDArray[np.int32]
    first_E: NDArray[np.int64]
    """First event of the event's user."""
    last_E: NDArray[np.int64]
    """One past the last."""
    places_E: NDArray[np.int64]
    """Events in order of item, ..."""
    start_N: NDArray[np.int64]
    """... and where each item's begin, (N + 1,)."""

    @classmethod
    def of(cls, user_E: NDArray[np.integer], items_E: NDArray[np.int32], size: int) -> Pairs:
        start = np.concatenate([[0], np.cumsum(np.bincount(items_E, minlength=size), dtype=np.int64)])
        first, last = np.searchsorted(user_E, user_E), np.searchsorted(user_E, user_E, side="right")
        return cls(items_E, first, last, np.argsort(items_E, kind="stable"), start)


@njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def nearest(
    pairs: Pairs,
    weight_W: NDArray[np.float64],
    backward: float,
    own_N: NDArray[np.float64],
    other_N: NDArray[np.float64],
    boost_N: NDArray[np.float64],
    shrink: float,
    most: int,
) -> Matrix:
    """Count the pairs of one item after the other and keep its most similar ones; of equal ones those of lower index.

    weight_W[d - 1] is what a pair of distance d counts. An item is not its own neighbour.
    """
    size = len(own_N)
    length_N = np.empty(size, np.int64)
    columns_NK, values_NK = np.zeros((size, most), np.int32), np.zeros((size, most), np.float32)
    count_N, met = np.zeros(size), np.empty(size, np.int32)
    for i in range(size):
        found = _count(i, pairs, weight_W, backward, count_N, met)
        alike = np.empty(found, np.float32)
        for p in range(found):
            j = met[p]
            alike[p] = count_N[j] / (own_N[i] * other_N[j] + shrink) * boost_N[j]
            count_N[j] = 0
        kept = _select(alike, met[:found], most)
        length_N[i] = len(kept)
        for place in range(len(kept)):
            columns_NK[i, place], values_NK[i, place] = met[kept[place]], alike[kept[place]]
    return length_N, columns_NK, values_NK


@njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _count(
    i: int,
    pairs: Pairs,
    weight_W: NDArray[np.float64],
    backward: float,
    count_N: NDArray[np.float64],
    met: NDArray[np.int32],
) -> int:
    """Add up the pairs of item i in count_N, list the items met, and return how many they are."""
    found = 0
    for place in range(pairs.start_N[i], pairs.start_N[i + 1]):
        event = pairs.places_E[place]
        first = max(pairs.first_E[event], event - len(weight_W)) if backward > 0 else event
        for other in range(first, min(pairs.last_E[event], event + len(weight_W) + 1)):
            j = pairs.items_E[other]
            if j != i:
                if count_N[j] == 0:
                    met[found] = j
                    found += 1
                distance = abs(other - event)
                count_N[j] += weight_W[distance - 1] * (backward if other < event else 1)
    return found


@njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _select(alike: NDArray[np.float32], items: NDArray[np.int32], most: int) -> NDArray[np.int64]:
    """Places of the `most` largest; of equal ones those of lower items."""
    if len(alike) <= most:
        return np.arange(len(alike))
    least = np.partition(alike, len(alike) - most)[len(alike) - most]
    above, tied = np.flatnonzero(alike > least), np.flatnonzero(alike == least)
    tied = tied[np.argsort(items[tied])]
    return np.concatenate((above, tied[: most - len(above)]))

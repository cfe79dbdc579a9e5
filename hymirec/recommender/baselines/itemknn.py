"""Item neighbours in closed form: how often two items share users, or follow each other, says how alike they are.

    similarity(i, j) = count(i, j) / ((n_i^alpha n_j^(1 - alpha) + shrink) n_j^beta)

with count(i, j) over whole training histories (alpha = 1/2 and nothing else: the cosine of two items' users) or over
pairs of events within a window, weighted 1/distance; n counts training users. The k nearest j of each i are kept. A
request's scores are sums over its history of weight x similarity. With `trend` they become shares of their total, and
`trend` times the items' shares of everyone's events in the last days are added. Pairs are counted item by item, never
held: memory is N k.

B users  N catalogue  K neighbours kept  E training events  W longest distance of a pair
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numba import njit
from numpy.typing import NDArray

from hymirec.catalog.prepared import Catalog, Sequences
from hymirec.errors import ModelError
from hymirec.recommender.baselines.contract import History
from hymirec.recommender.baselines.popularity import RecentCounts
from hymirec.recommender.baselines.tuning import Setting, Settings, Space, Validation, search
from hymirec.recommender.baselines.weights import popularity_share, rank_unscored, training_rows, weighted_rows
from hymirec.recommender.pairs import Matrix, Pairs, nearest

SPACE: Space = {
    "keep": (0.8, 0.35, 0.5, 0.65, 0.9, 0.95, 1.0),
    "days": (0, 0.1, 1, 10, 60),
    "trend": (0.3, 0, 0.1, 1, 3),
    "trend_days": (7, 1, 3, 30, 90),
    "window": (20, 0, 5, 50),
    "backward": (0.3, 0, 1),
    "shrink": (5, 0, 20, 100),
    "alpha": (0.5, 0.3, 0.7),
    "beta": (0, -0.3, -0.15, 0.2, 0.4),
    "neighbours": (200, 20, 50, 1000),
}
"""Grid of the search; the first of each list is where it starts.

keep, days   weights of the history, see `weighted_rows`
trend        weight of recent popularity against the neighbours' 1; 0: the history alone
trend_days   what is recent at a request
window       steps between two events that count as a pair; 0: anywhere in one user's history
backward     weight of pairs in which the neighbour came before, against 1 after; does nothing without a window
shrink       users added to the norm, so that chance pairs of rare items rank low
alpha        share of the norm that the history's item has
beta         exponent of popularity that similarities are divided by; negative favours popular neighbours
neighbours   kept for each item
"""
_SIMILARITY = ("window", "backward", "shrink", "alpha", "beta", "neighbours")


class ItemKNN:
    """Tuned in `fit` by at most `trials` settings of `space`, a third of them random.

    `space` replaces lists of SPACE: `{"window": (0,)}` is the classic model of whole histories.
    """

    def __init__(
        self, trials: int = 80, mask_history: bool = True, space: Space | None = None, name: str = "ItemKNN"
    ) -> None:
        self.name = name
        self.settings: dict[str, Setting] = {}
        self._trials, self._mask_history = trials, mask_history
        self._space: Space = {**SPACE, **(space or {})}
        self._similarity: Matrix | None = None
        self._counts: RecentCounts | None = None
        self._share_N: NDArray[np.float32] = np.empty(0, np.float32)

    def fit(self, sequences: Sequences, catalog: Catalog) -> None:
        """See `Baseline.fit`; validation targets choose the settings."""
        users = training_rows(sequences, catalog.size)[0]
        n_N = np.maximum(np.bincount(users.indices, minlength=catalog.size), 1).astype(np.float64)
        longest = int(np.diff(users.indptr).max(initial=1))
        baskets = Pairs.of(np.repeat(np.arange(users.shape[0]), np.diff(users.indptr)), users.indices, catalog.size)
        user, item, _ = sequences.training_events()
        steps = Pairs.of(user, item, catalog.size)

        @lru_cache(maxsize=2)
        def similarity(window: int, backward: float, shrink: float, alpha: float, beta: float, most: float) -> Matrix:
            weight = 1 / np.arange(1, window + 1) if window else np.ones(longest)
            norms = n_N**alpha, n_N ** (1 - alpha), n_N**-beta
            pairs, backward = (steps, float(backward)) if window else (baskets, 1.0)
            found: Matrix = nearest(pairs, weight, backward, *norms, float(shrink), min(int(most), catalog.size))
            return found

        def judge(settings: Settings) -> float:
            self.settings = settings
            self._similarity = similarity(*(settings[key] for key in _SIMILARITY))
            return validation.ndcg(self.score)

        self._share_N = popularity_share(catalog.popularity)
        self._counts = RecentCounts(sequences, catalog.size)
        validation = Validation(sequences, self._mask_history)
        tuned = search(self._space, judge, self._trials, draws=self._trials // 3)
        self.settings = tuned.report()
        self._similarity = similarity(*(tuned.settings[key] for key in _SIMILARITY))

    def score(self, histories: Sequence[History]) -> NDArray[np.float32]:
        """See `Baseline.score`. Items that are no neighbour of the history's follow by popularity, cold ones last.

        Raises ModelError before `fit`.
        """
        if self._similarity is None or self._counts is None:
            raise ModelError("ItemKNN knows no neighbours yet; call fit() first")
        size = len(self._share_N)
        rows = weighted_rows(histories, size, self.settings["keep"], self.settings["days"])
        scores = np.zeros((len(histories), size), np.float32)
        _add_neighbours(rows.indptr.astype(np.int64), rows.indices, rows.data, *self._similarity, scores)
        if self.settings["trend"]:
            scores = _shares(scores)
            scores += self.settings["trend"] * _shares(self._counts.before(histories, self.settings["trend_days"]))
        return rank_unscored(scores, self._share_N)


def _shares(scores_BN: NDArray[np.float32]) -> NDArray[np.float32]:
    """Each row over its sum; zeros stay zeros."""
    scores_BN /= np.maximum(scores_BN.sum(axis=1, keepdims=True), np.finfo(np.float32).tiny)
    return scores_BN


@njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _add_neighbours(
    begin: NDArray[np.int64],
    items: NDArray[np.int32],
    weights: NDArray[np.float32],
    length_N: NDArray[np.int64],
    columns_NK: NDArray[np.int32],
    values_NK: NDArray[np.float32],
    scores_BN: NDArray[np.float32],
) -> None:
    """Add weight x similarity of each history's items, in the order of its events: the same for any batch."""
    for b in range(len(begin) - 1):
        for event in range(begin[b], begin[b + 1]):
            item, weight = items[event], weights[event]
            for k in range(length_N[item]):
                scores_BN[b, columns_NK[item, k]] += weight * values_NK[item, k]

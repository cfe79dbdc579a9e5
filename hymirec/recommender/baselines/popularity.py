"""Popularity: the least that a recommender has to beat. B users  N catalogue"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hymirec.catalog.prepared import Catalog, Sequences
from hymirec.errors import ModelError
from hymirec.recommender.baselines.contract import History

DAY = 86_400


class Popularity:
    """Training interactions of all time, the same list for everyone."""

    name = "popularity"

    def __init__(self) -> None:
        self._count_N: NDArray[np.float32] | None = None

    def fit(self, sequences: Sequences, catalog: Catalog) -> None:
        """See `Baseline.fit`; the catalogue has counted already."""
        self._count_N = catalog.popularity.astype(np.float32)

    def score(self, histories: Sequence[History]) -> NDArray[np.float32]:
        """See `Baseline.score`. Raises ModelError before `fit`."""
        if self._count_N is None:
            raise ModelError("popularity has counted nothing yet; call fit() first")
        return np.broadcast_to(self._count_N, (len(histories), len(self._count_N)))


class RecentPopularity:
    """Training interactions of the last `days` before each request, whoever made them.

    Ties, and requests before any event, fall back on the counts of all time.
    """

    def __init__(self, days: float = 30.0) -> None:
        self.name = f"popularity, last {days:g} days"
        self._span = int(days * DAY)
        self._ts: NDArray[np.int64] = np.empty(0, np.int64)
        self._items: NDArray[np.int32] = np.empty(0, np.int32)
        self._all_N: NDArray[np.float32] | None = None

    def fit(self, sequences: Sequences, catalog: Catalog) -> None:
        """See `Baseline.fit`."""
        lengths = np.diff(sequences.offsets)
        row = np.repeat(np.arange(len(sequences)), lengths)
        kept = np.arange(len(sequences.items)) - sequences.offsets[row] < sequences.n_train[row]
        order = np.argsort(sequences.ts[kept], kind="stable")
        self._ts, self._items = sequences.ts[kept][order], sequences.items[kept][order]
        counts = catalog.popularity.astype(np.float32)
        self._all_N = counts / (counts.max(initial=0) + 1)

    def score(self, histories: Sequence[History]) -> NDArray[np.float32]:
        """See `Baseline.score`; events of the request's own second do not count. Raises ModelError before `fit`."""
        if self._all_N is None:
            raise ModelError("popularity has counted nothing yet; call fit() first")
        scores = np.empty((len(histories), len(self._all_N)), np.float32)
        for row, history in enumerate(histories):
            first, last = np.searchsorted(self._ts, [history.now - self._span, history.now])
            scores[row] = np.bincount(self._items[first:last], minlength=len(self._all_N)) + self._all_N
        return scores

"""Popularity: the least that a recommender has to beat. B users  N catalogue"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hymirec.catalog.prepared import Catalog, Sequences
from hymirec.errors import ModelError
from hymirec.recommender.baselines.contract import History
from hymirec.recommender.baselines.tuning import Setting, Settings, Validation, search
from hymirec.recommender.baselines.weights import DAY, popularity_share

WINDOWS = (30, 1, 3, 7, 90, 365)


class Popularity:
    """Training interactions of all time, the same list for everyone."""

    name = "popularity"

    def __init__(self) -> None:
        self.settings: dict[str, Setting] = {}
        self._count_N: NDArray[np.float32] | None = None

    def fit(self, sequences: Sequences, catalog: Catalog) -> None:
        """See `Baseline.fit`; the catalogue has counted already."""
        self._count_N = catalog.popularity.astype(np.float32)

    def score(self, histories: Sequence[History]) -> NDArray[np.float32]:
        """See `Baseline.score`. Raises ModelError before `fit`."""
        if self._count_N is None:
            raise ModelError("popularity has counted nothing yet; call fit() first")
        return np.broadcast_to(self._count_N, (len(histories), len(self._count_N)))


class RecentCounts:
    """Training events of everyone in order of time, to be counted before any moment."""

    def __init__(self, sequences: Sequences, items: int) -> None:
        _, event, ts = sequences.training_events()
        order = np.argsort(ts, kind="stable")
        self._ts, self._event, self._size = ts[order], event[order], items

    def before(self, histories: Sequence[History], days: float) -> NDArray[np.float32]:
        """Events of each item (B, N) in the last `days` before each request; those of the request's own second not.

        Requests are answered in order of time: the counts of one become those of the next.
        """
        now = np.array([history.now for history in histories], np.int64)
        first, last = np.searchsorted(self._ts, now - int(days * DAY)), np.searchsorted(self._ts, now)
        counts = np.empty((len(histories), self._size), np.float32)
        running = np.zeros(self._size, np.int64)
        left = right = 0
        for row in np.argsort(now, kind="stable"):
            running += np.bincount(self._event[right : last[row]], minlength=self._size)
            running -= np.bincount(self._event[left : first[row]], minlength=self._size)
            left, right = first[row], last[row]
            counts[row] = running
        return counts


class RecentPopularity:
    """Training interactions of the last `days` before each request, whoever made them.

    Without `days`, `fit` takes the best of 1, 3, 7, 30, 90 and 365 by validation NDCG@10. Ties, and requests before any
    event, fall back on the counts of all time.
    """

    def __init__(self, days: float | None = 30.0, mask_history: bool = True) -> None:
        self.name = _named(days) if days else "popularity, recent"
        self.settings: dict[str, Setting] = {}
        self._days, self._mask_history = days, mask_history
        self._counts: RecentCounts | None = None
        self._share_N: NDArray[np.float32] = np.empty(0, np.float32)

    def fit(self, sequences: Sequences, catalog: Catalog) -> None:
        """See `Baseline.fit`."""
        self._counts = RecentCounts(sequences, catalog.size)
        self._share_N = popularity_share(catalog.popularity)
        if self._days:
            self.settings = {"days": self._days}
            return
        validation = Validation(sequences, self._mask_history)

        def judge(settings: Settings) -> float:
            self.settings = settings
            return validation.ndcg(self.score)

        self.settings = search({"days": WINDOWS}, judge, trials=len(WINDOWS), draws=0).report()
        self.name = _named(self.settings["days"])

    def score(self, histories: Sequence[History]) -> NDArray[np.float32]:
        """See `Baseline.score`; events of the request's own second do not count. Raises ModelError before `fit`."""
        if self._counts is None:
            raise ModelError("popularity has counted nothing yet; call fit() first")
        scores = self._counts.before(histories, self.settings["days"])
        scores += self._share_N
        return scores


def _named(days: float) -> str:
    return f"popularity, last {days:g} days"

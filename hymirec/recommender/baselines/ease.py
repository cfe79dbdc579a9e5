"""EASE in closed form (Steck 2019), with recency: a linear model that predicts an item of a row from the others.

    B = I - P diag(1 / diag P),  P = (X' R X + l2 I)^-1,  score = weights of the history's items x B

A row of X is a user's training history, or each run of `run` consecutive events of it; R weighs rows by their age. The
diagonal of B is zero. Cost: one inverse of (M, M) for each (run, halflife, l2) that is tried, M items with training
events: about 2 s at 3,700 and a minute at 10,000 on one core.

B users  N catalogue  M items with training events
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray

from hymirec.catalog.prepared import Catalog, Sequences
from hymirec.errors import ModelError
from hymirec.recommender.baselines.contract import History
from hymirec.recommender.baselines.tuning import Setting, Settings, Space, Validation, search
from hymirec.recommender.baselines.weights import DAY, popularity_share, rank_unscored, training_rows, weighted_rows

SPACE: Space = {
    "keep": (0.8, 0.5, 0.65, 0.9, 0.95, 1.0),
    "days": (0, 1, 10, 60),
    "l2": (100, 20, 500, 2000),
    "run": (20, 0, 10, 50),
    "halflife": (0, 90),
}
"""Grid of the search; the first of each list is where it starts.

keep, days   weights of the history, see `weighted_rows`
l2           ridge
run          events of a row of X; 0: a user's whole training history
halflife     a row whose last event is so many days older than the newest of all counts half; 0: all rows count alike
"""
MOST_ITEMS = 20_000


class EASE:
    """Tuned in `fit` by at most `trials` settings of `space`, which replaces lists of SPACE."""

    def __init__(
        self, trials: int = 40, mask_history: bool = True, space: Space | None = None, name: str = "EASE"
    ) -> None:
        self.name = name
        self.settings: dict[str, Setting] = {}
        self._trials, self._mask_history = trials, mask_history
        self._space: Space = {**SPACE, **(space or {})}
        self._warm_M: NDArray[np.int64] = np.empty(0, np.int64)
        self._share_N: NDArray[np.float32] = np.empty(0, np.float32)
        self._weights_MM: NDArray[np.float32] | None = None

    def fit(self, sequences: Sequences, catalog: Catalog) -> None:
        """See `Baseline.fit`; validation targets choose the settings.

        Raises ModelError when more than 20,000 items have training events.
        """
        self._warm_M = np.flatnonzero(catalog.popularity)
        items = len(self._warm_M)
        if items > MOST_ITEMS:
            raise ModelError(
                f"EASE inverts a dense matrix of items: {items:,} have training events, {MOST_ITEMS:,} is the most "
                f"({4e-9 * items**2:.0f} GB a copy here); compare with ItemKNN, which is sparse"
            )

        @lru_cache(maxsize=1)
        def gram(run: int, halflife: float) -> NDArray[np.float32]:
            sparse = _gram(sequences, catalog.size, run, halflife)[self._warm_M][:, self._warm_M]
            dense: NDArray[np.float32] = sparse.toarray()
            return dense

        @lru_cache(maxsize=2)
        def solved(run: int, halflife: float, l2: float) -> NDArray[np.float32]:
            return item_weights(gram(run, halflife), l2)

        def judge(settings: Settings) -> float:
            self.settings = settings
            self._weights_MM = solved(settings["run"], settings["halflife"], settings["l2"])
            return validation.ndcg(self.score)

        self._share_N = popularity_share(catalog.popularity)
        validation = Validation(sequences, self._mask_history)
        tuned = search(self._space, judge, self._trials, draws=0)
        self._weights_MM = solved(tuned.settings["run"], tuned.settings["halflife"], tuned.settings["l2"])
        self.settings = tuned.report()

    def score(self, histories: Sequence[History]) -> NDArray[np.float32]:
        """See `Baseline.score`. Items without training events come last; without a history popularity decides.

        Raises ModelError before `fit`.
        """
        if self._weights_MM is None:
            raise ModelError("EASE has solved nothing yet; call fit() first")
        scores = np.zeros((len(histories), len(self._share_N)), np.float32)
        rows = weighted_rows(histories, len(self._share_N), self.settings["keep"], self.settings["days"])
        # Sparse times dense adds item by item: a user's scores are the same in any batch.
        scores[:, self._warm_M] = rows[:, self._warm_M] @ self._weights_MM
        return rank_unscored(scores, self._share_N)


def item_weights(gram_MM: NDArray[np.float32], l2: float) -> NDArray[np.float32]:
    """B (M, M) of a Gram matrix: entry (i, j) is what item i says for item j; the diagonal is zero."""
    ridge = torch.from_numpy(gram_MM.copy())
    ridge.diagonal().add_(l2)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(ridge))
    weights: torch.Tensor = inverse.T.contiguous().div_(-inverse.diagonal())
    return weights.fill_diagonal_(0).numpy()


def _gram(sequences: Sequences, items: int, run: int, halflife: float) -> sp.csr_matrix:
    """X' R X (N, N), float32."""
    rows, last = training_rows(sequences, items, run)
    if not halflife:
        return rows.T @ rows
    age = (last.max(initial=0) - last) / DAY
    return rows.T @ sp.diags((0.5 ** (age / halflife)).astype(np.float32)) @ rows

"""What a baseline has to offer. B users  N catalogue"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from hymirec.catalog.prepared import Catalog, Sequences


class History(NamedTuple):
    """What is known of a user at a request: item indices and times, oldest first, and the time of the request."""

    items: NDArray[np.int32]
    ts: NDArray[np.int64]
    now: int


class Baseline(Protocol):
    """Fit on training events, then score the whole catalogue."""

    name: str
    """As it stands in tables of results."""
    settings: dict[str, float | int]
    """What `fit` chose, for reports."""

    def fit(self, sequences: Sequences, catalog: Catalog) -> None:
        """Learn from each user's first n_train events and nothing else."""
        ...

    def score(self, histories: Sequence[History]) -> NDArray[np.float32]:
        """Scores (B, N) of all items; larger is better. Masking the history is the evaluation's affair."""
        ...

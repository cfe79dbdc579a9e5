"""What the training task, the evaluation and the ranking ask of a model: HyMiRec and every trained baseline alike.

B users  S interests  W width  N catalogue
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

from hymirec.config import RecommenderConfig
from hymirec.recommender.neighbours import Neighbours
from hymirec.recommender.trend import Trend


@dataclass(frozen=True)
class Reach:
    """How far a model reads back, and where it is asked for interests in training.

    `recent` items, up to `max_history` events before them; `anchors` positions a sequence with the next `window` items
    as targets (0: none, the next item after every prefix is all there is to learn).
    """

    recent: int
    max_history: int = 0
    anchors: int = 0
    window: int = 0

    @classmethod
    def of(cls, config: RecommenderConfig) -> Reach:
        """The reach of the hybrid recommender."""
        history = config.light.max_history if config.light.enabled else 0
        return cls(config.llm.recent, history, config.dmil.anchors, config.dmil.window)


class Recommender(Protocol):
    """A module that answers requests with interests.

    An item's score is its largest product with one of them, the bonus that `trend` gives to what is popular now, and
    the one that `neighbours` gives to what stood beside the history's last items.
    """

    reach: Reach
    trend: Trend
    neighbours: Neighbours

    def item_vectors(self) -> Tensor:
        """Unit vectors (N, W) of all items."""
        ...

    def answer(self, batch: dict[str, Tensor]) -> Tensor:
        """Interests (B, S, W) of requests (see `batches.request_batch` for the keys)."""
        ...

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """ "loss" of a micro-batch and scalar diagnostics (see `batches.training_batch` for the keys)."""
        ...

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        """As `nn.Module.parameters`."""
        ...

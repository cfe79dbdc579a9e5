"""A recommender whose interests say nothing, so that what is added to its scores decides."""

from __future__ import annotations

import torch
from torch import nn

from hymirec.recommender.contract import Reach
from hymirec.recommender.neighbours import Neighbours
from hymirec.recommender.trend import Trend


class Indifferent(nn.Module):
    """Answers everyone with the same direction, which is near no item."""

    reach = Reach(5)

    def __init__(self, items: int) -> None:
        super().__init__()
        self.trend, self.neighbours = Trend(), Neighbours()
        self.anything = nn.Parameter(torch.zeros(1))
        generator = torch.Generator().manual_seed(0)
        self._vectors = nn.functional.normalize(torch.randn(items, 8, generator=generator), dim=1)

    def item_vectors(self) -> torch.Tensor:
        """Random."""
        return self._vectors

    def answer(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """The mean direction."""
        return self._vectors.mean(dim=0, keepdim=True).expand(len(batch["now"]), 1, 8) * 0.1

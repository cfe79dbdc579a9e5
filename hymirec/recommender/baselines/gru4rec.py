"""GRU4Rec: item vectors -> GRU -> linear.

Hidasi et al., arXiv 1511.06939, with the house's loss over the whole catalogue in place of its session-parallel
ranking losses. B batch  T items  W width
"""

from __future__ import annotations

from torch import Tensor, nn

from hymirec.config import BaselineConfig
from hymirec.recommender.baselines.sequential import Chunks, ItemTower, SequentialBaseline


class GRU4Rec(SequentialBaseline):
    """`settings.layers` GRU layers; dropout on the inputs and between layers."""

    def __init__(self, settings: BaselineConfig, tower: ItemTower) -> None:
        super().__init__(settings, tower)
        width, layers = settings.width, settings.layers
        self.dropout = nn.Dropout(settings.dropout)
        self.gru = nn.GRU(width, width, layers, batch_first=True, dropout=settings.dropout if layers > 1 else 0.0)
        self.out = nn.Linear(width, width)

    def states(self, chunks: Chunks) -> Tensor:
        """See `SequentialBaseline.states`."""
        # A unit vector has entries of W^-1/2; gates expect entries near 1.
        hidden_BTW, _ = self.gru(self.dropout(chunks.vectors_BTW * self.settings.width**0.5))
        state_BTW: Tensor = self.out(hidden_BTW)
        return state_BTW

"""Sums of a history's own item vectors, weighted by how far back each lies: what the interests start from.

With a geometric kernel this is item-to-item collaborative filtering in the space of the item vectors: alone, untrained,
and started from co-occurrence, it beats sequence models on sparse catalogues (docs/lab-log.md). Each interest has a
kernel of its own, from a short to a long memory, so interests differ before anything is learned.

B batch  T items  A anchors  S interests  K lags  W width
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

# Memory of the first and of the last interest: the weight of an item is this to the power of its distance.
SHORTEST, LONGEST = 0.6, 0.95


class RecencyKernels(nn.Module):
    """Learned weights (S, K) of the last K items; items further back weigh nothing."""

    def __init__(self, interests: int, lags: int) -> None:
        super().__init__()
        self.weight_SK = nn.Parameter(torch.empty(interests, lags))

    def reset_parameters(self) -> None:
        """Geometric kernels, each with a sum of 1."""
        interests, lags = self.weight_SK.shape
        rate = torch.linspace(SHORTEST, LONGEST, interests) if interests > 1 else torch.tensor([SHORTEST])
        kernel = rate[:, None] ** torch.arange(lags)
        with torch.no_grad():
            self.weight_SK.copy_(kernel / kernel.sum(dim=1, keepdim=True))

    def forward(self, vectors_BTW: Tensor, prefix_BA: Tensor, interest: int) -> Tensor:
        """Weighted sums (B, A, W) of the last items of each prefix of right-padded rows; zeros for prefix 0."""
        lag_BAT = prefix_BA[:, :, None] - 1 - torch.arange(vectors_BTW.shape[1], device=vectors_BTW.device)
        lags = self.weight_SK.shape[1]
        inside = (lag_BAT >= 0) & (lag_BAT < lags)
        weight_BAT = self.weight_SK[interest][lag_BAT.clamp(0, lags - 1)] * inside
        mixed: Tensor = weight_BAT @ vectors_BTW
        return mixed

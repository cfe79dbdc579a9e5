"""HSTU: pointwise attention with a gate, biased by distance and by time.

    U, V, Q, K = split(SiLU(LN(x) W));  A = SiLU(Q K^T + b_position + b_time) / n;  y = W_o dropout(U * LN(A V)) + x

Zhai et al., arXiv 2402.17152. n is the longest history that is read, so that an answer does not depend on the batch. A
time is the age of an event at the REQUEST that the row's item stands for (the one answered by the next item), in
buckets of floor(ln(max(1, seconds)) / .301); `time: false` leaves the term out and reads no timestamp.

B batch  T items  W width  h heads  d width of a head
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from hymirec.config import BaselineConfig
from hymirec.recommender.baselines.attention import silu_attention
from hymirec.recommender.baselines.sequential import Chunks, ItemTower, SequentialBaseline
from hymirec.recommender.ticks import age_buckets

TIME_BUCKETS = 128


class HSTUBlock(nn.Module):
    """One layer, with bias tables of its own that its heads share."""

    def __init__(self, settings: BaselineConfig) -> None:
        super().__init__()
        width = settings.width
        self.heads, self.length = settings.heads, settings.length
        self.norm = nn.LayerNorm(width)
        self.gate_value_query_key = nn.Linear(width, 4 * width)
        self.norm_read = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.out = nn.Linear(width, width)
        self.dropout = nn.Dropout(settings.dropout)
        self.distance_T = nn.Parameter(0.02 * torch.randn(settings.length))
        self.time_K = nn.Parameter(0.02 * torch.randn(TIME_BUCKETS)) if settings.time else None

    def forward(self, x_BTW: Tensor, bucket_BTT: Tensor | None) -> Tensor:
        """New states (B, T, W)."""
        parts = F.silu(self.gate_value_query_key(self.norm(x_BTW))).unflatten(2, (4, self.heads, -1))
        gate, value, query, key = parts.permute(2, 0, 3, 1, 4)
        read = silu_attention(query, key, value / self.length, self.distance_T, self.time_K, bucket_BTT)
        read_BTW, gate_BTW = (part.transpose(1, 2).flatten(2) for part in (read, gate))
        result: Tensor = x_BTW + self.out(self.dropout(gate_BTW * self.norm_read(read_BTW)))
        return result


class HSTU(SequentialBaseline):
    """`settings.layers` layers."""

    def __init__(self, settings: BaselineConfig, tower: ItemTower) -> None:
        super().__init__(settings, tower)
        self.dropout = nn.Dropout(settings.dropout)
        self.blocks = nn.ModuleList([HSTUBlock(settings) for _ in range(settings.layers)])

    def states(self, chunks: Chunks) -> Tensor:
        """See `SequentialBaseline.states`."""
        # A unit vector has entries of W^-1/2; the layers expect entries near 1.
        x_BTW: Tensor = self.dropout(chunks.vectors_BTW * self.settings.width**0.5)
        bucket_BTT = time_buckets(chunks) if self.settings.time else None
        for block in self.blocks:
            x_BTW = block(x_BTW, bucket_BTT)
        return x_BTW


def time_buckets(chunks: Chunks) -> Tensor:
    """Bucket (B, T, T), int32, of the age of the column's event at the row's request."""
    # `age_buckets` takes ln(1 + age); the second less makes it ln(max(1, age)).
    return age_buckets(chunks.request[:, :, None] - 1, chunks.ts[:, None, :]).to(torch.int32)

"""Light recommender: a long history, read through its codes, becomes a few coarse interests.

An event is decoded as sum_l a_l (W C_l)[b_l]: the codebook is projected once a pass (L x K x H), never the events, so
that an event costs L table rows instead of a product with the content width. Coarse queries then cross-attend to the
events: linear in the length of the history.

B batch  E events  Q coarse queries  L codebook layers  K centroids  D content width  H hidden width
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from hymirec.codebook.decode import decode
from hymirec.recommender.ticks import BUCKETS


class CrossBlock(nn.Module):
    """Pre-norm block: queries attend to events, then a feed-forward layer on the queries."""

    def __init__(self, hidden: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm_query = nn.LayerNorm(hidden)
        self.query = nn.Linear(hidden, hidden)
        self.key_value = nn.Linear(hidden, 2 * hidden)
        self.out = nn.Linear(hidden, hidden)
        self.dropout = nn.Dropout(dropout)
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(hidden), nn.Linear(hidden, 4 * hidden), nn.GELU(), nn.Linear(4 * hidden, hidden)
        )

    def forward(self, query_BQH: Tensor, event_BEH: Tensor, mask_B11E: Tensor) -> Tensor:
        """New queries (B, Q, H). `mask_B11E` is True where an event may be read."""
        batch, count, hidden = query_BQH.shape
        query = self.query(self.norm_query(query_BQH)).view(batch, count, self.heads, -1).transpose(1, 2)
        key, value = self.key_value(event_BEH).view(batch, -1, 2, self.heads, hidden // self.heads).unbind(2)
        read = F.scaled_dot_product_attention(query, key.transpose(1, 2), value.transpose(1, 2), attn_mask=mask_B11E)
        mixed = query_BQH + self.dropout(self.out(read.transpose(1, 2).reshape(batch, count, hidden)))
        result: Tensor = mixed + self.dropout(self.feed_forward(mixed))
        return result


class LightTower(nn.Module):
    """Codes and ages of a history -> coarse interests (B, Q, H). An empty history reads a learned null event."""

    def __init__(self, content_width: int, hidden: int, layers: int, heads: int, queries: int, dropout: float) -> None:
        super().__init__()
        self.hidden = hidden
        # A bare parameter, used in this module's forward: ZeRO-3 gathers it with the module.
        self.input_HD = nn.Parameter(torch.empty(hidden, content_width))
        self.query_QH = nn.Parameter(torch.empty(queries, hidden))
        self.null_H = nn.Parameter(torch.empty(hidden))
        self.age = nn.Embedding(BUCKETS, hidden)
        self.norm = nn.LayerNorm(hidden)
        self.blocks = nn.ModuleList([CrossBlock(hidden, heads, dropout) for _ in range(layers)])
        self.norm_out = nn.LayerNorm(hidden)
        nn.init.normal_(self.input_HD, std=content_width**-0.5)
        nn.init.normal_(self.query_QH)
        nn.init.normal_(self.null_H)
        nn.init.normal_(self.age.weight, std=0.5)

    def project(self, centroids_LKD: Tensor) -> Tensor:
        """The projected codebook (L, K, H)."""
        return centroids_LKD.to(self.input_HD.dtype) @ self.input_HD.T

    def forward(
        self,
        codes_BEL: Tensor,
        magnitudes_BEL: Tensor,
        age_BE: Tensor,
        mask_BE: Tensor,
        codebook_LKX: Tensor,
        projected: bool,
    ) -> Tensor:
        """Coarse interests (B, Q, H).

        `codebook_LKX` is the codebook in content space (X = D), or in hidden space when `projected` (X = H). `age_BE`
        are age buckets. Padding may stand anywhere: order is told by age alone, so the result does not depend on it.
        """
        batch, events, _ = codes_BEL.shape
        null = self.null_H.expand(batch, 1, -1)
        event = null
        if events:
            if projected:
                decoded = decode_events(codes_BEL, magnitudes_BEL, codebook_LKX)
            elif codebook_LKX.shape[1] > batch * events:
                # Fewer events than rows of a layer: the events are the cheaper ones to project. Raw vectors, always.
                content_BED = decode_events(codes_BEL, magnitudes_BEL, codebook_LKX)
                decoded = content_BED.to(self.input_HD.dtype) @ self.input_HD.T
            else:
                decoded = decode_events(codes_BEL, magnitudes_BEL, self.project(codebook_LKX))
            event = torch.cat([null, self.norm(decoded) + self.age(age_BE)], dim=1)
        readable = torch.cat([mask_BE.new_ones(batch, 1), mask_BE], dim=1)[:, None, None, :]
        query = self.query_QH.expand(batch, -1, -1)
        for block in self.blocks:
            query = block(query, event, readable)
        result: Tensor = self.norm_out(query)
        return result


def decode_events(codes_BEL: Tensor, magnitudes_BEL: Tensor, table_LKH: Tensor) -> Tensor:
    """sum_l a_l table[l, b_l] for every event, (B, E, H), in one fused pass."""
    batch, events, layers = codes_BEL.shape
    centroids, hidden = table_LKH.shape[1:]
    learning = torch.is_grad_enabled() and (table_LKH.requires_grad or magnitudes_BEL.requires_grad)
    if codes_BEL.device.type == "cpu" and table_LKH.dtype == torch.float32 and not learning:
        flat = codes_BEL.reshape(-1, layers), magnitudes_BEL.float().reshape(-1, layers)
        return decode(*flat, table_LKH).view(batch, events, hidden)
    offset = torch.arange(layers, device=codes_BEL.device) * centroids
    bag = F.embedding_bag(
        (codes_BEL + offset).view(-1, layers),
        table_LKH.reshape(layers * centroids, hidden),
        per_sample_weights=magnitudes_BEL.to(table_LKH.dtype).view(-1, layers),
        mode="sum",
    )
    return bag.view(batch, events, hidden)

"""The packed layout: many requests of one history in one pass of the LLM, exactly as if each were served alone.

    [coarse 1..Q ; start ; items 1..T ; queries of anchor 1 ; queries of anchor 2 ; ...]

An anchor is a prefix length p: the request made after p items. A query of anchor p sees the coarse tokens, the start
token, items 1..p and the earlier queries of its own anchor; an item sees what is before it. Position ids are those of
the serving layout, in which one anchor stands behind all items; tests hold the two to 1e-5 of each other.

B batch  T items  P = T + 1 prefixes  Q coarse  A anchors  J queries an anchor  X = Q + 1 + T + A J tokens
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hymirec.recommender.bias import bucket_bias
from hymirec.recommender.ticks import BUCKETS, NO_AGE, age_buckets


@dataclass(frozen=True)
class PackedLayout:
    """Who sees whom. `allowed_BXX[b, row, column]`; `position_BX` for the LLM's position ids."""

    coarse: int
    items: int
    anchors: int
    queries: int
    allowed_BXX: Tensor
    position_BX: Tensor

    @property
    def start(self) -> int:
        """Token of the start; prefix p has its state at token start + p."""
        return self.coarse

    @property
    def first_query(self) -> int:
        """Token of the first query of the first anchor."""
        return self.coarse + 1 + self.items


def pack(mask_BT: Tensor, anchors_BA: Tensor, coarse: int, queries: int) -> PackedLayout:
    """Lay out right-padded items (mask True = an item) and anchors (prefix lengths 0..T).

    Padding is seen by nobody but itself, so that no row is empty.
    """
    (batch, items), device = mask_BT.shape, mask_BT.device
    anchors = anchors_BA.shape[1]
    own_BJ = anchors_BA.repeat_interleave(queries, dim=1)
    item_T = torch.arange(items, device=device)
    # The number of items a row may see; coarse rows and the start see none.
    head = torch.zeros(batch, coarse + 1, dtype=torch.int64, device=device)
    seen_BX = torch.cat([head, (item_T + 1).expand(batch, items), own_BJ], dim=1)
    tokens = seen_BX.shape[1]
    row = torch.arange(tokens, device=device)
    allowed = torch.zeros(batch, tokens, tokens, dtype=torch.bool, device=device)
    # Coarse tokens and the start are causal among themselves and open to all behind them.
    allowed[:, :, : coarse + 1] = row[:, None] >= row[None, : coarse + 1]
    allowed[:, :, coarse + 1 : coarse + 1 + items] = (item_T < seen_BX[:, :, None]) & mask_BT[:, None, :]
    first = coarse + 1 + items
    if anchors * queries:
        group = torch.arange(anchors, device=device).repeat_interleave(queries)
        rank = torch.arange(queries, device=device).repeat(anchors)
        allowed[:, first:, first:] = (group[:, None] == group[None, :]) & (rank[None, :] <= rank[:, None])
    allowed |= torch.eye(tokens, dtype=torch.bool, device=device)
    rank_BJ = torch.arange(queries, device=device).repeat(anchors).expand(batch, -1)
    position = torch.cat([row[:first].expand(batch, first), coarse + 1 + own_BJ + rank_BJ], dim=1)
    return PackedLayout(coarse, items, anchors, queries, allowed, position)


class TimeBias(nn.Module):
    """A learned number for each head and bucket of (time of the row's request - time of the column's event).

    One table for all layers of the LLM. Columns without a time (coarse, start, queries) have a bucket of their own.
    """

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.zeros(heads, BUCKETS))

    def forward(self, layout: PackedLayout, ts_BT: Tensor, request_BP: Tensor, anchors_BA: Tensor) -> Tensor:
        """Bias (B, heads, X, X). `request_BP[b, p]` is the time of the request after p items."""
        batch = ts_BT.shape[0]
        asked_BA = request_BP.gather(1, anchors_BA).repeat_interleave(layout.queries, dim=1)
        row_BX = torch.cat([request_BP[:, :1].expand(batch, layout.coarse), request_BP, asked_BA], dim=1)
        bucket = torch.full_like(layout.allowed_BXX, NO_AGE, dtype=torch.int32)
        first = layout.start + 1
        bucket[:, layout.start :, first : first + layout.items] = age_buckets(
            row_BX[:, layout.start :, None], ts_BT[:, None, :]
        )
        return bucket_bias(self.table, bucket)


def additive(layout: PackedLayout, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    """The float mask (B, heads or 1, X, X) that Hugging Face models take: the bias where allowed, else the least value.

    Float on purpose: a boolean 4-D mask under eager attention is silently wrong.
    """
    allowed = layout.allowed_BXX[:, None]
    least = torch.finfo(dtype).min
    if bias is None:
        return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill(~allowed, least)
    return bias.to(dtype).masked_fill(~allowed, least)

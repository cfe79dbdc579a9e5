"""HSTU's attention: SiLU of the scores in place of a softmax, with a bias by distance and by age.

    out_i = sum_{j <= i} SiLU(q_i . k_j + distance[i - j] + age[bucket_ij]) v_j

Scores exist for a few sequences at a time and are computed again in the backward pass, so that memory does not grow
with B h T^2. The biases' gradients are sums by bucket (`bincount`); indexing a table would scatter them one by one.

B batch  h heads  T items  d width of a head  K age buckets
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

# Scores that are held at once: they stay in a core's cache.
CHUNK_SCORES, CHUNK_SCORES_GPU = 1 << 18, 1 << 28


def silu_attention(
    query_BhTd: Tensor,
    key_BhTd: Tensor,
    value_BhTd: Tensor,
    distance_T: Tensor,
    age_K: Tensor | None = None,
    bucket_BTT: Tensor | None = None,
) -> Tensor:
    """Causal attention (B, h, T, d); what stands on the right of a row is not read, so right padding needs no mask.

    `bucket_BTT` (int32) is the bucket of the age of column j's event at row i's request; None goes with `age_K` None.
    `distance_T` may be longer than T.
    """
    parts = (part.contiguous() for part in (query_BhTd, key_BhTd, value_BhTd))
    out: Tensor = _SiluAttention.apply(*parts, distance_T, age_K, bucket_BTT)
    return out


class _SiluAttention(torch.autograd.Function):
    """Both passes over chunks of sequences."""

    @staticmethod
    def forward(
        ctx: Any,
        query_BhTd: Tensor,
        key_BhTd: Tensor,
        value_BhTd: Tensor,
        distance_T: Tensor,
        age_K: Tensor | None,
        bucket_BTT: Tensor | None,
    ) -> Tensor:
        ctx.save_for_backward(query_BhTd, key_BhTd, value_BhTd, distance_T, age_K, bucket_BTT)
        out_BhTd = torch.empty_like(value_BhTd)
        for rows in _chunks(query_BhTd):
            score = _scores(query_BhTd[rows], key_BhTd[rows], distance_T, age_K, bucket_BTT, rows)
            out_BhTd[rows] = F.silu(score).tril_() @ value_BhTd[rows]
        return out_BhTd

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, distance_T, age_K, bucket_BTT = ctx.saved_tensors
        grad_query, grad_key, grad_value = (torch.empty_like(t) for t in (query, key, value))
        grad_distance = torch.zeros(len(distance_T), dtype=torch.float32, device=query.device)
        grad_age = None if age_K is None else torch.zeros(len(age_K), dtype=torch.float32, device=query.device)
        away_TT = _away(query.shape[2], query.device)
        for rows in _chunks(query):
            score = _scores(query[rows], key[rows], distance_T, age_K, bucket_BTT, rows)
            grad_out = grad_outputs[0][rows]
            grad_value[rows] = F.silu(score).tril_().transpose(2, 3) @ grad_out
            slope = torch.ops.aten.silu_backward(grad_out @ value[rows].transpose(2, 3), score).tril_()
            grad_query[rows] = slope @ key[rows]
            grad_key[rows] = slope.transpose(2, 3) @ query[rows]
            bias_CTT = slope.sum(dim=1, dtype=torch.float32)
            grad_distance += _sums(away_TT, bias_CTT.sum(dim=0), len(distance_T))
            if grad_age is not None and bucket_BTT is not None:
                grad_age += _sums(bucket_BTT[rows], bias_CTT, len(grad_age))
        grad_age = None if age_K is None or grad_age is None else grad_age.to(age_K.dtype)
        return grad_query, grad_key, grad_value, grad_distance.to(distance_T.dtype), grad_age, None


def _chunks(query_BhTd: Tensor) -> list[slice]:
    batch, heads, items, _ = query_BhTd.shape
    budget = CHUNK_SCORES_GPU if query_BhTd.is_cuda else CHUNK_SCORES
    step = max(1, budget // max(1, heads * items * items))
    return [slice(start, start + step) for start in range(0, batch, step)]


def _scores(
    query_ChTd: Tensor,
    key_ChTd: Tensor,
    distance_T: Tensor,
    age_K: Tensor | None,
    bucket_BTT: Tensor | None,
    rows: slice,
) -> Tensor:
    """Biased scores (C, h, T, T) of a chunk; what they are above the diagonal means nothing."""
    items = query_ChTd.shape[2]
    bias = _pick(distance_T, _away(items, query_ChTd.device))
    if age_K is not None and bucket_BTT is not None:
        bias = (bias + _pick(age_K, bucket_BTT[rows]))[:, None]
    return (query_ChTd @ key_ChTd.transpose(2, 3)).add_(bias)


def _away(items: int, device: torch.device) -> Tensor:
    """Distance (T, T) from row back to column, int32; 0 above the diagonal."""
    place_T = torch.arange(items, device=device, dtype=torch.int32)
    return (place_T[:, None] - place_T).clamp_(min=0)


def _pick(table_K: Tensor, index: Tensor) -> Tensor:
    """table[index]; `index_select` reads int32 and is several times faster than indexing."""
    return table_K.index_select(0, index.reshape(-1)).view(index.shape)


def _sums(index: Tensor, values: Tensor, count: int) -> Tensor:
    """Sum of the values (of index's shape) under each index, (count,)."""
    return torch.bincount(index.reshape(-1), weights=values.reshape(-1), minlength=count).to(torch.float32)

"""A learned number for each head and bucket, added to attention scores.

H heads  K buckets  B batch  X tokens
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def bucket_bias(table_HK: Tensor, bucket_BXX: Tensor) -> Tensor:
    """table[h, bucket[b, x, y]] as (B, H, X, X).

    The same as indexing, with another backward pass: gradients are counted into buckets, a head at a time. torch adds
    them one by one, which took most of a training step on a CPU.
    """
    bias: Tensor = _BucketBias.apply(table_HK, bucket_BXX)
    return bias


class _BucketBias(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, table_HK: Tensor, bucket_BXX: Tensor) -> Tensor:
        ctx.save_for_backward(bucket_BXX)
        ctx.buckets = table_HK.shape[1]
        flat = table_HK.index_select(1, bucket_BXX.reshape(-1))
        return flat.view(len(table_HK), *bucket_BXX.shape).transpose(0, 1)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        (bucket_BXX,) = ctx.saved_tensors
        where = bucket_BXX.reshape(-1)
        grad = grad_outputs[0]
        counted = [
            torch.bincount(where, weights=grad[:, head].reshape(-1).float(), minlength=ctx.buckets)
            for head in range(grad.shape[1])
        ]
        return torch.stack(counted).to(grad.dtype), None

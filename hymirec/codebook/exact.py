"""Assignments that do not depend on who computes them: integer arithmetic inside an fp32 product.

A unit row is scaled by `SCALE` and rounded to integers. Every partial sum of the product of two such rows is an integer
of at most |q| |c| <= (SCALE + sqrt(D) / 2)^2 < 2^24 (Cauchy and Schwarz), which fp32 holds exactly, so the result is
the same for any order of summation, batch size, number of threads and number of workers. Rounding costs 1 / (2 SCALE)
a component, some 1e-4 of a cosine.

N rows  K centroids  D width
"""

from __future__ import annotations

import torch
from torch import Tensor

SCALE = 4000.0
# Rows a product; bounds the (rows, K) score matrix.
CHUNK_SCORES = 1 << 23


def quantise(x_ND: Tensor) -> Tensor:
    """Integer rows (N, D, int16) of the directions of fp32 rows; a zero row stays zero.

    The norm is taken in fp64 row by row, so that a row's integers do not depend on its neighbours.
    """
    wide = x_ND.to(torch.float64)
    norm_N1 = (wide * wide).sum(dim=1, keepdim=True).sqrt()
    unit = torch.where(norm_N1 > 0, wide / norm_N1.clamp(min=1e-300), 0.0)
    return (unit * SCALE).round().to(torch.int16)


def score(q_ND: Tensor, centroids_KD: Tensor) -> Tensor:
    """Exact integer products (N, K) as fp32, in units of SCALE^2; both arguments hold integers."""
    return q_ND.to(torch.float32) @ centroids_KD.to(torch.float32).T


def assign(q_ND: Tensor, centroids_KD: Tensor, price_K: Tensor | None = None) -> Tensor:
    """Index (N,) of the centroid with the largest product, less its price; the first of equals."""
    step = max(1, CHUNK_SCORES // max(1, len(centroids_KD)))
    codes = torch.empty(len(q_ND), dtype=torch.int64, device=q_ND.device)
    for start in range(0, len(q_ND), step):
        scores = score(q_ND[start : start + step], centroids_KD)
        codes[start : start + step] = (scores if price_K is None else scores - price_K).argmax(dim=1)
    return codes

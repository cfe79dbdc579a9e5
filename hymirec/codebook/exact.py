"""Arithmetic whose result depends on the numbers alone: not on chunking, threads, workers or the kind of processor.

Floating-point sums depend on their order, and matrix products choose it by shape, thread count and instruction set. So:

- Sums over a row are a fixed tree of element-wise additions (`tree_sum`).
- A direction is kept as integers: a unit vector times a length below sqrt(2^23), rounded (`to_units`). Every partial
  sum of a product of two such rows is then an integer below 2^24 by Cauchy-Schwarz, which fp32 holds: an ordinary
  fp32 matrix product of them is exact in any order (`exact_scores`). The rounding turns a 384-d vector by 0.1 degrees.
- Sums over rows are 64-bit integers.

N, B rows  D width  K centroids
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# A product of two rows stays within this.
MAX_PRODUCT = 2**23
MAX_WIDTH = 1 << 20
# Rows that are converted to fp64 at a time.
CHUNK_ROWS = 4096
# Scores that are held at a time: 64 MiB of fp32.
CHUNK_SCORES = 1 << 24


def unit_length(width: int) -> int:
    """Length of the integer vector that stands for a unit vector of this width, before rounding.

    Rounding moves a vector by at most sqrt(D) / 2, so a rounded one is never longer than sqrt(MAX_PRODUCT).
    """
    if not 1 <= width <= MAX_WIDTH:
        raise ValueError(f"expected 1..{MAX_WIDTH} dimensions, got {width}")
    return math.floor(math.sqrt(MAX_PRODUCT) - math.sqrt(width) / 2)


def tree_sum(x_ND: Tensor) -> Tensor:
    """Sum over the last dimension, (N,), in an order fixed by the width alone."""
    width = x_ND.shape[-1]
    while width > 1:
        half = width // 2
        folded = x_ND[..., :half] + x_ND[..., half : 2 * half]
        if width % 2:
            folded[..., 0] += x_ND[..., width - 1]
        x_ND, width = folded, half
    return x_ND[..., 0]


def norms(x_ND: Tensor) -> Tensor:
    """Lengths of rows in fp64, (N,). Finite fp32 rows cannot overflow."""
    x_ND = x_ND.double()
    return tree_sum(x_ND * x_ND).sqrt()


def to_units(x_ND: Tensor) -> Tensor:
    """Directions of finite rows as integers, int16 (N, D); a zero row stays zero."""
    units = torch.empty(x_ND.shape, dtype=torch.int16, device=x_ND.device)
    length = unit_length(x_ND.shape[1])
    for start in range(0, len(x_ND), CHUNK_ROWS):
        x = x_ND[start : start + CHUNK_ROWS].double()
        # Scaled first: the square of a tiny fp64 value would be zero.
        largest = x.abs().amax(1, keepdim=True)
        x = x / torch.where(largest > 0, largest, torch.ones_like(largest))
        norm = tree_sum(x * x).sqrt()[:, None]
        factor = length / torch.where(norm > 0, norm, torch.ones_like(norm))
        units[start : start + CHUNK_ROWS] = (x * factor).round().to(torch.int16)
    return units


def row_cosines(x_ND: Tensor, y_ND: Tensor) -> Tensor:
    """Cosines of rows, fp64 (N,); 0 where either is zero."""
    found = []
    for x, y in zip(x_ND.split(CHUNK_ROWS), y_ND.split(CHUNK_ROWS), strict=True):
        length = norms(x) * norms(y)
        found.append(tree_sum(x.double() * y.double()) / torch.where(length > 0, length, 1.0))
    return torch.cat(found)


def exact_scores(units_BD: Tensor, table_DK: Tensor) -> Tensor:
    """Products of integer directions, fp32 (B, K), every one an exact integer.

    `table_DK` holds integer directions as fp32 columns. Call inside `exact_products()`.
    """
    return units_BD.to(torch.float32) @ table_DK


@contextmanager
def exact_products() -> Iterator[None]:
    """No TF32 and no bf16 in fp32 matrix products, whatever the process has chosen for its models."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.no_grad():
            yield
    finally:
        torch.set_float32_matmul_precision(before)


def chunk_rows(centroids: int) -> int:
    """Rows scored at a time."""
    return max(1, min(CHUNK_ROWS, CHUNK_SCORES // centroids))


def mix(values: NDArray[np.uint64], salt: int) -> NDArray[np.uint64]:
    """Hash of 64-bit values under a salt (SplitMix64's finaliser): equal on every machine."""
    x = values + np.array((salt * 0x9E3779B97F4A7C15 + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF, np.uint64)
    x = (x ^ (x >> np.uint64(30))) * np.array(0xBF58476D1CE4E5B9, np.uint64)
    x = (x ^ (x >> np.uint64(27))) * np.array(0x94D049BB133111EB, np.uint64)
    result: NDArray[np.uint64] = x ^ (x >> np.uint64(31))
    return result

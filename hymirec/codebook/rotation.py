"""A fixed pseudo-random rotation, so that a direction can be kept in one byte a component.

Embeddings of language models have a few components far larger than all others: at 8 bits, the others would be lost.
After a rotation every component of a unit vector is about N(0, 1/P), so one scale serves all rows: length 28 sqrt(P),
where 127 is 4.5 standard deviations (what lies beyond is clipped). Rounding then turns a vector by 0.6 degrees.
The rotation is two rounds of random signs, Walsh-Hadamard blocks and a permutation: P log P additions, each in a fixed
order, so a row's bits depend on the row alone; numba (CPU) and torch (GPU) give the same ones.

B rows  D width  P width padded to a multiple of 32
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic
from numpy.typing import NDArray
from torch import Tensor

from hymirec.codebook.exact import mix, tree_sum

ROUNDS = 2
PAD = 32
# Standard deviation of a component in 8 bits.
SCALE = 28.2
LARGEST = np.int32(127)
ROUNDER = np.float32(12_582_912)
# Rows that are rotated side by side.
GROUP = 16


class Rotation:
    """The rotation of one width. It has no seed: equal widths rotate alike."""

    def __init__(self, width: int) -> None:
        self.width = width
        self.padded = -(-width // PAD) * PAD
        self.block = self.padded & -self.padded
        number = np.arange(self.padded, dtype=np.uint64)
        salts = [2 * r for r in range(ROUNDS)]
        self._signs = np.stack([(mix(number, salt) >> np.uint64(63)).astype(np.float32) * 2 - 1 for salt in salts])
        self._order = np.stack([np.argsort(mix(number, salt + 1), kind="stable") for salt in salts])
        self._factor = np.float32(1 / math.sqrt(self.block))

    @property
    def length(self) -> float:
        """Length of the 8-bit vector that stands for a unit vector."""
        return SCALE * math.sqrt(self.padded)

    def forward(self, x_BD: Tensor) -> Tensor:
        """Rotated rows, fp32 (B, P), of the same length as `x_BD` (fp32) up to rounding."""
        x_BD = x_BD.detach().float().contiguous()
        if x_BD.device.type == "cpu":
            out = np.empty((len(x_BD), self.padded), np.float32)
            _forward(x_BD.numpy(), self._signs, self._order, self.block, self._factor, out)
            return torch.from_numpy(out)
        y = x_BD.new_zeros(len(x_BD), self.padded)
        y[:, : self.width] = x_BD
        for sign, order in zip(self._signs, self._order, strict=True):
            y = self._blocks(y * torch.from_numpy(sign).to(y.device)) * float(self._factor)
            y = y[:, torch.from_numpy(order).to(y.device)]
        return y

    def inverse(self, y_BP: Tensor) -> Tensor:
        """The rows (B, D) that `forward` would turn into these, in the dtype given."""
        y = y_BP
        for sign, order in zip(self._signs[::-1], self._order[::-1], strict=True):
            back = torch.empty_like(y)
            back[:, torch.from_numpy(order).to(y.device)] = y
            y = self._blocks(back) * float(self._factor) * torch.from_numpy(sign).to(y)
        return y[:, : self.width].contiguous()

    def directions(self, x_BD: Tensor) -> Tensor:
        """8-bit directions (B, P) of finite rows; a zero row stays zero."""
        return quantised(self.forward(x_BD), self.length)

    def _blocks(self, y_BP: Tensor) -> Tensor:
        """Walsh-Hadamard transform of every block, not scaled."""
        half = 1
        while half < self.block:
            pairs = y_BP.view(len(y_BP), -1, 2, half)
            left, right = pairs[:, :, 0], pairs[:, :, 1]
            y_BP = torch.stack([left + right, left - right], dim=2).view(len(y_BP), -1)
            half *= 2
        return y_BP


def quantised(y_BP: Tensor, length: float) -> Tensor:
    """8-bit directions (B, P) of rotated rows (fp32 or fp64), `length` long; a zero row stays zero."""
    if y_BP.device.type == "cpu" and y_BP.dtype == torch.float32:
        out = np.empty(y_BP.shape, np.int8)
        _quantise(y_BP.contiguous().numpy(), length, out)
        return torch.from_numpy(out)
    norm = tree_sum(y_BP.double() ** 2).sqrt()[:, None]
    factor = (length / torch.where(norm > 0, norm, torch.ones_like(norm))).to(y_BP.dtype)
    return (y_BP * factor).round().clamp(-int(LARGEST), int(LARGEST)).to(torch.int8)


def _typed_butterfly(typing_context: Any, first: Any, second: Any) -> Any:
    """(a, b) -> (a + b, a - b) for 16 fp32 at two addresses; numba alone would fear that they overlap."""

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        pointers = [b.inttoptr(address, ir.VectorType(ir.FloatType(), GROUP).as_pointer()) for address in args]
        left, right = (b.load(pointer) for pointer in pointers)
        left.align = right.align = 4
        for value, pointer in zip((b.fadd(left, right), b.fsub(left, right)), pointers, strict=True):
            b.store(value, pointer).align = 4
        return context.get_dummy_value()

    return types.void(first, second), codegen


_butterfly: Any = intrinsic(_typed_butterfly)


@njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _forward(
    x_BD: NDArray[np.float32],
    signs: NDArray[np.float32],
    order: NDArray[np.int64],
    block: int,
    factor: np.float32,
    out_BP: NDArray[np.float32],
) -> None:
    """16 rows side by side, so that every butterfly is a vector operation."""
    width, padded = x_BD.shape[1], out_BP.shape[1]
    y, z = np.empty((padded, GROUP), np.float32), np.empty((padded, GROUP), np.float32)
    address = z.ctypes.data
    for first in range(0, len(x_BD), GROUP):
        rows = min(GROUP, len(x_BD) - first)
        y[:] = np.float32(0)
        for i in range(rows):
            row = x_BD[first + i]
            for p in range(width):
                y[p, i] = row[p]
        for r in range(len(signs)):
            for p in range(padded):
                sign = signs[r, p]
                for i in range(GROUP):
                    z[p, i] = y[p, i] * sign
            half = 1
            while half < block:
                for start in range(0, padded, 2 * half):
                    for p in range(start, start + half):
                        _butterfly(address + p * GROUP * 4, address + (p + half) * GROUP * 4)
                half *= 2
            for p in range(padded):
                source = order[r, p]
                for i in range(GROUP):
                    y[p, i] = z[source, i] * factor
        for i in range(rows):
            row = out_BP[first + i]
            for p in range(padded):
                row[p] = y[p, i]


@njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _quantise(y_BP: NDArray[np.float32], length: float, out_BP: NDArray[np.int8]) -> None:
    padded = y_BP.shape[1]
    left, right = np.empty(padded, np.float64), np.empty(padded, np.float64)
    for i in range(len(y_BP)):
        row, out = y_BP[i], out_BP[i]
        for p in range(padded):
            left[p] = np.float64(row[p]) * np.float64(row[p])
        # The order of `tree_sum`.
        width = padded
        while width > 1:
            half = width // 2
            for p in range(half):
                right[p] = left[p] + left[half + p]
            if width % 2:
                right[0] += left[width - 1]
            left, right = right, left
            width = half
        norm = math.sqrt(left[0])
        scale = np.float32(length / norm if norm > 0 else length)
        for p in range(padded):
            # Adding and taking away 1.5 x 2^23 rounds to the nearest integer, ties to even.
            value = np.int32((row[p] * scale + ROUNDER) - ROUNDER)
            value = LARGEST if value > LARGEST else value
            out[p] = -LARGEST if value < -LARGEST else value

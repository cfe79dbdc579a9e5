"""Screening: an eighth of the products decides which centroids of a row deserve the rest.

Rows and centroids are rotated (`rotation.py`), so their first P1 of P components are a random projection: with
f = P1 / P, a product over them differs from f times the whole one by noise, whose standard deviation between two
centroids is sqrt(f (1 - f) / P) |x - m| |c_i - c_j|. m is the centroids' mean: what it contributes is known whole, and
costs one addition a centroid. A row keeps the centroids within 3 such deviations of its best partial score, takes their
remaining products, and of them the largest score. |c_i - c_j| is the table's root mean square, so in a narrow cone the
margin is narrow as well. A row that keeps more than K / 16 takes all products instead.
The rule sees a row, the centroids and their prices, and nothing else: whole numbers, and one square root in fp64, so
all kernels follow it to the same bits. Cost: an eighth of the products, a reading of the partial scores, and what rows
keep. On 100,000 clustered rows of width 2048 with K 4096, one row in 10,000 gets another centroid than by all products.

B rows  P padded width  P1 screened width  K centroids, in panels of 32
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic
from numpy.typing import NDArray
from torch import Tensor

from hymirec.codebook.vnni import BLOCK_ROWS, PANEL, TILE_ROWS, block_nearest, tile_scores
from hymirec.simd import I32, I64, LANES, Emitter

# Below this width or number of centroids, the partial products cost more than they spare.
LEAST_WIDTH = 1024
LEAST_CENTROIDS = 256
# A row takes all products where screening keeps more than one in so many centroids.
KEPT_SHARE = 16
DEVIATIONS = 3
# Rows that become wider numbers at a time.
CHUNK_ROWS = 256
# Bytes of partial scores in work at a time: they stay in the processor's caches.
SCORE_BYTES = 1 << 21


@dataclass(frozen=True)
class Rule:
    """What the screening of a row needs to know of the centroids.

    `first` is P1; `mean_P` (int8) the centroids' mean, of squared length `mean_square`; `share_K` (int32) what a
    centroid's product with the mean is expected to be over P1 components, less what it is; `rest_K` (int32) the sums of
    the other components. A row keeps centroids within `deviations` |x - mean| of its best, `limit` of them at most.
    """

    width: int
    first: int
    mean_P: Tensor
    mean_square: int
    square: int
    deviations: float
    limit: int
    share_K: Tensor
    rest_K: Tensor

    @classmethod
    def of(cls, units_KP: Tensor) -> Rule:
        """From 8-bit directions."""
        count, width = units_KP.shape
        # The rest is a multiple of 64 bytes.
        first = width % 64 + (width // 8 - width % 64 + 32) // 64 * 64
        units = units_KP.contiguous().cpu().numpy()
        total, square = _totals(units)
        mean = (2 * total + count) // (2 * count)
        with_mean, head_with_mean, rest = (np.empty(count, np.int32) for _ in range(3))
        _products(units, mean.astype(np.int32), first, with_mean, head_with_mean, rest)
        # |c_i - c_j|^2, added up over all ordered pairs.
        distances = 2 * (count * square - int((total**2).sum()))
        variance = first * (width - first) * distances / (width**3 * count * max(1, count - 1))
        share = (with_mean.astype(np.int64) * first // width - head_with_mean).astype(np.int32)
        return cls(
            width,
            first,
            torch.from_numpy(mean.astype(np.int8)).to(units_KP.device),
            int((mean**2).sum()),
            square // count,
            DEVIATIONS * math.sqrt(variance),
            count // KEPT_SHARE,
            torch.from_numpy(share).to(units_KP.device),
            torch.from_numpy(rest).to(units_KP.device),
        )

    def head_price(self, price_K: Tensor) -> Tensor:
        """What a partial score starts at minus, int32: the share of the price, with the mean's product made whole."""
        share = torch.div(price_K.long() * self.first, self.width, rounding_mode="floor")
        return share.to(torch.int32) - self.share_K

    def margin(self, rows_BP: Tensor) -> Tensor:
        """How far from its best partial score a row keeps a centroid, int32 (B,)."""
        # Whole numbers of this size are exact in fp64, whatever the order of a sum.
        product = torch.cat([rows.double() @ self.mean_P.double() for rows in rows_BP.split(CHUNK_ROWS)])
        square = self.square + self.mean_square - 2 * product
        return (square.clamp(min=0).sqrt() * self.deviations).to(torch.int32) + 1


def worthwhile(count: int, width: int) -> bool:
    """Whether centroids of this shape are worth screening."""
    return width >= LEAST_WIDTH and count >= LEAST_CENTROIDS


def _typed_partial_tile(
    typing_context: Any, rows: Any, stride: Any, panel: Any, steps: Any, price: Any, best: Any, score: Any
) -> Any:
    """Partial scores of 12 rows with one panel, written to `score` (12, 32), and the best of each of 16 lanes."""

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        *tile, best, score = args
        emit = Emitter(b)
        for r, scores in enumerate(tile_scores(emit, *tile)):
            top = emit.load(best, 64 * r)
            for c, value in enumerate(scores):
                emit.store(value, score, 4 * PANEL * r + 64 * c)
                top = b.select(b.icmp_signed(">", value, top), value, top)
            emit.store(top, best, 64 * r)
        return context.get_dummy_value()

    return types.void(rows, stride, panel, steps, price, best, score), codegen


def _typed_kept(typing_context: Any, score: Any, least: Any) -> Any:
    """A bit for each of 32 scores at an address: whether it is `least` or more."""

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        score, least = args
        emit, kept = Emitter(b), ir.Constant(I64, 0)
        floor = emit.spread(b.trunc(least, I32))
        for c in range(PANEL // LANES):
            lanes = b.bitcast(b.icmp_signed(">=", emit.load(score, 64 * c), floor), ir.IntType(LANES))
            kept = b.or_(kept, b.shl(b.zext(lanes, I64), ir.Constant(I64, LANES * c)))
        return kept

    return types.int64(score, least), codegen


def _typed_lowest_bit(typing_context: Any, bits: Any) -> Any:
    """Number of the lowest bit that is set, of at least one."""

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        return b.cttz(args[0], ir.Constant(ir.IntType(1), 1))

    return types.int64(bits), codegen


def _typed_product(typing_context: Any, row: Any, centroid: Any, steps: Any, coming: Any) -> Any:
    """Product of 64 `steps` unsigned with as many signed bytes; asks for as many at `coming`, the next centroid."""

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        row, centroid, steps, coming = args
        emit, byte = Emitter(b), ir.IntType(8)
        kind = ir.FunctionType(ir.VoidType(), [byte.as_pointer(), I32, I32, I32])
        prefetch = b.module.declare_intrinsic("llvm.prefetch", [byte.as_pointer()], kind)

        def multiply(step: Any, total: list[Any]) -> list[Any]:
            offset = b.mul(step, ir.Constant(I64, 64))
            # A read of data, to be kept in all caches.
            b.call(prefetch, [emit.at(coming, offset, byte), *(ir.Constant(I32, value) for value in (0, 3, 1))])
            return [emit.multiply_add(total[0], emit.load(row, offset), emit.load(centroid, offset))]

        (total,) = emit.loop(steps, [emit.constant([0] * LANES)], multiply)
        half = LANES
        while half > 1:
            half //= 2
            swapped = emit.constant([lane ^ half for lane in range(LANES)])
            total = b.add(total, b.shuffle_vector(total, total, swapped))
        return b.sext(b.extract_element(total, ir.Constant(I32, 0)), I64)

    return types.int64(row, centroid, steps, coming), codegen


_partial_tile: Any = intrinsic(_typed_partial_tile)
_kept: Any = intrinsic(_typed_kept)
_lowest_bit: Any = intrinsic(_typed_lowest_bit)
_product: Any = intrinsic(_typed_product)


@njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _totals(units_KP: NDArray[np.int8]) -> tuple[NDArray[np.int64], int]:
    """Sums of all components (P,), and of all squares."""
    total, square = np.zeros(units_KP.shape[1], np.int64), 0
    for k in range(len(units_KP)):
        length = np.int32(0)
        for p in range(len(total)):
            total[p] += units_KP[k, p]
            length += np.int32(units_KP[k, p]) * np.int32(units_KP[k, p])
        square += int(length)
    return total, square


@njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _products(
    units_KP: NDArray[np.int8],
    mean_P: NDArray[np.int32],
    first: int,
    whole_K: NDArray[np.int32],
    head_K: NDArray[np.int32],
    rest_K: NDArray[np.int32],
) -> None:
    """Products with the mean, with its first components, and sums of the other components."""
    for k in range(len(units_KP)):
        head, tail, rest = np.int32(0), np.int32(0), np.int32(0)
        for p in range(first):
            head += np.int32(units_KP[k, p]) * mean_P[p]
        for p in range(first, len(mean_P)):
            tail += np.int32(units_KP[k, p]) * mean_P[p]
            rest += np.int32(units_KP[k, p])
        whole_K[k], head_K[k], rest_K[k] = head + tail, head, rest


@njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _partial_sweep(
    heads: NDArray[np.int8],
    tiles: int,
    panels: NDArray[np.uint8],
    price: NDArray[np.int32],
    best: NDArray[np.int32],
    scores: NDArray[np.int32],
) -> None:
    """Partial scores (tiles, panels, 12, 32) and the best of each lane (rows, 16) of whole tiles of rows."""
    width = heads.shape[1]
    best[:] = -(2**31)
    for panel in range(len(panels)):
        for tile in range(tiles):
            _partial_tile(
                heads.ctypes.data + tile * TILE_ROWS * width,
                width,
                panels[panel].ctypes.data,
                width // 4,
                price.ctypes.data + panel * PANEL * 4,
                best.ctypes.data + tile * TILE_ROWS * LANES * 4,
                scores[tile, panel].ctypes.data,
            )


@njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _keep(
    scores: NDArray[np.int32],
    best: NDArray[np.int32],
    margin: NDArray[np.int64],
    found: NDArray[np.int32],
    found_score: NDArray[np.int32],
    kept: NDArray[np.int64],
) -> None:
    """Numbers and partial scores of the centroids that the 12 rows of a tile keep, one more than the limit at most."""
    least = np.empty(TILE_ROWS, np.int64)
    for r in range(TILE_ROWS):
        least[r] = best[r].max() - margin[r]
        kept[r] = 0
    room = found.shape[1]
    for panel in range(len(scores)):
        for r in range(TILE_ROWS):
            if kept[r] == room:
                continue
            bits = _kept(scores[panel, r].ctypes.data, least[r])
            while bits != 0 and kept[r] < room:
                lane = _lowest_bit(bits)
                bits &= bits - 1
                found[r, kept[r]] = panel * PANEL + lane
                found_score[r, kept[r]] = scores[panel, r, lane]
                kept[r] += 1


@njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _margin(row: NDArray[np.int8], mean_P: NDArray[np.int8], square: int, deviations: float) -> int:
    """`Rule.margin` of one row; `square` is that of a row and of the mean together."""
    product = np.int32(0)
    for p in range(len(row)):
        product += np.int32(row[p]) * np.int32(mean_P[p])
    return int(math.sqrt(max(0.0, float(square - 2 * np.int64(product)))) * deviations) + 1


@njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _best_kept(
    rest: NDArray[np.uint8],
    units_KP: NDArray[np.int8],
    first: int,
    end_K: NDArray[np.int32],
    found: NDArray[np.int32],
    found_score: NDArray[np.int32],
) -> int:
    """The centroid with the largest whole score of those that a row keeps."""
    top, which = np.int64(-(2**62)), 0
    for j in range(len(found)):
        k, coming = found[j], found[min(j + 1, len(found) - 1)]
        product = _product(
            rest.ctypes.data,
            units_KP.ctypes.data + k * units_KP.shape[1] + first,
            len(rest) // 64,
            units_KP.ctypes.data + coming * units_KP.shape[1] + first,
        )
        score = found_score[j] + product - end_K[k]
        if score > top:
            top, which = score, k
    return which


@njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _take_all(
    block: NDArray[np.int8],
    rows: int,
    panels: NDArray[np.uint8],
    price: NDArray[np.int32],
    numbers: NDArray[np.int64],
    code_B: NDArray[np.int32],
) -> None:
    """Nearest centroids by all products of the first rows of a block, whose numbers are given."""
    best, code = np.empty((BLOCK_ROWS, LANES), np.int32), np.empty((BLOCK_ROWS, LANES), np.int32)
    block_nearest(block, rows, panels, price, best, code)
    for i in range(rows):
        code_B[numbers[i]] = code[i, 0]


@njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def nearest(
    rows_BP: NDArray[np.int8],
    head_panels: NDArray[np.uint8],
    head_price: NDArray[np.int32],
    units_KP: NDArray[np.int8],
    end_K: NDArray[np.int32],
    panels: NDArray[np.uint8],
    price: NDArray[np.int32],
    mean_P: NDArray[np.int8],
    square: int,
    deviations: float,
    limit: int,
    code_B: NDArray[np.int32],
) -> int:
    """Screened nearest centroid of every row; returns how many rows took all products.

    `end_K` turns a partial score plus the product of the rest, with 128 added to each component of the row, into a
    score. `price` and `head_price` fill all panels; `units_KP` is contiguous.
    """
    count, width = rows_BP.shape
    first = head_panels.shape[1] * 4
    tiles = min(BLOCK_ROWS // TILE_ROWS, max(4, SCORE_BYTES // (len(panels) * PANEL * TILE_ROWS * 4)))
    heads = np.zeros((tiles * TILE_ROWS, first), np.int8)
    scores = np.empty((tiles, len(panels), TILE_ROWS, PANEL), np.int32)
    rest = np.empty(width - first, np.uint8)
    found, found_score = np.empty((2, TILE_ROWS, limit + 1), np.int32)
    kept, margin = np.zeros((2, TILE_ROWS), np.int64)
    best = np.empty((len(heads), LANES), np.int32)
    # Rows that take all products are collected into blocks of their own.
    whole, numbers = np.zeros((BLOCK_ROWS, width), np.int8), np.empty(BLOCK_ROWS, np.int64)
    waiting, total = 0, 0
    for start in range(0, count, len(heads)):
        rows = min(len(heads), count - start)
        heads[:rows] = rows_BP[start : start + rows, :first]
        used = (rows + TILE_ROWS - 1) // TILE_ROWS
        _partial_sweep(heads, used, head_panels, head_price, best, scores)
        for i in range(rows):
            r = i % TILE_ROWS
            if r == 0:
                for j in range(min(TILE_ROWS, rows - i)):
                    margin[j] = _margin(rows_BP[start + i + j], mean_P, square, deviations)
                _keep(scores[i // TILE_ROWS], best[i : i + TILE_ROWS], margin, found, found_score, kept)
            if kept[r] <= limit:
                for p in range(width - first):
                    rest[p] = np.uint8(rows_BP[start + i, first + p] + 128)
                code_B[start + i] = _best_kept(rest, units_KP, first, end_K, found[r, : kept[r]], found_score[r])
                continue
            whole[waiting], numbers[waiting] = rows_BP[start + i], start + i
            waiting, total = waiting + 1, total + 1
            if waiting == BLOCK_ROWS:
                _take_all(whole, waiting, panels, price, numbers, code_B)
                waiting = 0
    _take_all(whole, waiting, panels, price, numbers, code_B)
    return total

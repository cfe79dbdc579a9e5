"""Nearest-centroid kernel for processors with AVX-512 VNNI: 64 products of 8-bit integers an instruction.

A tile is 12 rows x 32 centroids, held in 24 vector registers over the whole width. Accumulators start at minus the
price, and the running best of 16 lanes (centroids k with k % 16 = lane) is updated before a tile leaves its registers:
no score is ever written to memory. `vpdpbusd` multiplies unsigned by signed bytes and adds into 32 bits without
saturation, so centroids are stored as c + 128; that adds 128 sum(x) to every score of a row and moves no argmax.
Compiled at run time by numba, so no C compiler is needed; the instruction itself is inline assembly.

B rows  P padded width (a multiple of 4)  K centroids, in panels of 32
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic
from numpy.typing import NDArray

from hymirec.simd import I32, I64, LANES, Emitter

PANEL = 2 * LANES
TILE_ROWS = 12
# Rows between two sweeps over the table: their int8 rows stay in the second-level cache.
BLOCK_ROWS = 16 * TILE_ROWS
# The score of a centroid that is not there.
ABSENT = -(2**30)


def tile_scores(emit: Emitter, rows: Any, stride: Any, panel: Any, steps: Any, price: Any) -> list[list[Any]]:
    """Scores of 12 rows (address, bytes a row) with one panel: for each row two vectors, in registers."""
    b, columns = emit.b, range(PANEL // LANES)
    start = [b.sub(emit.constant([0] * LANES), emit.load(price, 64 * c)) for c in columns]
    offsets = [b.mul(stride, ir.Constant(I64, r)) for r in range(TILE_ROWS)]

    def multiply(step: Any, sums: list[Any]) -> list[Any]:
        panel_step = b.add(panel, b.mul(step, ir.Constant(I64, 64 * len(columns))))
        centroids = [emit.load(panel_step, 64 * c) for c in columns]
        added = []
        for r in range(TILE_ROWS):
            row = emit.spread(emit.load(rows, b.add(offsets[r], b.mul(step, ir.Constant(I64, 4))), I32))
            added += [emit.multiply_add(sums[len(columns) * r + c], centroids[c], row) for c in columns]
        return added

    flat = emit.loop(steps, start * TILE_ROWS, multiply)
    return [flat[len(columns) * r : len(columns) * (r + 1)] for r in range(TILE_ROWS)]


def _codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
    """IR of one tile. Arguments are addresses and counts, all int64."""
    rows, stride, panel, steps, price, best, code, first = args
    emit = Emitter(b)
    scores = tile_scores(emit, rows, stride, panel, steps, price)
    lane = b.add(emit.spread(b.trunc(first, I32)), emit.constant(list(range(LANES))))
    codes = [b.add(lane, emit.constant([LANES * c] * LANES)) for c in range(PANEL // LANES)]
    for r in range(TILE_ROWS):
        top, which = emit.load(best, 64 * r), emit.load(code, 64 * r)
        for score, number in zip(scores[r], codes, strict=True):
            better = b.icmp_signed(">", score, top)
            top, which = b.select(better, score, top), b.select(better, number, which)
        emit.store(top, best, 64 * r)
        emit.store(which, code, 64 * r)
    return context.get_dummy_value()


def _typed_tile(
    typing_context: Any,
    rows: Any,
    stride: Any,
    panel: Any,
    steps: Any,
    price: Any,
    best: Any,
    code: Any,
    first: Any,
) -> Any:
    """Score 12 rows (address, bytes a row) with one panel, and update their best scores and codes, 16 lanes each."""
    return types.void(rows, stride, panel, steps, price, best, code, first), _codegen


_tile: Any = intrinsic(_typed_tile)


@njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def pack_table(units_KP: NDArray[np.int8]) -> NDArray[np.uint8]:
    """Panels (ceil(K / 32), P / 4, 2, 16, 4) of unsigned bytes c + 128; centroids that are not there are zero."""
    count, width = units_KP.shape
    panels = np.full(((count + PANEL - 1) // PANEL, width // 4, 2, LANES, 4), np.uint8(128), np.uint8)
    for k in range(count):
        for p in range(width):
            panels[k // PANEL, p // 4, k % PANEL // LANES, k % LANES, p % 4] = np.uint8(units_KP[k, p] + 128)
    return panels


@njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _sweep(
    block: NDArray[np.int8],
    rows: int,
    panels: NDArray[np.uint8],
    price: NDArray[np.int32],
    best: NDArray[np.int32],
    code: NDArray[np.int32],
) -> None:
    width = block.shape[1]
    best[:] = -(2**31)
    for panel in range(len(panels)):
        for tile in range(0, rows, TILE_ROWS):
            _tile(
                block.ctypes.data + tile * width,
                width,
                panels[panel].ctypes.data,
                width // 4,
                price.ctypes.data + panel * PANEL * 4,
                best.ctypes.data + tile * LANES * 4,
                code.ctypes.data + tile * LANES * 4,
                panel * PANEL,
            )


@njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def block_nearest(
    block: NDArray[np.int8],
    rows: int,
    panels: NDArray[np.uint8],
    price: NDArray[np.int32],
    best: NDArray[np.int32],
    code: NDArray[np.int32],
) -> None:
    """`nearest` of the first rows of a block; a row's answer comes to lie in the first of its 16 codes."""
    _sweep(block, rows, panels, price, best, code)
    for i in range(rows):
        top, which = best[i, 0], code[i, 0]
        for lane in range(1, LANES):
            if best[i, lane] > top or (best[i, lane] == top and code[i, lane] < which):
                top, which = best[i, lane], code[i, lane]
        code[i, 0] = which


@njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def nearest(
    rows_BP: NDArray[np.int8],
    panels: NDArray[np.uint8],
    price: NDArray[np.int32],
    code_B: NDArray[np.int32],
) -> None:
    """The centroid with the largest x.c - price of every row; ties go to the lower number. `price` fills all panels."""
    count, width = rows_BP.shape
    block = np.zeros((BLOCK_ROWS, width), np.int8)
    best, code = np.empty((BLOCK_ROWS, LANES), np.int32), np.empty((BLOCK_ROWS, LANES), np.int32)
    for start in range(0, count, BLOCK_ROWS):
        rows = min(BLOCK_ROWS, count - start)
        block[:rows] = rows_BP[start : start + rows]
        block_nearest(block, rows, panels, price, best, code)
        code_B[start : start + rows] = code[:rows, 0]


@njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def lanes(
    rows_BP: NDArray[np.int8],
    panels: NDArray[np.uint8],
    price: NDArray[np.int32],
    score_BG: NDArray[np.int32],
    code_BG: NDArray[np.int32],
) -> None:
    """Score x.c and number of the best centroid of each of the 16 lanes; ABSENT where a lane has none."""
    count, width = rows_BP.shape
    block = np.zeros((BLOCK_ROWS, width), np.int8)
    best, code = np.empty((BLOCK_ROWS, LANES), np.int32), np.empty((BLOCK_ROWS, LANES), np.int32)
    for start in range(0, count, BLOCK_ROWS):
        rows = min(BLOCK_ROWS, count - start)
        block[:rows] = rows_BP[start : start + rows]
        _sweep(block, rows, panels, price, best, code)
        for i in range(rows):
            total = np.int32(0)
            for p in range(width):
                total += np.int32(block[i, p])
            for lane in range(LANES):
                score = best[i, lane] - np.int32(128) * total
                score_BG[start + i, lane] = max(score, np.int32(ABSENT))
                code_BG[start + i, lane] = code[i, lane]


@njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def add_rows(rows_BP: NDArray[np.int8], code_B: NDArray[np.int32], sums_KP: NDArray[np.int32]) -> None:
    """Add every row to the sum of its centroid."""
    for i in range(len(rows_BP)):
        row, total = rows_BP[i], sums_KP[code_B[i]]
        for p in range(len(row)):
            total[p] += np.int32(row[p])

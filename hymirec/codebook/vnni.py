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

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic
from numpy.typing import NDArray

LANES = 16
PANEL = 2 * LANES
TILE_ROWS = 12
# Rows between two sweeps over the table: their int8 rows stay in the second-level cache.
BLOCK_ROWS = 16 * TILE_ROWS
# The score of a centroid that is not there.
ABSENT = -(2**30)

_I8, _I32, _I64 = ir.IntType(8), ir.IntType(32), ir.IntType(64)
_VECTOR = ir.VectorType(_I32, LANES)


def available() -> bool:
    """Whether this processor has the instruction."""
    features = llvm.get_host_cpu_features()
    return bool(features.get("avx512vnni") and features.get("avx512f"))


def _codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
    """IR of one tile. Arguments are addresses and counts, all int64."""
    rows, stride, panel, steps, price, best, code, first = args
    llvm.initialize_native_asmparser()
    pointer, columns = _VECTOR.as_pointer(), range(PANEL // LANES)

    def word(value: int) -> Any:
        return ir.Constant(_I64, value)

    def load(address: Any, offset: Any) -> Any:
        loaded = b.load(b.inttoptr(b.add(address, offset), pointer))
        loaded.align = 4
        return loaded

    def spread(scalar: Any) -> Any:
        one = b.insert_element(ir.Constant(_VECTOR, ir.Undefined), scalar, ir.Constant(_I32, 0))
        return b.shuffle_vector(one, one, ir.Constant(_VECTOR, [0] * LANES))

    multiply_add = ir.InlineAsm(
        ir.FunctionType(_VECTOR, [_VECTOR] * 3), "vpdpbusd $3, $2, $0", "=v,0,v,v", side_effect=False
    )
    start = [b.sub(ir.Constant(_VECTOR, [0] * LANES), load(price, word(64 * c))) for c in columns]
    offsets = [b.mul(stride, word(r)) for r in range(TILE_ROWS)]
    before, loop, after = b.block, b.append_basic_block("loop"), b.append_basic_block("after")
    b.branch(loop)

    b.position_at_end(loop)
    step = b.phi(_I64)
    step.add_incoming(word(0), before)
    sums = [[b.phi(_VECTOR) for _ in columns] for _ in range(TILE_ROWS)]
    centroids = [load(panel, b.add(b.mul(step, word(64 * len(columns))), word(64 * c))) for c in columns]
    added = []
    for r in range(TILE_ROWS):
        four = b.load(b.inttoptr(b.add(rows, b.add(offsets[r], b.mul(step, word(4)))), _I32.as_pointer()))
        four.align = 4
        row = spread(four)
        added.append([b.call(multiply_add, [sums[r][c], centroids[c], row]) for c in columns])
    following = b.add(step, word(1))
    step.add_incoming(following, loop)
    for r in range(TILE_ROWS):
        for c in columns:
            sums[r][c].add_incoming(start[c], before)
            sums[r][c].add_incoming(added[r][c], loop)
    b.cbranch(b.icmp_signed("<", following, steps), loop, after)

    b.position_at_end(after)
    lane = b.add(spread(b.trunc(first, _I32)), ir.Constant(_VECTOR, list(range(LANES))))
    codes = [b.add(lane, ir.Constant(_VECTOR, [LANES * c] * LANES)) for c in columns]
    for r in range(TILE_ROWS):
        top, which = load(best, word(64 * r)), load(code, word(64 * r))
        for c in columns:
            better = b.icmp_signed(">", added[r][c], top)
            top, which = b.select(better, added[r][c], top), b.select(better, codes[c], which)
        for value, address in ((top, best), (which, code)):
            b.store(value, b.inttoptr(b.add(address, word(64 * r)), pointer)).align = 4
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
        _sweep(block, rows, panels, price, best, code)
        for i in range(rows):
            top, which = best[i, 0], code[i, 0]
            for lane in range(1, LANES):
                if best[i, lane] > top or (best[i, lane] == top and code[i, lane] < which):
                    top, which = best[i, lane], code[i, lane]
            code_B[start + i] = which


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

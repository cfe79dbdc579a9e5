"""Vectors rounded to 8 bits, and how far a product of two rounded ones may be from the product itself.

With x = a x' + e for an item and q = b q' + f for a query, whole numbers x' and q', Cauchy and Schwarz bound what is
left out: |x.q - a b x'.q'| <= |e| |q| + |a x'| |f|. Items are scaled by stripes of 48 and queries by calls. Where sums
have 16 bits, |x'| and |q'| stay below 181: whatever they are, x'.q' fits. With 32 bits, all of a byte is used.

N items  W width  Q queries  P stripes of 48 items
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from hymirec.retrieval.kinds import Floats
from hymirec.retrieval.tiles import NARROW_STEP, QUERIES, REGISTERS, STRIPE, WIDE_STEP
from hymirec.simd import LANES

Doubles = NDArray[np.float64]
Sums = NDArray[np.int32] | NDArray[np.int16]

# The largest norm of a rounded vector where sums have 16 bits: its square fits.
NORM = 181
# The largest components; in 16 bits, two of an item plus 128, times two of a query, fit.
MOST, NARROW_QUERY_MOST = 127, 64
ZERO = 128


class Panels(NamedTuple):
    """Items as `tiles.tile` reads them.

    `codes` (P, steps, 48, 4 or 2) are x' + 128 in a byte; items that are not there are zero vectors. Of each stripe:
    `scale_P`, and the largest norms, of what rounding left out `error_P`, and of a rounded item `norm_P`.
    """

    codes: NDArray[np.uint8]
    scale_P: Doubles
    error_P: Doubles
    norm_P: Doubles


class Tiles(NamedTuple):
    """Queries as `tiles.tile` reads them: `codes` (T, steps, 4, 4) bytes, `starts` (4 T,) of the type of a sum.

    Of each query the norm of what rounding left out, `error_Q`, and its own, `norm_Q`; one `scale` for all.
    """

    codes: NDArray[np.int8]
    starts: Sums
    scale: float
    error_Q: Doubles
    norm_Q: Doubles


def norm_limit(width: int, wide: bool) -> float:
    """The largest norm of a vector such that, rounded, its products fit a sum."""
    return np.inf if wide else NORM - float(np.sqrt(width)) / 2


def pack_items(vectors_NW: Floats, wide: bool) -> Panels:
    """Round items (N, W), finite numbers, for sums of 32 bits if `wide`, else of 16."""
    count, width = vectors_NW.shape
    step = WIDE_STEP if wide else NARROW_STEP
    stripes, steps = -(-count // STRIPE), -(-width // step)
    panels = Panels(
        np.full((stripes, steps, REGISTERS * LANES, step), ZERO, np.uint8),
        *(np.zeros(stripes, np.float64) for _ in range(3)),
    )
    _pack(vectors_NW, norm_limit(width, wide), panels)
    return panels


@njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _pack(vectors_NW: Floats, limit: float, panels: Panels) -> None:
    (count, width), step = vectors_NW.shape, panels.codes.shape[3]
    for p in range(len(panels.codes)):
        norm, most = 0.0, 0.0
        rows = range(p * STRIPE, min(count, (p + 1) * STRIPE))
        for i in rows:
            square = 0.0
            for w in range(width):
                x = np.float64(vectors_NW[i, w])
                square += x * x
                most = max(most, abs(x))
            norm = max(norm, np.sqrt(square))
        scale = max(norm / limit, most / MOST)
        if scale == 0:
            scale = 1.0
        panels.scale_P[p] = scale
        for i in rows:
            error, square = 0.0, 0.0
            for w in range(width):
                x = np.float64(vectors_NW[i, w])
                code = np.rint(x / scale)
                panels.codes[p, w // step, i - p * STRIPE, w % step] = np.uint8(np.int64(code) + ZERO)
                error += (x - scale * code) ** 2
                square += (scale * code) ** 2
            panels.error_P[p] = max(panels.error_P[p], np.sqrt(error))
            panels.norm_P[p] = max(panels.norm_P[p], np.sqrt(square))


def pack_queries(queries_QW: Floats, wide: bool) -> Tiles:
    """Round queries (Q, W), finite numbers; the last tile is filled up with zero vectors."""
    count, width = queries_QW.shape
    step, most = (WIDE_STEP, MOST) if wide else (NARROW_STEP, NARROW_QUERY_MOST)
    tiles, steps = -(-count // QUERIES), -(-width // step)
    x = np.zeros((tiles * QUERIES, steps * step), np.float64)
    x[:count, :width] = queries_QW
    norm_Q = np.linalg.norm(x, axis=1)
    scale = max(norm_Q.max(initial=0) / norm_limit(width, wide), np.abs(x).max(initial=0) / most) or 1.0
    codes = np.rint(x / scale)
    error_Q = np.linalg.norm(x - scale * codes, axis=1)
    fours = codes.astype(np.int8).reshape(tiles, QUERIES, steps, 1, step).repeat(WIDE_STEP // step, axis=3)
    packed = np.ascontiguousarray(fours.reshape(tiles, QUERIES, steps, WIDE_STEP).transpose(0, 2, 1, 3))
    starts = (-ZERO * codes.sum(axis=1)).astype(np.int64).astype(np.int32 if wide else np.int16)
    return Tiles(packed, starts, float(scale), error_Q, norm_Q)

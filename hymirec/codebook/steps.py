"""The steps of coding a row, compiled: direction, best candidate, projection, least squares. Used by `search.py`.

Rows are rotated (`rotation.py`) and fp32; products, squares and least squares are fp64 in a fixed order, so a row's
codes and magnitudes are a function of the row and of the candidates alone.

B rows  P padded width  K centroids  L layers  G lanes (16)
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit
from numpy.typing import NDArray

from hymirec.codebook.products import dot, subtract
from hymirec.codebook.rotation import LARGEST, ROUNDER

# Squared sine of the angle between a centroid and the span of those before it, below which it counts as dependent:
# its magnitude would be rounding, and large. It is 0.6 degrees.
DEPENDENT = 1e-4

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Codes = NDArray[np.int32]


@njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def squares(y_BP: Floats, square_B: Doubles) -> None:
    """Squared lengths of rows."""
    for i in range(len(y_BP)):
        row = y_BP[i].ctypes.data
        square_B[i] = dot(row, row, y_BP.shape[1])


@njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def directions(y_BP: Floats, square_B: Doubles, length: float, out_BP: NDArray[np.int8]) -> None:
    """8-bit directions, `length` long, of rows whose squared lengths are known; zero stays zero."""
    for i in range(len(y_BP)):
        row, out = y_BP[i], out_BP[i]
        scale = np.float32(length / math.sqrt(square_B[i]) if square_B[i] > 0 else length)
        for p in range(y_BP.shape[1]):
            value = np.int32((row[p] * scale + ROUNDER) - ROUNDER)
            value = LARGEST if value > LARGEST else value
            out[p] = -LARGEST if value < -LARGEST else value


@njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def take_best(
    y_BP: Floats,
    square_B: Doubles,
    least_B: Doubles,
    score_BG: Codes,
    which_BG: Codes,
    margin: int,
    centroids_KP: Floats,
    code_B: Codes,
    magnitude_B: Floats,
) -> None:
    """Of the candidates whose score is within `margin` of the best, take the one with the largest product.

    Ties go to the lower code. Its projection leaves the row, in place, and `square_B` becomes what is left. Rows with
    no more than `least_B` left keep it and get code 0, magnitude 0.
    """
    width = y_BP.shape[1]
    for i in range(len(y_BP)):
        code_B[i], magnitude_B[i] = 0, 0
        if square_B[i] <= least_B[i]:
            continue
        row, top = y_BP[i].ctypes.data, score_BG[i, 0]
        for lane in range(1, score_BG.shape[1]):
            top = max(top, score_BG[i, lane])
        best, code = -np.inf, np.int32(-1)
        for lane in range(score_BG.shape[1]):
            if score_BG[i, lane] >= top - margin:
                candidate = which_BG[i, lane]
                product = dot(row, centroids_KP[candidate].ctypes.data, width)
                if product > best or (product == best and candidate < code):
                    best, code = product, candidate
        square_B[i] = subtract(row, best, centroids_KP[code].ctypes.data, row, width)
        code_B[i], magnitude_B[i] = code, best


@njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def extend(centroids_LKP: Floats, codes_L: Codes, layer: int, code: int, factor_LL: Doubles, added_L: Doubles) -> float:
    """Row `layer` of the Cholesky factor of the chosen centroids' products, for a code that joins those before it.

    Written to `added_L`; returns its diagonal. A diagonal of 0 says that the centroid is not used: it depends on
    those before it, or nothing was left of the row (the caller's word).
    """
    width = centroids_LKP.shape[2]
    mine = centroids_LKP[layer, code].ctypes.data
    rest = dot(mine, mine, width)
    for j in range(layer):
        value = 0.0
        if factor_LL[j, j] > 0:
            value = dot(mine, centroids_LKP[j, codes_L[j]].ctypes.data, width)
            for m in range(j):
                value -= added_L[m] * factor_LL[j, m]
            value /= factor_LL[j, j]
        added_L[j] = value
        rest -= value * value
    added_L[layer] = math.sqrt(rest) if rest > DEPENDENT else 0.0
    return float(added_L[layer])


@njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def solve(factor_LL: Doubles, target_L: Doubles, layers: int, magnitude_L: Doubles) -> None:
    """Magnitudes whose product with the factor's transpose is `target_L`; centroids not used get 0."""
    for j in range(layers - 1, -1, -1):
        value = target_L[j]
        for m in range(j + 1, layers):
            value -= factor_LL[m, j] * magnitude_L[m]
        magnitude_L[j] = value / factor_LL[j, j] if factor_LL[j, j] > 0 else 0.0


@njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def refit(
    y_BP: Floats,
    used_BL: NDArray[np.bool_],
    square_B: Doubles,
    centroids_LKP: Floats,
    codes_BL: Codes,
    magnitudes_BL: Floats,
) -> None:
    """Least-squares magnitudes on the chosen centroids, where they leave less than `square_B`; else they stay."""
    layers, width = centroids_LKP.shape[0], centroids_LKP.shape[2]
    factor, target = np.zeros((layers, layers)), np.zeros(layers)
    magnitude = np.zeros(layers)
    for i in range(len(y_BP)):
        row = y_BP[i].ctypes.data
        left = dot(row, row, width)
        for layer in range(layers):
            target[layer] = 0.0
            if not used_BL[i, layer]:
                factor[layer, : layer + 1] = 0.0
                continue
            code = codes_BL[i, layer]
            diagonal = extend(centroids_LKP, codes_BL[i], layer, code, factor, factor[layer])
            if diagonal > 0:
                value = dot(row, centroids_LKP[layer, code].ctypes.data, width)
                for j in range(layer):
                    value -= factor[layer, j] * target[j]
                target[layer] = value / diagonal
                left -= target[layer] * target[layer]
        if left < square_B[i]:
            solve(factor, target, layers, magnitude)
            for layer in range(layers):
                magnitudes_BL[i, layer] = magnitude[layer]

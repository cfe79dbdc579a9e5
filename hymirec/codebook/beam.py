"""A beam of partial code sequences of a row, ordered by what each leaves of it. Used by `search.py`.

Sequences of a beam differ: they differ in a code before the last, or come from one sequence and two lanes. So none has
to be merged, and a beam as wide as all sequences is exhaustive search. With a least-squares refit, what a sequence
leaves is known for every candidate before it is taken (orthogonal least squares: the candidate's part outside the span
of the codewords so far counts), and the next layer sees the residual of the refitted magnitudes.
Source: beam search in additive codes, Babenko and Lempitsky, CVPR 2014; orthogonal least squares, Chen et al. 1989.

B rows  W beam  P padded width  L layers  K centroids  G lanes (16)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from hymirec.codebook.products import dot, subtract
from hymirec.codebook.steps import Codes, Doubles, Floats, extend, solve
from hymirec.codebook.vnni import ABSENT

MAX_BEAM = 16


@dataclass(frozen=True)
class Beams:
    """Sequences of every row, best first; `left_BW` (a squared length) is infinite where a row has fewer."""

    rest_BWP: Floats
    left_BW: Doubles
    codes_BWL: Codes
    magnitudes_BWL: Doubles
    factor_BWLL: Doubles
    target_BWL: Doubles

    @classmethod
    def start(cls, y_BP: Floats, square_B: Doubles, layers: int) -> Beams:
        """The empty sequence."""
        return cls(y_BP[:, None], square_B[:, None], *_blank(len(y_BP), 1, layers))

    def following(self, beam: int, lanes: int) -> Beams:
        """Room for the sequences of the next layer."""
        rows, width, padded = self.rest_BWP.shape
        wide = min(beam, width * lanes)
        blank = _blank(rows, wide, self.codes_BWL.shape[2])
        return Beams(np.zeros((rows, wide, padded), np.float32), np.full((rows, wide), np.inf), *blank)

    def part(self, rows: slice) -> list[NDArray[Any]]:
        """Arrays of some rows."""
        everything = (self.rest_BWP, self.left_BW, self.codes_BWL, self.magnitudes_BWL)
        return [array[rows] for array in (*everything, self.factor_BWLL, self.target_BWL)]


def _blank(rows: int, width: int, layers: int) -> tuple[Codes, Doubles, Doubles, Doubles]:
    magnitudes, target = np.zeros((2, rows, width, layers))
    return np.zeros((rows, width, layers), np.int32), magnitudes, np.zeros((rows, width, layers, layers)), target


@njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _insert(energy_W: Doubles, parent_W: Codes, code_W: Codes, energy: float, parent: int, code: int) -> None:
    """Keep the best in order: least energy, then the better parent, then the lower code."""
    place = len(energy_W)
    while place > 0:
        other = energy_W[place - 1]
        if energy > other or (energy == other and (parent, code) > (parent_W[place - 1], code_W[place - 1])):
            break
        place -= 1
    for j in range(len(energy_W) - 1, place, -1):
        energy_W[j], parent_W[j], code_W[j] = energy_W[j - 1], parent_W[j - 1], code_W[j - 1]
    if place < len(energy_W):
        energy_W[place], parent_W[place], code_W[place] = energy, parent, code


@njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _worst_kept(left_W: Doubles, least: float, score_WG: Codes, scale: float, noise: float, bound_W: Doubles) -> float:
    """What the last of the kept sequences will leave at most, by 8-bit scores and their noise."""
    bound_W[:] = np.inf
    for w in range(len(left_W)):
        if left_W[w] == np.inf:
            continue
        length = math.sqrt(left_W[w])
        for lane in range(score_WG.shape[1]):
            if left_W[w] <= least:
                bound = left_W[w]
            elif score_WG[w, lane] == ABSENT:
                continue
            else:
                gain = max(abs(score_WG[w, lane]) * scale - noise, 0.0) * length
                bound = left_W[w] - gain * gain
            place = len(bound_W)
            while place > 0 and bound < bound_W[place - 1]:
                place -= 1
            for j in range(len(bound_W) - 1, place, -1):
                bound_W[j] = bound_W[j - 1]
            if place < len(bound_W):
                bound_W[place] = bound
            if left_W[w] <= least:
                break
    return float(bound_W[-1])


@njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def extend_beams(
    y_BP: Floats,
    least_B: Doubles,
    score_BWG: Codes,
    which_BWG: Codes,
    scale: float,
    noise: float,
    layer: int,
    centroids_LKP: Floats,
    refit: bool,
    rest_BWP: Floats,
    left_BW: Doubles,
    codes_BWL: Codes,
    magnitudes_BWL: Doubles,
    factor_BWLL: Doubles,
    target_BWL: Doubles,
    next_rest_BWP: Floats,
    next_left_BW: Doubles,
    next_codes_BWL: Codes,
    next_magnitudes_BWL: Doubles,
    next_factor_BWLL: Doubles,
    next_target_BWL: Doubles,
) -> None:
    """One more code for every sequence; the best are written to the arrays `next_*`.

    `scale` turns a score into a cosine and `noise` is what that cosine may be wrong by; candidates that may be among
    the best are scored again in fp64.
    """
    wide, padded = next_left_BW.shape[1], y_BP.shape[1]
    layers = centroids_LKP.shape[0]
    bound, added = np.empty(wide), np.zeros(layers)
    energy, parents, codes = np.empty(wide), np.empty(wide, np.int32), np.empty(wide, np.int32)
    for i in range(len(y_BP)):
        worst = _worst_kept(left_BW[i], least_B[i], score_BWG[i], scale, noise, bound)
        energy[:] = np.inf
        parents[:] = -1
        codes[:] = 0
        for w in range(left_BW.shape[1]):
            left = left_BW[i, w]
            if left == np.inf:
                continue
            if left <= least_B[i]:
                _insert(energy, parents, codes, left, w, 0)
                continue
            length, rest = math.sqrt(left), rest_BWP[i, w].ctypes.data
            for lane in range(score_BWG.shape[2]):
                score = score_BWG[i, w, lane]
                gain = (abs(score) * scale + noise) * length
                if score == ABSENT or left - gain * gain > worst:
                    continue
                code = which_BWG[i, w, lane]
                product = dot(rest, centroids_LKP[layer, code].ctypes.data, padded)
                if refit:
                    diagonal = extend(centroids_LKP, codes_BWL[i, w], layer, code, factor_BWLL[i, w], added)
                    product = product / diagonal if diagonal > 0 else 0.0
                _insert(energy, parents, codes, left - product * product, w, code)
        for j in range(wide):
            w, code = parents[j], codes[j]
            if w < 0:
                next_left_BW[i, j] = np.inf
                continue
            next_codes_BWL[i, j] = codes_BWL[i, w]
            next_codes_BWL[i, j, layer] = code
            next_magnitudes_BWL[i, j] = magnitudes_BWL[i, w]
            next_factor_BWLL[i, j] = factor_BWLL[i, w]
            next_target_BWL[i, j] = target_BWL[i, w]
            target = next_rest_BWP[i, j].ctypes.data
            rest, centroid = rest_BWP[i, w].ctypes.data, centroids_LKP[layer, code].ctypes.data
            if left_BW[i, w] <= least_B[i]:
                next_rest_BWP[i, j] = rest_BWP[i, w]
                next_left_BW[i, j] = left_BW[i, w]
            elif refit:
                factor = next_factor_BWLL[i, j]
                diagonal = extend(centroids_LKP, codes_BWL[i, w], layer, code, factor, factor[layer])
                if diagonal > 0:
                    next_target_BWL[i, j, layer] = dot(rest, centroid, padded) / diagonal
                magnitude = next_magnitudes_BWL[i, j]
                solve(factor, next_target_BWL[i, j], layer + 1, magnitude)
                source = y_BP[i].ctypes.data
                for m in range(layer + 1):
                    chosen = centroids_LKP[m, next_codes_BWL[i, j, m]].ctypes.data
                    next_left_BW[i, j] = subtract(source, magnitude[m], chosen, target, padded)
                    source = target
            else:
                product = dot(rest, centroid, padded)
                next_magnitudes_BWL[i, j, layer] = product
                next_left_BW[i, j] = subtract(rest, product, centroid, target, padded)

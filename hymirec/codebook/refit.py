"""Joint refit of all codewords to the codes of all rows, and of the codes to the codewords, in turn.

Layers are fitted one after the other, so an early one knows nothing of those that follow. Here every layer is fitted
again to what all others leave of the rows: c_k = sum a_i (x_i - the other layers' sum a c) / sum a_i^2 over the rows
with code k, the least-squares solution for one layer; the length of c_k goes into the magnitudes. Layer by layer that
never raises sum |x - sum a c|^2. Then all rows are coded again, which may: the best codebook by mean cosine stays.
Source: block coordinate descent of additive quantisation, Babenko and Lempitsky, CVPR 2014.

Rows are brought to unit length, so that each counts alike in the cosine that is reported. Every worker holds a shard
and reads it in chunks, L + 1 times a round; it keeps 6 bytes a row and layer. What is added up over workers are
fixed-point integers, so the result is the same bytes for any number of workers, chunk size and order of the rows.

n rows of this worker  B rows of a chunk  P width padded to a multiple of 32  L layers  K centroids
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numba import njit
from numpy.typing import NDArray
from torch import Tensor

from hymirec.codebook.kernels import Kernel, on_threads
from hymirec.codebook.products import dot, subtract
from hymirec.codebook.reduce import Reducer
from hymirec.codebook.residual import ResidualCodebook
from hymirec.codebook.rotation import PAD
from hymirec.codebook.search import in_range
from hymirec.codebook.steps import Codes, Doubles, Floats
from hymirec.errors import ModelError

OnRound = Callable[[int, ResidualCodebook, float], None]
# Steps of a fixed-point number in one. 10^9 rows of MOST each stay below 2^62.
STEPS = float(2**30)
MOST = 4.0
# A row with a magnitude beyond this moves no centroid: two nearly opposite centroids cancel out in it.
MOST_MAGNITUDE = 2.0
# A centroid with fewer rows keeps its place.
LEAST_ROWS = 2
# Columns that are worth a thread.
THREAD_COLUMNS = 64


@dataclass(frozen=True)
class _Coded:
    """Codes and magnitudes of this worker's rows, a chunk each, and the mean cosine of all workers' rows."""

    codes: list[NDArray[np.uint16]]
    magnitudes: list[Floats]
    cosine: float


def refit_codebook(
    codebook: ResidualCodebook,
    rows: Callable[[], Iterable[Tensor]],
    reducer: Reducer,
    rounds: int,
    beam: int | None = None,
    kernel: Kernel | None = None,
    on_round: OnRound | None = None,
) -> ResidualCodebook:
    """The codebook after at most `rounds` rounds of refitting all centroids and coding all rows.

    `rows()` yields this worker's rows, fp32 (B, D), anew and in the same order each time. Rows are coded with `beam`
    (default: the codebook's own) and the codebook's own `info["refit"]`. Never worse in the mean cosine of these rows:
    a round that is ends the work. `on_round(round, codebook, cosine)` is called on every worker for every codebook that
    was measured; round 0 is the one given. Every worker returns the same codebook, of the same `info`.
    Raises NonFiniteEmbeddingError naming the row of the shard; ModelError when no worker has a row that is not zero.
    """
    best, now, reached = codebook, codebook, -math.inf
    for number in range(rounds + 1):
        coded = _code(now, rows, reducer, beam, kernel)
        if on_round is not None:
            on_round(number, now, coded.cosine)
        if coded.cosine <= reached:
            break
        best, reached = now, coded.cosine
        if number < rounds:
            now = _with(now, _refit(now, rows, reducer, coded))
    return best


def _code(
    codebook: ResidualCodebook,
    rows: Callable[[], Iterable[Tensor]],
    reducer: Reducer,
    beam: int | None,
    kernel: Kernel | None,
) -> _Coded:
    search = codebook.search(kernel)
    beam = int(codebook.info.get("beam", 1)) if beam is None else beam
    refit = bool(codebook.info.get("refit", False))
    centroids = _padded(codebook.centroids_LKD)
    all_codes, all_magnitudes, totals = [], [], torch.zeros(2, dtype=torch.int64)
    for x_BP in _unit_rows(rows):
        codes, magnitudes = (
            coded.numpy() for coded in search.code(torch.from_numpy(x_BP[:, : codebook.width]), beam, refit)
        )
        totals += _totals(x_BP, codes, magnitudes, centroids)
        all_codes.append(codes.astype(np.uint16))
        all_magnitudes.append(magnitudes)
    total, count = _sum(reducer, totals, codebook).tolist()
    if count == 0:
        raise ModelError("expected at least one row that is not zero to refit a codebook on; encode the items first")
    return _Coded(all_codes, all_magnitudes, total / STEPS / count)


def _refit(codebook: ResidualCodebook, rows: Callable[[], Iterable[Tensor]], reducer: Reducer, coded: _Coded) -> Tensor:
    """Centroids (L, K, D), refitted layer by layer to codes that stay; the magnitudes of `coded` follow in place."""
    centroids = _padded(codebook.centroids_LKD)
    layers, count, padded = centroids.shape
    for layer in range(layers):
        sums, weights = np.zeros((count, padded), np.int64), np.zeros((count, 2), np.int64)
        for x_BP, codes, magnitudes in zip(_unit_rows(rows), coded.codes, coded.magnitudes, strict=True):
            _weigh(codes[:, layer], magnitudes[:, layer], weights)
            _add_columns(x_BP, codes, magnitudes, centroids, layer, sums)
        sums = _sum(reducer, torch.from_numpy(sums), codebook).numpy()
        weights = _sum(reducer, torch.from_numpy(weights), codebook).numpy()
        mean = sums / np.maximum(weights[:, :1], 1)
        length = np.sqrt((mean * mean).sum(1))
        moved = (weights[:, 1] >= LEAST_ROWS) & (length > 0) & (weights[:, 0] > 0)
        centroids[layer, moved] = mean[moved] / length[moved, None]
        length = np.where(moved, length, 1.0)
        for codes, magnitudes in zip(coded.codes, coded.magnitudes, strict=True):
            magnitudes[:, layer] *= length[codes[:, layer]]
    return torch.from_numpy(centroids[:, :, : codebook.width].copy())


def _totals(x_BP: Floats, codes_BL: Codes, magnitudes_BL: Floats, centroids_LKP: Floats) -> Tensor:
    """Sum of the cosines of rows and what they decode to, fixed-point, and how many rows are not zero, int64 (2,)."""
    cosines = np.zeros(len(x_BP))
    on_threads(
        len(x_BP), lambda part: _cosines(x_BP[part], codes_BL[part], magnitudes_BL[part], centroids_LKP, cosines[part])
    )
    return torch.tensor([int(np.rint(cosines * STEPS).astype(np.int64).sum()), int(x_BP.any(1).sum())])


def _add_columns(
    x_BP: Floats,
    codes_BL: NDArray[np.uint16],
    magnitudes_BL: Floats,
    centroids_LKP: Floats,
    layer: int,
    sums_KP: NDArray[np.int64],
) -> None:
    """Threads take columns, not rows: one table of sums serves all of them."""
    on_threads(
        x_BP.shape[1],
        lambda part: _add(x_BP, codes_BL, magnitudes_BL, centroids_LKP, layer, part.start, part.stop, sums_KP),
        THREAD_COLUMNS,
    )


def _with(codebook: ResidualCodebook, centroids_LKD: Tensor) -> ResidualCodebook:
    codec = codebook.magnitudes if codebook.magnitudes.levels_LV is not None else None
    return ResidualCodebook(centroids_LKD.to(codebook.centroids_LKD.device), codebook.info, codec)


def _sum(reducer: Reducer, tensor: Tensor, codebook: ResidualCodebook) -> Tensor:
    """Sum over workers, on the device that they exchange on."""
    return reducer.sum_(tensor.to(codebook.centroids_LKD.device)).cpu()


def _padded(x: Tensor) -> Floats:
    """fp32 on the CPU, its last dimension padded with zeros to a multiple of 32."""
    return torch.nn.functional.pad(x.detach().cpu().float(), (0, -x.shape[-1] % PAD)).contiguous().numpy().copy()


def _unit_rows(rows: Callable[[], Iterable[Tensor]]) -> Iterator[Floats]:
    """Chunks (B, P) of unit length; zero rows stay zero."""
    first = 0
    for chunk in rows():
        x_BP = _padded(in_range(chunk, first)[0])
        first += len(x_BP)
        _normalise(x_BP)
        yield x_BP


@njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _normalise(x_BP: Floats) -> None:
    for i in range(len(x_BP)):
        row = x_BP[i].ctypes.data
        square = dot(row, row, x_BP.shape[1])
        factor = 1 / math.sqrt(square) if square > 0 else 0.0
        for p in range(x_BP.shape[1]):
            x_BP[i, p] = x_BP[i, p] * factor


@njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _cosines(x_BP: Floats, codes_BL: Codes, magnitudes_BL: Floats, centroids_LKP: Floats, cosine_B: Doubles) -> None:
    """Cosines of rows and what they decode to; 0 where either is zero."""
    width = x_BP.shape[1]
    rest = np.empty(width, np.float32)
    target = rest.ctypes.data
    for i in range(len(x_BP)):
        row = x_BP[i].ctypes.data
        source, left = row, 0.0
        for layer in range(codes_BL.shape[1]):
            centroid = centroids_LKP[layer, codes_BL[i, layer]].ctypes.data
            left = subtract(source, np.float64(magnitudes_BL[i, layer]), centroid, target, width)
            source = target
        square, product = dot(row, row, width), dot(row, target, width)
        decoded = square - 2 * product + left
        cosine_B[i] = (square - product) / math.sqrt(square * decoded) if square > 0 and decoded > 1e-12 else 0.0


@njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _weigh(code_B: NDArray[np.uint16], magnitude_B: Floats, weights_K2: NDArray[np.int64]) -> None:
    """Add squared magnitudes, fixed-point, and numbers of rows to their centroids."""
    for i in range(len(code_B)):
        a = np.float64(magnitude_B[i])
        if a != 0 and abs(a) <= MOST_MAGNITUDE:
            weights_K2[code_B[i], 0] += np.int64(np.rint(a * a * STEPS))
            weights_K2[code_B[i], 1] += 1


@njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _add(
    x_BP: Floats,
    codes_BL: NDArray[np.uint16],
    magnitudes_BL: Floats,
    centroids_LKP: Floats,
    layer: int,
    start: int,
    stop: int,
    sums_KP: NDArray[np.int64],
) -> None:
    """Add columns start..stop of a (x - the other layers' sum a c), fixed-point, to the centroids of `layer`."""
    width = stop - start
    rest = np.empty(width)
    for i in range(len(x_BP)):
        a = np.float64(magnitudes_BL[i, layer])
        if a == 0 or abs(a) > MOST_MAGNITUDE:
            continue
        row = x_BP[i, start:stop]
        for p in range(width):
            rest[p] = row[p]
        for other in range(codes_BL.shape[1]):
            if other != layer and magnitudes_BL[i, other] != 0:
                factor, centroid = (
                    np.float64(magnitudes_BL[i, other]),
                    centroids_LKP[other, codes_BL[i, other], start:stop],
                )
                for p in range(width):
                    rest[p] -= factor * centroid[p]
        total = sums_KP[codes_BL[i, layer], start:stop]
        for p in range(width):
            total[p] += np.int64(np.rint(min(max(a * rest[p], -MOST), MOST) * STEPS))

"""How magnitudes are stored: 4 or 8 bits of fitted levels, or 16- and 32-bit floats.

`lloyd4` and `lloyd8` quantise each layer to 2^bits levels of its own, fitted by Lloyd-Max: nearest level, level = mean
of its values. In one dimension a level's values are an interval, so a fit is exact prefix sums over sorted values: an
optimal cut of at most 1,024 groups of values by dynamic programming, then Lloyd steps on all values. The result is the
optimum where a layer holds no more than 1,024 different values.

**Zero is a level of every layer, always.** A zero embedding has magnitude 0 in all layers and must decode to exactly
zero, also when the sample that was fitted holds none. It costs one level of 16: on normally distributed magnitudes the
mean squared error of `lloyd4` rises by 1.13 (15 free levels instead of 16), which is 1e-5 of a cosine at three layers.

Source: Lloyd, Least squares quantization in PCM (1982); Max, Quantizing for minimum distortion (1960).

N rows  L layers  V levels  n different values  m levels to place
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np
from numba import njit
from numpy.typing import NDArray

from hymirec.errors import ModelError

MagnitudeKind: TypeAlias = Literal["lloyd4", "lloyd8", "float16", "float32"]
Floats: TypeAlias = NDArray[np.float64]

LEVEL_BITS: dict[str, int] = {"lloyd4": 4, "lloyd8": 8}
FLOAT_BITS: dict[str, int] = {"float16": 16, "float32": 32}
# Groups of values that the dynamic programme cuts.
GROUPS = 1024
LLOYD_STEPS = 200


class MagnitudeCodec(Protocol):
    """Magnitudes fp32 (N, L) to whole numbers of `bits` bits, and back."""

    @property
    def kind(self) -> str:
        """What config.json calls it."""

    @property
    def bits(self) -> int:
        """Bits of one stored magnitude."""

    @property
    def levels_LV(self) -> NDArray[np.float32] | None:  # noqa: N802
        """Sorted levels of each layer, fp32 (L, 2^bits); None for floats, which need none."""

    @property
    def table(self) -> NDArray[np.float32] | None:
        """Value of every stored number, fp32 (L or 1, 2^bits); None where the number is the bits of an fp32."""

    def quantise(self, magnitudes_NL: NDArray[np.floating[Any]]) -> NDArray[np.unsignedinteger[Any]]:
        """Stored numbers (N, L). Raises ModelError naming the row whose magnitude cannot be stored."""

    def values(self, stored_NL: NDArray[np.unsignedinteger[Any]]) -> NDArray[np.float32]:
        """The magnitudes (N, L) that stored numbers stand for, fp32."""


@dataclass(frozen=True)
class FloatMagnitudes:
    """`float16` or `float32`: the bits of the number itself, in uint16 or uint32."""

    kind: MagnitudeKind

    @property
    def bits(self) -> int:
        """16 or 32."""
        return FLOAT_BITS[self.kind]

    @property
    def levels_LV(self) -> None:  # noqa: N802
        """None: floats need no levels."""
        return

    @property
    def table(self) -> NDArray[np.float32] | None:
        """All 65,536 half-precision numbers, (1, 65536); None for float32."""
        return _HALVES if self.kind == "float16" else None

    def quantise(self, magnitudes_NL: NDArray[np.floating[Any]]) -> NDArray[np.unsignedinteger[Any]]:
        """See `MagnitudeCodec`."""
        with np.errstate(over="ignore"):
            stored = np.ascontiguousarray(magnitudes_NL, np.dtype(self.kind))
        _check_stored(stored, np.asarray(magnitudes_NL), self.kind)
        return stored.view(f"uint{self.bits}")

    def values(self, stored_NL: NDArray[np.unsignedinteger[Any]]) -> NDArray[np.float32]:
        """See `MagnitudeCodec`."""
        bits = np.ascontiguousarray(stored_NL, f"uint{self.bits}")
        return bits.view(self.kind).astype(np.float32)


@dataclass(frozen=True, eq=False)
class LevelMagnitudes:
    """`lloyd4` or `lloyd8`: the number of the nearest level, in uint8; ties go to the lower level.

    A magnitude beyond the levels is stored as the nearest one, the first or the last.
    """

    kind: MagnitudeKind
    levels_LV: NDArray[np.float32]

    def __post_init__(self) -> None:
        levels = self.levels_LV
        if levels.dtype != np.float32 or levels.ndim != 2 or levels.shape[1] != 2**self.bits:
            raise ValueError(
                f"expected levels of {self.kind} to be fp32 of shape (layers, {2**self.bits}), got {levels.dtype} "
                f"{levels.shape}"
            )
        sound = bool(np.isfinite(levels).all()) and bool((np.diff(levels, axis=1) >= 0).all())
        if not sound or not bool((levels == 0).any(axis=1).all()):
            raise ValueError(f"expected levels of {self.kind} to be finite and sorted, with 0 among each layer's")

    @property
    def bits(self) -> int:
        """4 or 8."""
        return LEVEL_BITS[self.kind]

    @property
    def table(self) -> NDArray[np.float32]:
        """The levels."""
        return self.levels_LV

    def quantise(self, magnitudes_NL: NDArray[np.floating[Any]]) -> NDArray[np.unsignedinteger[Any]]:
        """See `MagnitudeCodec`."""
        magnitudes = np.asarray(magnitudes_NL)
        if magnitudes.ndim != 2 or magnitudes.shape[1] != len(self.levels_LV):
            raise ValueError(f"expected magnitudes of shape (N, {len(self.levels_LV)}), got {magnitudes.shape}")
        _check_stored(magnitudes, magnitudes, self.kind)
        stored = np.empty(magnitudes.shape, np.uint8)
        for layer, levels in enumerate(self.levels_LV.astype(np.float64)):
            stored[:, layer] = np.searchsorted(_middles(levels), magnitudes[:, layer].astype(np.float64))
        return stored

    def values(self, stored_NL: NDArray[np.unsignedinteger[Any]]) -> NDArray[np.float32]:
        """See `MagnitudeCodec`."""
        return self.levels_LV[np.arange(len(self.levels_LV)), np.asarray(stored_NL)]


@dataclass(frozen=True)
class UnitMagnitudes:
    """`none`: every magnitude is 1 and takes no bits, for a codebook that subtracts whole centroids."""

    kind: str = "none"

    @property
    def bits(self) -> int:
        """0."""
        return 0

    @property
    def levels_LV(self) -> None:  # noqa: N802
        """None: there is nothing to fit."""
        return

    @property
    def table(self) -> NDArray[np.float32]:
        """The one number, (1, 1)."""
        return np.ones((1, 1), np.float32)

    def quantise(self, magnitudes_NL: NDArray[np.floating[Any]]) -> NDArray[np.unsignedinteger[Any]]:
        """See `MagnitudeCodec`."""
        magnitudes = np.asarray(magnitudes_NL)
        if not bool((magnitudes == 1).all()):
            row = int(np.argmin((magnitudes == 1).all(axis=1)))
            raise ModelError(f"expected magnitudes of 1, which are not stored, got others in row {row}; store them")
        return np.zeros(magnitudes.shape, np.uint8)

    def values(self, stored_NL: NDArray[np.unsignedinteger[Any]]) -> NDArray[np.float32]:
        """See `MagnitudeCodec`."""
        return np.ones(np.shape(stored_NL), np.float32)


def magnitude_codec(kind: str, levels_LV: NDArray[np.float32] | None = None) -> MagnitudeCodec:
    """The codec that an artifact names. Raises ValueError for an unknown kind, or levels that do not fit it."""
    if kind in FLOAT_BITS and levels_LV is None:
        return FloatMagnitudes("float16" if kind == "float16" else "float32")
    if kind in LEVEL_BITS and levels_LV is not None:
        return LevelMagnitudes("lloyd4" if kind == "lloyd4" else "lloyd8", levels_LV)
    if kind == "none" and levels_LV is None:
        return UnitMagnitudes()
    found = "no levels" if levels_LV is None else f"levels of shape {levels_LV.shape}"
    raise ValueError(
        f"expected magnitudes float16 or float32 without levels, or lloyd4 or lloyd8 with levels; got {kind!r} with "
        f"{found}"
    )


def fit_magnitudes(kind: MagnitudeKind, magnitudes_NL: NDArray[np.floating[Any]]) -> MagnitudeCodec:
    """A codec for magnitudes like this sample (N, L); N may be 0. Deterministic, whatever the order of the rows.

    Costs a sort of each layer. Raises ModelError when a magnitude is not finite, ValueError for another shape.
    """
    sample = np.asarray(magnitudes_NL)
    if sample.ndim != 2:
        raise ValueError(f"expected magnitudes of shape (N, L), got {sample.shape}")
    if kind in FLOAT_BITS:
        return magnitude_codec(kind)
    _check_stored(sample, sample, kind)
    rows = [lloyd_levels(column.astype(np.float64), 2 ** LEVEL_BITS[kind]) for column in sample.T]
    levels = np.array(rows, np.float32).reshape(sample.shape[1], 2 ** LEVEL_BITS[kind])
    # -0.0 would be a second zero with other bytes.
    return magnitude_codec(kind, np.sort(levels + np.float32(0), axis=1))


def lloyd_levels(values_N: Floats, count: int) -> Floats:
    """`count` sorted levels with 0 among them and the least squared error that Lloyd's method finds, fp64.

    No worse than equally spaced levels over the values' range of which the nearest to 0 is moved there. Fewer
    different values than levels: each is a level, the largest repeated.
    """
    values, weights = np.unique(values_N, return_counts=True)
    exact = np.union1d(values, 0.0)
    if len(exact) <= count:
        return np.concatenate([exact, np.full(count - len(exact), exact[-1])])
    weight = weights.astype(np.float64)
    even = np.linspace(values[0], values[-1], count)
    even[np.abs(even).argmin()] = 0.0
    starts = (_cut(values, weight, count), np.sort(even))
    fitted = [_lloyd(values, weight, start) for start in starts]
    return min(fitted, key=lambda levels: squared_error(values, levels, weight))


def squared_error(values_N: Floats, levels_V: Floats, weights_N: Floats | None = None) -> float:
    """Sum of the squared distances of values from their nearest levels, which are sorted."""
    gap = values_N - levels_V[np.searchsorted(_middles(levels_V), values_N)]
    return float((gap * gap * (1.0 if weights_N is None else weights_N)).sum())


def _middles(levels_V: Floats) -> Floats:
    return (levels_V[1:] + levels_V[:-1]) / 2


def _lloyd(values_n: Floats, weights_n: Floats, levels_V: Floats) -> Floats:
    """Lloyd steps until nothing moves; the level at 0 stays. An empty level stays where it is."""
    levels = levels_V.copy()
    zero = int(np.flatnonzero(levels == 0)[0])
    mass = np.concatenate([[0.0], np.cumsum(weights_n)])
    total = np.concatenate([[0.0], np.cumsum(weights_n * values_n)])
    for _ in range(LLOYD_STEPS):
        cut = np.concatenate([[0], np.searchsorted(values_n, _middles(levels), side="right"), [len(values_n)]])
        own = np.diff(mass[cut])
        moved = np.where(own > 0, np.diff(total[cut]) / np.maximum(own, 1.0), levels)
        moved[zero] = 0.0
        if np.array_equal(moved, levels):
            break
        levels = moved
    return levels


def _cut(values_n: Floats, weights_n: Floats, count: int) -> Floats:
    """The best `count` levels, 0 among them, for up to GROUPS groups of neighbouring values with like weights."""
    if len(values_n) > GROUPS:
        position = np.cumsum(weights_n) - weights_n / 2
        group = np.minimum((position * (GROUPS / weights_n.sum())).astype(np.int64), GROUPS - 1)
        first = np.flatnonzero(np.diff(group, prepend=-1))
    else:
        first = np.arange(len(values_n))
    mass, total, square = (
        np.concatenate([[0.0], np.cumsum(np.add.reduceat(weights_n * values_n**power, first))]) for power in range(3)
    )
    bounds, zeroed = _best_cut(mass, total, square, count - 1)
    levels = [0.0]
    for lo, hi, is_zero in zip(bounds[:-1], bounds[1:], zeroed, strict=True):
        if hi > lo and not is_zero:
            levels.append((total[hi] - total[lo]) / (mass[hi] - mass[lo]))
    return np.sort(np.array(levels + [0.0] * (count - len(levels))))


@njit(cache=True, nogil=True)
def _best_cut(mass: Floats, total: Floats, square: Floats, m: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Cut points of m intervals around their means and one around 0, with the least squared error, from prefix sums.

    O(m n^2). free[k, j]: least error of the first j groups in k intervals; held[k, j]: with the one around 0 as well.
    """
    n = len(mass) - 1
    free = np.full((m + 1, n + 1), np.inf)
    held = np.full((m + 1, n + 1), np.inf)
    free_from = np.zeros((m + 1, n + 1), np.int64)
    held_from = np.zeros((m + 1, n + 1), np.int64)
    ends_zero = np.zeros((m + 1, n + 1), np.bool_)
    free[0, 0] = 0.0
    for k in range(m + 1):
        for j in range(n + 1):
            if k > 0:
                for i in range(j + 1):
                    cost = 0.0
                    if i < j:
                        gap = total[j] - total[i]
                        cost = max(square[j] - square[i] - gap * gap / (mass[j] - mass[i]), 0.0)
                    if free[k - 1, i] + cost < free[k, j]:
                        free[k, j], free_from[k, j] = free[k - 1, i] + cost, i
                    if held[k - 1, i] + cost < held[k, j]:
                        held[k, j], held_from[k, j], ends_zero[k, j] = held[k - 1, i] + cost, i, False
            for i in range(j + 1):
                cost = square[j] - square[i]
                if free[k, i] + cost < held[k, j]:
                    held[k, j], held_from[k, j], ends_zero[k, j] = free[k, i] + cost, i, True
    bounds = np.zeros(m + 2, np.int64)
    zeroed = np.zeros(m + 1, np.bool_)
    k, j, with_zero = m, n, True
    for place in range(m + 1, 0, -1):
        bounds[place] = j
        if with_zero and ends_zero[k, j]:
            zeroed[place - 1], with_zero, j = True, False, held_from[k, j]
        else:
            k, j = k - 1, held_from[k, j] if with_zero else free_from[k, j]
    return bounds, zeroed


def _check_stored(stored_NL: NDArray[Any], magnitudes_NL: NDArray[np.floating[Any]], kind: str) -> None:
    """Raise ModelError naming the row whose magnitude does not fit."""
    finite = np.isfinite(stored_NL).all(axis=1)
    if not finite.all():
        row = int(np.argmin(finite))
        raise ModelError(
            f"the vector of row {row} is {float(np.abs(magnitudes_NL[row]).max()):.3g} long, beyond {kind}; set "
            "codebook.magnitudes=float32"
        )


_HALVES: NDArray[np.float32] = np.arange(2**16, dtype=np.uint16).view(np.float16).astype(np.float32)[None]

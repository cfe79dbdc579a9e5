"""Where centroids start, and where an empty one starts again.

Seeds are taken from a sample of the rows (drawn by the hash of their numbers) in rounds: each row is chosen with a
chance in proportion to how far it is from all seeds so far, as k-means++ does, an eighth of the seeds a round. The draw
is systematic, over integer distances, so every worker draws the same rows, whichever of them holds a row.

K centroids  P padded width  m rows of the sample
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hymirec.codebook.exact import mix
from hymirec.codebook.kernels import Kernel
from hymirec.codebook.reduce import Reducer
from hymirec.codebook.rotation import quantised
from hymirec.codebook.shard import Shard

ROUNDS = 8
# Rows of the sample for each seed, and the largest sample in bytes.
SAMPLE_PER_SEED = 4
SAMPLE_BYTES = 1 << 28


@dataclass(frozen=True)
class Seeds:
    """`units_KP` int8; `spread` is how far the best cosine of a row that is no seed lies above its mean cosine.

    The spread is the natural unit of a price: embeddings of causal language models lie in a narrow cone, where it is
    small.
    """

    units_KP: Tensor
    spread: float


def given_seeds(shard: Shard, units_KP: Tensor, salt: int, length: float, kernel: Kernel, reducer: Reducer) -> Seeds:
    """Directions from elsewhere, with the spread that they have over a sample of these rows."""
    sample = _sample(shard, len(units_KP), salt, reducer)
    if not len(sample):
        return Seeds(units_KP, 0.0)
    best = kernel.lanes(sample, kernel.table(units_KP))[0].amax(1).long()
    return Seeds(units_KP, _spread(best, sample, units_KP, length))


def first_seeds(shard: Shard, count: int, salt: int, length: float, kernel: Kernel, reducer: Reducer) -> Seeds:
    """`count` different directions among the rows (K, P); pseudo-random ones where rows hold fewer."""
    sample = _sample(shard, count, salt, reducer)
    best = torch.full((len(sample),), -int(2 * length**2), dtype=torch.int64, device=sample.device)
    chosen = torch.zeros(len(sample), dtype=torch.bool, device=sample.device)
    seeds = sample[:0]
    for left in range(ROUNDS, 0, -1):
        more = min(-(-(count - len(seeds)) // left), int((~chosen).sum()))
        if more == 0:
            continue
        new = _spaced(best, chosen, more, length, mix(np.array([left], np.uint64), salt)[0])
        chosen[new] = True
        seeds = torch.cat([seeds, sample[new]])
        scores, _ = kernel.lanes(sample, kernel.table(sample[new]))
        best = torch.maximum(best, scores.amax(1).long())
    spread = _spread(best[~chosen], sample[~chosen], seeds, length)
    missing = count - len(seeds)
    if missing:
        seeds = torch.cat([seeds, scattered(missing, shard.width, salt, length).to(seeds.device)])
    return Seeds(seeds, spread)


def new_seeds(shard: Shard, count: int, salt: int, length: float, reducer: Reducer) -> Tensor:
    """Rows for `count` centroids that have become empty, int8 (count, P)."""
    rows = shard.draw(count, salt, reducer)
    missing = count - len(rows)
    return torch.cat([rows, scattered(missing, shard.width, salt, length).to(rows.device)]) if missing else rows


def scattered(count: int, width: int, salt: int, length: float) -> Tensor:
    """Pseudo-random directions, int8 (count, P): a centroid is never zero, even where there are too few rows."""
    bits = mix(np.arange(count * width, dtype=np.uint64), salt)
    values = (bits >> np.uint64(11)).astype(np.float64) / 2.0**52 - 1.0
    return quantised(torch.from_numpy(values).view(count, width), length)


def _sample(shard: Shard, count: int, salt: int, reducer: Reducer) -> Tensor:
    """Different rows, more than there are seeds."""
    wanted = max(2 * count, min(SAMPLE_PER_SEED * count, SAMPLE_BYTES // shard.width))
    return _distinct(shard.draw(wanted, salt, reducer))


def _distinct(rows_mP: Tensor) -> Tensor:
    """The first of all equal rows, in the order of the rows."""
    host = rows_mP.cpu().numpy()
    first: dict[bytes, int] = {}
    for index in range(len(host)):
        first.setdefault(host[index].tobytes(), index)
    return rows_mP[torch.tensor(list(first.values()), dtype=torch.int64, device=rows_mP.device)]


def _spaced(best_m: Tensor, chosen_m: Tensor, count: int, length: float, start: np.uint64) -> Tensor:
    """`count` rows that are not chosen yet, by systematic sampling with their distance to the best seed as weight.

    Weights add up along the sample, and the sum is cut at equal steps from a hashed start; a row that would be drawn
    twice is drawn once, and the farthest rows fill up.
    """
    weight = (int(length**2) - best_m).clamp(min=1)
    weight[chosen_m] = 0
    total = weight.cumsum(0).cpu().numpy()
    step = max(1, int(total[-1]) // count)
    marks = int(start) % step + np.arange(count, dtype=np.int64) * step
    drawn: NDArray[np.int64] = np.unique(np.searchsorted(total, marks, side="right").clip(max=len(total) - 1))
    host = weight.cpu().numpy()
    drawn = drawn[host[drawn] > 0]
    if len(drawn) < count:
        host[drawn] = 0
        farthest = np.argsort(-host, kind="stable")[: count - len(drawn)]
        drawn = np.concatenate([drawn, farthest])
    return torch.from_numpy(drawn).to(best_m.device)


def _spread(best_m: Tensor, rows_mP: Tensor, seeds_KP: Tensor, length: float) -> float:
    """Mean of the best products less the mean of all, as a cosine; the latter from sums, exact."""
    if not len(rows_mP) or not len(seeds_KP):
        return 0.0
    product = int((rows_mP.sum(0, dtype=torch.int64) * seeds_KP.sum(0, dtype=torch.int64)).sum())
    mean = product / (len(rows_mP) * len(seeds_KP))
    return max(0.0, float(best_m.sum()) / len(best_m) - mean) / length**2

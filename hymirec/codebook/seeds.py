"""Where centroids start, and where an empty one starts again: rows drawn by the hash of their numbers.

Every worker draws the same rows, whichever of them holds a row.

K centroids  D width
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from hymirec.codebook.balanced import Shard
from hymirec.codebook.exact import exact_products, exact_scores, mix, to_units, unit_length
from hymirec.codebook.reduce import Reducer

# Seeds that the spread of scores is measured on.
SPREAD_SEEDS = 1024
# Candidates gathered for each seed before more are asked for, because equal rows count once.
CANDIDATES = 2


def first_seeds(shard: Shard, count: int, salt: int, reducer: Reducer) -> Tensor:
    """`count` different directions among the rows, int16 (K, D); pseudo-random ones where rows hold fewer."""
    wanted = CANDIDATES * count
    while True:
        rows = shard.draw(wanted, salt, reducer)
        host = rows.cpu().numpy()
        first: dict[bytes, int] = {}
        for index in range(len(host)):
            first.setdefault(host[index].tobytes(), index)
        if len(first) >= count or len(rows) < wanted:
            break
        wanted *= 4
    chosen = rows[torch.tensor(list(first.values())[:count], dtype=torch.int64, device=rows.device)]
    missing = count - len(chosen)
    return torch.cat([chosen, scattered(missing, rows.shape[1], salt).to(rows.device)]) if missing else chosen


def new_seeds(shard: Shard, count: int, salt: int, reducer: Reducer) -> Tensor:
    """Rows for `count` centroids that have become empty, int16 (count, D)."""
    rows = shard.draw(count, salt, reducer)
    missing = count - len(rows)
    return torch.cat([rows, scattered(missing, rows.shape[1], salt).to(rows.device)]) if missing else rows


def scattered(count: int, width: int, salt: int) -> Tensor:
    """Pseudo-random directions, int16 (count, D): a centroid is never zero, even where there are too few rows."""
    bits = mix(np.arange(count * width, dtype=np.uint64), salt)
    values = (bits >> np.uint64(11)).astype(np.float64) / 2.0**52 - 1.0
    return to_units(torch.from_numpy(values).view(count, width))


def spread(units_KD: Tensor) -> float:
    """How far a row's best cosine lies above its mean cosine, measured on (up to 1,024) seeds against all others.

    The natural unit of a price: embeddings of causal language models lie in a narrow cone, where it is small.
    """
    if len(units_KD) < 2:
        return 0.0
    some = units_KD[:SPREAD_SEEDS]
    with exact_products():
        scores = exact_scores(some, units_KD.float().T.contiguous()).long()
    own = scores.diagonal().clone()
    mean = (scores.sum() - own.sum()).double() / (len(units_KD) - 1)
    scores.fill_diagonal_(-(2**62))
    gap = scores.amax(1).sum().double() - mean
    return max(0.0, float(gap) / len(some) / unit_length(units_KD.shape[1]) ** 2)

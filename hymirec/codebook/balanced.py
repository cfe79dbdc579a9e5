"""One pass of balanced cosine k-means over the rows of all workers, with streamed prices.

A row goes to the centroid with the largest x.c - price_c. The pass is cut into global slices by a hash of the row's
number: every worker assigns its part of a slice, the K counts are added up over the workers (8 K bytes), and prices
move before the next slice, so a centroid that draws too many rows grows dearer while the pass still runs. The K x D
sums are added up once, at the end. Everything that is added up is an integer and prices are computed from the
totals, so centroids and prices are the same bits for any number of workers.
Cost: one fp32 matrix product of all rows with the centroids; the prices ride in it.

n rows of this worker  D width  K centroids
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hymirec.codebook.exact import (
    CHUNK_ROWS,
    chunk_rows,
    exact_products,
    exact_scores,
    mix,
    norms,
    to_units,
    unit_length,
)
from hymirec.codebook.reduce import Reducer
from hymirec.codebook.residual import project_out


@dataclass(frozen=True)
class Shard:
    """This worker's rows as integer directions, ordered by global slice. Zero rows take no part and are left out."""

    units_nD: Tensor
    hash_n: NDArray[np.uint64]
    bounds: tuple[int, ...]

    @classmethod
    def of(cls, units_nD: Tensor, hash_n: NDArray[np.uint64], slices: int) -> Shard:
        """Order rows by `hash % slices`; `hash_n` is a hash of their global numbers."""
        number = (hash_n % np.uint64(slices)).astype(np.int64)
        alive = (units_nD != 0).any(1).cpu().numpy()
        order = np.flatnonzero(alive)[np.argsort(number[alive], kind="stable")]
        bounds = np.searchsorted(number[order], np.arange(slices + 1))
        index = torch.from_numpy(order).to(units_nD.device)
        return cls(units_nD[index], hash_n[order], tuple(bounds.tolist()))

    @property
    def slices(self) -> int:
        """Number of global slices; a worker's part of one may be empty."""
        return len(self.bounds) - 1

    def chunks(self, start: int, stop: int, size: int) -> Iterator[Tensor]:
        """Rows start..stop, at most `size` at a time."""
        for first in range(start, stop, size):
            yield self.units_nD[first : min(first + size, stop)]

    def residual(self, units_KD: Tensor) -> Shard:
        """The next layer's rows: each loses its projection on its nearest centroid, by plain argmax.

        What is left below the rounding of integer directions is nothing: such a row takes no further part.
        """
        left = torch.empty_like(self.units_nD)
        least = 0.6 * units_KD.shape[1] ** 0.5
        with exact_products():
            table_DK = units_KD.float().T.contiguous()
            first = 0
            for rows in self.chunks(0, len(self.units_nD), min(CHUNK_ROWS, chunk_rows(len(units_KD)))):
                code = exact_scores(rows, table_DK).max(1)[1]
                rest = project_out(rows.float(), units_KD[code].float())[0]
                rest = torch.where((norms(rest) > least)[:, None], rest, 0.0)
                left[first : first + len(rows)] = to_units(rest)
                first += len(rows)
        return Shard.of(left, self.hash_n, self.slices)

    def draw(self, count: int, salt: int, reducer: Reducer) -> Tensor:
        """The `count` rows of all workers whose numbers hash lowest under a salt, int16 (<= count, D).

        The same rows in the same order on every worker, however rows are spread over them.
        """
        key = mix(self.hash_n, salt)
        mine = np.argpartition(key, count - 1)[:count] if 0 < count < len(key) else np.arange(len(key))
        index = torch.from_numpy(mine).to(self.units_nD.device)
        keys = reducer.gather(torch.from_numpy(key[mine].view(np.int64)).to(self.units_nD.device))
        rows = reducer.gather(self.units_nD[index])
        order = np.argsort(keys.cpu().numpy().view(np.uint64))[:count]
        return rows[torch.from_numpy(order).to(rows.device)]


@dataclass(frozen=True)
class Pass:
    """Totals over all workers; prices are fp64, in units of a cosine."""

    sums_KD: Tensor
    counts_K: Tensor
    price_K: Tensor


def run_pass(shard: Shard, units_KD: Tensor, price_K: Tensor, step: float, reducer: Reducer) -> Pass:
    """Assign every row, and move prices after every slice by `step` times the load above the fair one.

    A whole pass with twice the fair load raises a price by `step`. With step 0 prices stay: plain k-means at price 0.
    """
    count, width = units_KD.shape
    device = units_KD.device
    total = int(reducer.sum_(torch.tensor([len(shard.units_nD)], device=device)))
    # fp64 holds these sums of integers exactly up to 10^12 rows, and adds rows 20 times faster than int64.
    sums = torch.zeros(count, width, dtype=torch.float64, device=device)
    counts = torch.zeros(count, dtype=torch.int64, device=device)
    length = unit_length(width)
    with exact_products():
        table_DK = units_KD.float().T.contiguous()
        for start, stop in pairwise(shard.bounds):
            whole_price = (price_K * length**2).round().float()
            load = torch.zeros_like(counts)
            for rows in shard.chunks(start, stop, chunk_rows(count)):
                code = exact_scores(rows, table_DK, whole_price).max(1)[1]
                sums.index_add_(0, code, rows.double())
                load += torch.bincount(code, minlength=count)
            if step:
                load = reducer.sum_(load)
            counts += load
            if step:
                price_K = moved(price_K, load, total, step)
    if not step:
        counts = reducer.sum_(counts)
    return Pass(reducer.sum_(sums.long()), counts, price_K)


def moved(price_K: Tensor, load_K: Tensor, total: int, step: float) -> Tensor:
    """Prices after a slice that sent `load_K` rows to each centroid, of `total` rows a pass; within -1..1."""
    share = load_K.double() * (len(load_K) / max(total, 1)) - float(load_K.sum()) / max(total, 1)
    return (price_K + share * step).clamp(-1.0, 1.0)

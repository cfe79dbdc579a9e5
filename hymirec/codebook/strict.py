"""Strict balance for small sets: no centroid holds more than ceil(n / K) rows, and the best assignment of that kind.

Assigning rows to centroids of equal capacity is a transportation problem. The auction algorithm solves it with prices,
as streamed prices do, but to the end: a row bids for its best centroid up to where the second best is as good, a full
centroid gives up its lowest bidder, and bids rise by at least epsilon, which shrinks from phase to phase. With integer
scores the result is within n epsilon of the best, here 1/16 of an 8-bit product a row.
Source: Bertsekas, Castanon: The auction algorithm for the transportation problem (1989), with the centroids' places as
similar objects.

n rows  K centroids  q places of a centroid
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numba import njit
from numpy.typing import NDArray
from torch import Tensor

from hymirec.codebook.balanced import Pass
from hymirec.codebook.reduce import Reducer
from hymirec.codebook.shard import Shard
from hymirec.errors import ModelError

# Scores are multiplied by this, so that the last epsilon, 1, is a sixteenth of their unit.
FINENESS = 16
# Every phase divides epsilon by this.
SHRINK = 8
# Largest number of scores (n K) that are held, 8 bytes each.
MAX_SCORES = 1 << 27


@dataclass
class StrictPass:
    """All rows, on every worker, in the same order."""

    rows_nP: Tensor
    price_K: NDArray[np.int64] | None = None

    @classmethod
    def of(cls, shard: Shard, count: int, reducer: Reducer) -> StrictPass:
        """Raises ModelError for more rows than one worker should hold."""
        total = int(reducer.sum_(torch.tensor([len(shard)], device=shard.device)))
        if total * count > MAX_SCORES:
            raise ModelError(
                f"codebook.balance=strict holds rows x centroids scores and is for small sets, at most {MAX_SCORES:,}; "
                f"here are {total:,} x {count:,}: set codebook.balance=prices"
            )
        return cls(shard.draw(total, 0, reducer))

    def run(self, units_KP: Tensor) -> Pass:
        """The best assignment with equal loads; every worker computes the same one."""
        rows, count = self.rows_nP, len(units_KP)
        scores = (rows.double() @ units_KP.double().T).long().cpu().numpy()
        code = torch.from_numpy(equal_codes(scores, -(-len(rows) // count))).to(rows.device)
        sums = torch.zeros(units_KP.shape, dtype=torch.int64, device=rows.device)
        sums.index_add_(0, code, rows.long())
        counts = torch.bincount(code, minlength=count)
        return Pass(sums, counts, torch.zeros(count, dtype=torch.float64))


def equal_codes(scores_nK: NDArray[np.int64], capacity: int) -> NDArray[np.int64]:
    """The centroid of every row (n,), none used more than `capacity` times, of nearly the largest sum of scores.

    Raises ValueError when there are fewer places than rows.
    """
    rows, count = scores_nK.shape
    if count * capacity < rows:
        raise ValueError(f"expected places for {rows} rows, got {count} centroids with {capacity} each")
    # Rows that are not there fill the places that are left: with all places taken, any start of the prices is right.
    values = np.zeros((count * capacity, count), np.int64)
    values[:rows] = scores_nK * FINENESS
    epsilon = max(1, int(np.abs(values).max()) // SHRINK)
    price = np.zeros(count, np.int64)
    while True:
        code = _auction(values, capacity, price, epsilon)
        if epsilon == 1:
            return code[:rows]
        epsilon = max(1, epsilon // SHRINK)


@njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _auction(values: NDArray[np.int64], capacity: int, price: NDArray[np.int64], epsilon: int) -> NDArray[np.int64]:
    """One phase: all rows without a place bid until all have one. `price` is that of a centroid's cheapest place."""
    rows, count = values.shape
    code = np.full(rows, -1, np.int64)
    holder = np.full((count, capacity), -1, np.int64)
    bids = np.empty((count, capacity), np.int64)
    for k in range(count):
        bids[k] = price[k]
    queue = np.empty(rows, np.int64)
    for i in range(rows):
        queue[i] = rows - 1 - i
    waiting = rows
    while waiting > 0:
        waiting -= 1
        row = queue[waiting]
        best, second, which = np.int64(-(2**62)), np.int64(-(2**62)), 0
        for k in range(count):
            value = values[row, k] - price[k]
            if value > best:
                best, second, which = value, best, k
            elif value > second:
                second = value
        bid = price[which] + epsilon + (best - second if count > 1 else 0)
        # The heap's top is the place with the lowest bid.
        loser = holder[which, 0]
        holder[which, 0], bids[which, 0] = row, bid
        code[row] = which
        if loser >= 0:
            code[loser] = -1
            queue[waiting] = loser
            waiting += 1
        _sink(bids[which], holder[which])
        price[which] = bids[which, 0]
    return code


@njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _sink(bids: NDArray[np.int64], holder: NDArray[np.int64]) -> None:
    """Restore a heap whose top has risen; of equal bids, an empty place comes first."""
    at, size = 0, len(bids)
    while True:
        least = at
        for child in (2 * at + 1, 2 * at + 2):
            if child < size and (
                bids[child] < bids[least] or (bids[child] == bids[least] and holder[child] < holder[least])
            ):
                least = child
        if least == at:
            return
        bids[at], bids[least] = bids[least], bids[at]
        holder[at], holder[least] = holder[least], holder[at]
        at = least

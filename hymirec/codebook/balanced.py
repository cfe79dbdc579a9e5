"""One pass of balanced cosine k-means over the rows of all workers, with streamed prices.

A row goes to the centroid with the largest x.c - price_c. The pass is cut into global slices by a hash of the row's
number: every worker assigns its part of a slice, the K counts are added up over the workers (8 K bytes), and prices
move before the next slice, so a centroid that draws too many rows grows dearer while the pass still runs. The K x P
sums are added up once, at the end. Everything that is added up is an integer and prices are computed from the
totals, so centroids and prices are the same bits for any number of workers.
Cost: one 8-bit product of all rows with the centroids; prices and argmax ride in it. Wide rows are screened
(`screen.py`), which spares most of it where rows have a few near centroids; where the first slice shows that they have
not, the rest of the pass takes all products.

n rows of this worker  P padded width  K centroids
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hymirec.codebook.kernels import Kernel, screened
from hymirec.codebook.reduce import Reducer
from hymirec.codebook.screen import worthwhile
from hymirec.codebook.shard import Shard

# Share of a slice's rows that take all products above which screening ends.
MOST_WHOLE = 0.75


@dataclass(frozen=True)
class Pass:
    """Totals over all workers; prices are fp64, in units of a cosine."""

    sums_KP: Tensor
    counts_K: Tensor
    price_K: Tensor


def run_pass(
    shard: Shard,
    units_KP: Tensor,
    price_K: Tensor,
    step: float,
    reducer: Reducer,
    kernel: Kernel,
    length: float,
) -> Pass:
    """Assign every row, and move prices after every slice by `step` times the load above the fair one.

    A whole pass with twice the fair load raises a price by `step`. With step 0 prices stay: plain k-means at price 0.
    `length` is the length of a direction. `price_K` stays on the CPU.
    """
    count, width = units_KP.shape
    device = units_KP.device
    total = int(reducer.sum_(torch.tensor([len(shard)], device=device)))
    table, sums = kernel.table(units_KP), kernel.sums(count, width)
    screen = screened(kernel, table) if worthwhile(count, width) else None
    counts = torch.zeros(count, dtype=torch.int64, device=device)
    for number in range(shard.slices):
        whole_price = (price_K * length**2).round().to(device, torch.int32)
        load = torch.zeros_like(counts)
        took_all = torch.zeros(2, dtype=torch.int64, device=device)
        for rows in shard.chunks(number):
            if screen is None:
                code = kernel.nearest(rows, table, whole_price)
            else:
                code, whole = kernel.nearest_screened(rows, screen, whole_price)
                took_all += torch.stack([whole, torch.full_like(whole, len(rows))])
            sums.add(rows, code)
            load += torch.bincount(code, minlength=count)
        if screen is not None and number == 0:
            whole_rows, all_rows = reducer.sum_(took_all).tolist()
            screen = screen if whole_rows <= MOST_WHOLE * all_rows else None
        if step:
            load = reducer.sum_(load)
            price_K = moved(price_K, load.cpu(), total, step)
        counts += load
    if not step:
        counts = reducer.sum_(counts)
    return Pass(reducer.sum_(sums.totals().to(device)), counts, price_K)


def moved(price_K: Tensor, load_K: Tensor, total: int, step: float) -> Tensor:
    """Prices after a slice that sent `load_K` rows to each centroid, of `total` rows a pass; within -1..1."""
    share = load_K.double() * (len(load_K) / max(total, 1)) - float(load_K.sum()) / max(total, 1)
    return (price_K + share * step).clamp(-1.0, 1.0)

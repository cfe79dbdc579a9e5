"""Exact one-to-one matching of a few rows and columns, for many requests at once.

Dynamic programming over subsets of columns: S 2^(S-1) sums a request, and no copy between host and device. On a CPU a
kernel takes the requests in blocks whose tables stay in the nearest cache, and computes a block's sums side by side.

G requests  S interests and groups  B requests of a block
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from numba import njit
from numpy.typing import NDArray
from torch import Tensor

# 256 subsets of so many requests in float32 are 32 kB.
BLOCK = 32


class _Row(NamedTuple):
    """For one row of the matching: subsets (C,) of columns that it may complete, and for each of its members (C, M) the
    subset without it and the member."""

    subset_C: Tensor
    before_CM: Tensor
    column_CM: Tensor


@lru_cache(maxsize=64)
def _rows(size: int, device: torch.device) -> tuple[_Row, ...]:
    """Row r completes the subsets of {0..size-1}, as bit masks, that have r + 1 members."""
    rows = []
    for count in range(1, size + 1):
        subsets = [mask for mask in range(1 << size) if mask.bit_count() == count]
        columns = [[column for column in range(size) if mask >> column & 1] for mask in subsets]
        subset_C, column_CM = torch.tensor(subsets, device=device), torch.tensor(columns, device=device)
        rows.append(_Row(subset_C, subset_C[:, None] & ~(1 << column_CM), column_CM))
    return tuple(rows)


def match(gain_GSS: Tensor) -> Tensor:
    """Exact one-to-one matching: for each row (interest) the column (group) it is given, (G, S), of largest total gain.

    Ties go to the lower column of the last row. S is at most 8 (config), so that there are at most 256 subsets.
    """
    if gain_GSS.device.type == "cpu" and gain_GSS.dtype in (torch.float32, torch.float64):
        column_SG = torch.empty(gain_GSS.shape[1], gain_GSS.shape[0], dtype=torch.int64)
        _match(gain_GSS.detach().permute(1, 2, 0).contiguous().numpy(), column_SG.numpy())
        return column_SG.T
    return _match_on_device(gain_GSS)


def _match_on_device(gain_GSS: Tensor) -> Tensor:
    """The same with tensors alone, for any device and type."""
    requests, size = gain_GSS.shape[0], gain_GSS.shape[1]
    device = gain_GSS.device
    # Subsets come first, so that a row reads and writes whole lines of memory.
    best_XG = torch.zeros(1 << size, requests, dtype=gain_GSS.dtype, device=device)
    gain_SSG = gain_GSS.permute(1, 2, 0).contiguous()
    for number, row in enumerate(_rows(size, device)):
        best_XG[row.subset_C] = (best_XG[row.before_CM] + gain_SSG[number][row.column_CM]).amax(dim=1)
    bit_S = 1 << torch.arange(size, device=device)
    left_G = torch.full((requests,), (1 << size) - 1, dtype=torch.int64, device=device)
    picked: list[Tensor] = []
    for number in reversed(range(size)):
        # The column that the best total came from.
        total_SG = best_XG.gather(0, left_G & ~bit_S[:, None]) + gain_SSG[number]
        column_G = total_SG.masked_fill(left_G & bit_S[:, None] == 0, -torch.inf).argmax(dim=0)
        picked.append(column_G)
        left_G = left_G & ~bit_S[column_G]
    return torch.stack(picked[::-1], dim=1)


@njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _match(gain_SSG: NDArray[np.float32], column_SG: NDArray[np.int64]) -> None:
    size, _, requests = gain_SSG.shape
    members = np.zeros(1 << size, np.int64)
    for subset in range(1, 1 << size):
        members[subset] = members[subset >> 1] + (subset & 1)
    best_XB = np.zeros((1 << size, BLOCK), gain_SSG.dtype)
    for start in range(0, requests, BLOCK):
        width = min(BLOCK, requests - start)
        for subset in range(1, 1 << size):
            _complete(best_XB, subset, gain_SSG[members[subset] - 1], start, width)
        for request in range(width):
            _pick(best_XB[:, request], gain_SSG[:, :, start + request], column_SG[:, start + request])


@njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _complete(best_XB: NDArray[np.float32], subset: int, gain_SG: NDArray[np.float32], start: int, width: int) -> None:
    """The largest total of a subset, from those without one of its members, which a row's gain is added to."""
    top_B = best_XB[subset]
    begun = False
    for column in range(len(gain_SG)):
        if subset >> column & 1:
            # Whole rows and no slices of them: numba does not know that a slice lies in one piece.
            before_B, gain_G = best_XB[subset & ~(1 << column)], gain_SG[column]
            for request in range(width):
                total = before_B[request] + gain_G[start + request]
                top_B[request] = total if not begun or total > top_B[request] else top_B[request]
            begun = True


@njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _pick(best_X: NDArray[np.float32], gain_SS: NDArray[np.float32], column_S: NDArray[np.int64]) -> None:
    """From the last row to the first: the column that the best total came from."""
    size = len(column_S)
    left = (1 << size) - 1
    for row in range(size - 1, -1, -1):
        picked, top = -1, best_X[0]
        for column in range(size):
            if left >> column & 1:
                total = best_X[left & ~(1 << column)] + gain_SS[row, column]
                if picked < 0 or total > top:
                    picked, top = column, total
        column_S[row] = picked
        left &= ~(1 << picked)

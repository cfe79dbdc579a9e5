"""What a centroid leaves of 8-bit rows: integer products, then one rounding a component, the same bits everywhere.

B rows  P padded width  K centroids
"""

from __future__ import annotations

import numpy as np
import torch
from numba import njit
from numpy.typing import NDArray
from torch import Tensor

from hymirec.codebook.rotation import quantised

# Below this many units a component, what is left of a row is its rounding.
NOISE = 1.0


def project_rows(rows_BP: Tensor, code_B: Tensor, units_KP: Tensor, length: float) -> Tensor:
    """Directions, int8 (B, P), of x - (x.c / c.c) c, each `length` long; a row that is its centroid becomes zero."""
    square_K = (units_KP.long() ** 2).sum(1)
    if rows_BP.device.type == "cpu":
        left, norm = np.empty(rows_BP.shape, np.float32), np.empty(len(rows_BP), np.float64)
        _project(rows_BP.numpy(), code_B.numpy(), units_KP.numpy(), square_K.numpy(), left, norm)
        rest, square = torch.from_numpy(left), torch.from_numpy(norm)
    else:
        rows, chosen = rows_BP.long(), units_KP[code_B.long()].long()
        product = (rows * chosen).sum(1).double()
        share = product / square_K[code_B.long()].double()
        rest = rows_BP.float() - share.float()[:, None] * chosen.float()
        square = (rows * rows).sum(1).double() - product * share
    directions = quantised(rest, length)
    directions[square <= NOISE**2 * rows_BP.shape[1]] = 0
    return directions


@njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _project(
    rows_BP: NDArray[np.int8],
    code_B: NDArray[np.int32],
    units_KP: NDArray[np.int8],
    square_K: NDArray[np.int64],
    out_BP: NDArray[np.float32],
    norm_B: NDArray[np.float64],
) -> None:
    for i in range(len(rows_BP)):
        row, centroid, out = rows_BP[i], units_KP[code_B[i]], out_BP[i]
        product, own = np.int32(0), np.int32(0)
        for p in range(len(row)):
            product += np.int32(row[p]) * np.int32(centroid[p])
            own += np.int32(row[p]) * np.int32(row[p])
        exact = np.float64(product) / np.float64(square_K[code_B[i]])
        norm_B[i] = np.float64(own) - np.float64(product) * exact
        share = np.float32(exact)
        for p in range(len(row)):
            out[p] = np.float32(row[p]) - share * np.float32(centroid[p])

"""What closed forms share: rows to fit, weights of a history's events, and a place for items that they cannot score.

B users  N catalogue  R rows of the training matrix
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from hymirec.catalog.prepared import Sequences
from hymirec.recommender.baselines.contract import History

DAY = 86_400
NEGLIGIBLE = 1e-12


def training_rows(sequences: Sequences, items: int, run: int = 0) -> tuple[sp.csr_matrix, NDArray[np.int64]]:
    """1 where a row has a training event with an item, (R, N) float32, and the time of each row's last event (R,).

    A row is a user's training history, or with `run` each piece of that many consecutive events of it.
    """
    user, item, ts = sequences.training_events()
    place = np.arange(len(item)) - np.searchsorted(user, user)
    piece = place // run if run else np.zeros_like(place)
    new = np.ones(len(item), bool)
    new[1:] = (user[1:] != user[:-1]) | (piece[1:] != piece[:-1])
    row = np.cumsum(new) - 1
    matrix = sp.csr_matrix((np.ones(len(item), np.float32), (row, item)), shape=(int(new.sum()), items))
    matrix.data[:] = 1  # an item that recurs in a row counts once
    return matrix, ts[np.append(new[1:], True)] if len(ts) else ts


def weighted_rows(histories: Sequence[History], items: int, keep: float, days: float) -> sp.csr_matrix:
    """Weights (B, N) of the histories' items, float32; the newest event weighs 1, a repeated item stands repeatedly.

    Each step back multiplies by `keep`, and `days` days back by 1/e (0: time does not count). Time counts from the
    newest event: from the request it would only scale a user's scores. Weights below 1e-12 are left out.
    """
    length = np.array([len(history.items) for history in histories], np.int64)
    stop = np.cumsum(length)
    event = np.concatenate([np.empty(0, np.int32), *(history.items for history in histories)])
    ts = np.concatenate([np.empty(0, np.int64), *(history.ts for history in histories)])
    newest = np.repeat(stop - 1, length)
    weight = float(keep) ** (newest - np.arange(len(event)))
    if days:
        weight *= np.exp((ts - ts[newest]) / (days * DAY))
    row = np.repeat(np.arange(len(histories)), length)
    kept = weight > NEGLIGIBLE
    start = np.concatenate([[0], np.cumsum(np.bincount(row[kept], minlength=len(histories)))])
    return sp.csr_matrix((weight[kept].astype(np.float32), event[kept], start), shape=(len(histories), items))


def rank_unscored(scores_BN: NDArray[np.float32], share_N: NDArray[np.float32]) -> NDArray[np.float32]:
    """Put items whose score is exactly 0 below all others, by popularity; in place.

    share is popularity / (largest popularity + 1), so that an item without training events comes last.
    """
    floor_B = np.minimum(scores_BN.min(axis=1, initial=0), 0) - 1
    np.copyto(scores_BN, floor_B[:, None] + share_N, where=scores_BN == 0)
    return scores_BN


def popularity_share(popularity_N: NDArray[np.int64]) -> NDArray[np.float32]:
    """Popularity (N,) over its largest value + 1: in [0, 1)."""
    share: NDArray[np.float32] = (popularity_N / (popularity_N.max(initial=0) + 1)).astype(np.float32)
    return share

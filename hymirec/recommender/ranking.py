"""Exact ranks in the full catalogue: every item is scored, the user's history is masked, ties go to the lower index."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# Scores of a chunk of items for a batch of users; bounds memory for any catalogue.
CHUNK_SCORES = 1 << 24


def max_scores(interests_BSW: Tensor, items_NW: Tensor) -> Tensor:
    """Score (B, N): the largest cosine over the interests; all rows are unit vectors."""
    batch, interests, width = interests_BSW.shape
    scores = interests_BSW.reshape(batch * interests, width) @ items_NW.T
    return scores.view(batch, interests, -1).amax(dim=1)


def target_ranks(
    interests_BSW: Tensor,
    items_NW: Tensor,
    targets: Sequence[NDArray[np.integer]],
    masked: Sequence[NDArray[np.integer]],
) -> list[NDArray[np.int64]]:
    """0-based ranks of each user's targets among all items but the masked ones.

    interests (B, S, W) and items (N, W) are unit vectors. A target is ranked even when it is masked (a repeated item);
    other targets of the same user count as ordinary items.
    """
    step = max(1, CHUNK_SCORES // max(1, interests_BSW.shape[0] * interests_BSW.shape[1]))

    def score(start: int, stop: int) -> Tensor:
        return max_scores(interests_BSW, items_NW[start:stop])

    return _ranks(score, len(items_NW), step, targets, masked)


def score_ranks(
    scores_BN: Tensor, targets: Sequence[NDArray[np.integer]], masked: Sequence[NDArray[np.integer]]
) -> list[NDArray[np.int64]]:
    """The same from scores of all items (B, N), as baselines give them."""
    return _ranks(
        lambda start, stop: scores_BN[:, start:stop].clone(), scores_BN.shape[1], scores_BN.shape[1], targets, masked
    )


def _ranks(
    score: Callable[[int, int], Tensor],
    n: int,
    step: int,
    targets: Sequence[NDArray[np.integer]],
    masked: Sequence[NDArray[np.integer]],
) -> list[NDArray[np.int64]]:
    """Ranks from a function that gives the scores (B, stop - start) of a range of items, in two passes over ranges."""
    counts = [len(t) for t in targets]
    batch, most = len(targets), max(counts, default=0)
    if most == 0:
        return [np.empty(0, np.int64) for _ in targets]
    target_BT = torch.zeros(batch, most, dtype=torch.int64)
    for row, values in enumerate(targets):
        target_BT[row, : len(values)] = torch.from_numpy(np.asarray(values, np.int64))
    # The target's own score comes out of the same product as the others', so that a tie is a tie.
    own_BT = torch.empty(batch, most)
    spans = [(start, min(n, start + step)) for start in range(0, n, step)]
    kept: list[Tensor] = []
    for start, stop in spans:
        scores = score(start, stop)
        target_BT, own_BT = target_BT.to(scores.device), own_BT.to(scores)
        inside = (target_BT >= start) & (target_BT < stop)
        own = scores.gather(1, (target_BT - start).clamp(0, stop - start - 1))
        own_BT = torch.where(inside, own, own_BT)
        kept = [scores] if len(spans) == 1 else []
    ranks_BT = torch.zeros_like(target_BT)
    for start, stop in spans:
        scores = kept[0] if kept else score(start, stop)
        _mask(scores, masked, start, stop)
        index = torch.arange(start, stop, device=scores.device)
        for column in range(most):
            own, target = own_BT[:, column, None], target_BT[:, column, None]
            before = (scores > own) | ((scores == own) & (index < target))
            ranks_BT[:, column] += (before & (index != target)).sum(dim=1)
    return [ranks_BT[row, :count].cpu().numpy() for row, count in enumerate(counts)]


def _mask(scores_BN: Tensor, masked: Sequence[NDArray[np.integer]], start: int, stop: int) -> None:
    rows = np.repeat(np.arange(len(masked)), [len(m) for m in masked])
    columns = np.concatenate([np.asarray(m, np.int64) for m in masked]) if len(masked) else np.empty(0, np.int64)
    inside = (columns >= start) & (columns < stop)
    if inside.any():
        scores_BN[torch.from_numpy(rows[inside]), torch.from_numpy(columns[inside] - start)] = -torch.inf

"""Exact ranks and lists in the full catalogue: masked items are left out, ties go to the lower index.

A score and its item's index make one 64-bit key that orders a whole ranking: keys are distinct, so that a rank is the
number of larger keys and a list is the largest keys, whatever the chunks and batches are.

B users  S interests  W width  N catalogue  C items of a chunk  K length of a list
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hymirec.errors import ModelError

# Scores of a chunk of items for a batch of users; bounds memory for any catalogue.
CHUNK_SCORES = 1 << 24
# Keys that are held at once: they stay in a core's cache.
CHUNK_KEYS, CHUNK_KEYS_GPU = 1 << 18, 1 << 26
# Below every key: a masked item.
MASKED = torch.iinfo(torch.int64).min
_LOW = (1 << 32) - 1

Items = Sequence[NDArray[np.integer]]


class Ranking(NamedTuple):
    """Of each user: `ranks` (0-based, one a target) and `top_BK`, the first K items, -1 where fewer are left."""

    ranks: list[NDArray[np.int64]]
    top_BK: NDArray[np.int64]


def max_scores(interests_BSW: Tensor, items_NW: Tensor) -> Tensor:
    """Score (B, N): the largest cosine over the interests; all rows are unit vectors."""
    batch, interests, width = interests_BSW.shape
    scores = interests_BSW.reshape(batch * interests, width) @ items_NW.T
    return scores.view(batch, interests, -1).amax(dim=1)


def rank(
    interests_BSW: Tensor,
    items_NW: Tensor,
    targets: Items,
    masked: Items,
    k: int = 0,
    bonus_BN: Tensor | None = None,
) -> Ranking:
    """Rank each user's targets among all items but the masked ones, and list the first k of them.

    interests (B, S, W) and items (N, W) are unit vectors; a bonus (B, N) is added to the scores. A target is ranked
    even when it is masked (a repeated item), but is in no list then; other targets of the same user count as ordinary
    items. Raises ModelError for a NaN.
    """
    step = max(1, CHUNK_SCORES // max(1, interests_BSW.shape[0] * interests_BSW.shape[1]))

    def score(start: int, stop: int) -> Tensor:
        scores_BC = max_scores(interests_BSW, items_NW[start:stop])
        return scores_BC if bonus_BN is None else scores_BC + bonus_BN[:, start:stop]

    return _rank(score, len(items_NW), step, targets, masked, k)


def rank_scores(scores_BN: Tensor, targets: Items, masked: Items, k: int = 0) -> Ranking:
    """The same from scores of all items (B, N), as baselines give them."""
    n = scores_BN.shape[1]
    return _rank(lambda start, stop: scores_BN[:, start:stop], n, n, targets, masked, k)


def score_ranks(scores_BN: Tensor, targets: Items, masked: Items) -> list[NDArray[np.int64]]:
    """Only the ranks of `rank_scores`."""
    return rank_scores(scores_BN, targets, masked).ranks


def _rank(score: Callable[[int, int], Tensor], n: int, step: int, targets: Items, masked: Items, k: int) -> Ranking:
    """Rank from a function that gives the scores (B, stop - start) of a range of items, in two passes over ranges."""
    spans = [(start, min(n, start + step)) for start in range(0, n, step)]
    kept_BC = score(0, n) if len(spans) == 1 else None
    target_BT = padded_targets(targets)
    own_BT = torch.zeros(target_BT.shape)
    # The target's own score comes out of the same product as the others', so that a tie is a tie.
    for start, stop in spans if target_BT.shape[1] else ():
        scores_BC = score(start, stop) if kept_BC is None else kept_BC
        target_BT, own_BT = target_BT.to(scores_BC.device), own_BT.to(scores_BC)
        own = scores_BC.gather(1, (target_BT - start).clamp(0, stop - start - 1))
        own_BT = torch.where((target_BT >= start) & (target_BT < stop), own, own_BT)
    own_BT, ranks_BT = _keys(own_BT, target_BT), torch.zeros_like(target_BT)
    best_BK = torch.full((len(targets), k), MASKED, device=target_BT.device)
    for start, stop in spans:
        scores_BC = score(start, stop) if kept_BC is None else kept_BC
        index_C = torch.arange(start, stop, device=scores_BC.device)
        best_BK = best_BK.to(scores_BC.device)
        rows = max(1, (CHUNK_KEYS_GPU if scores_BC.is_cuda else CHUNK_KEYS) // (stop - start))
        for block in (slice(first, first + rows) for first in range(0, len(targets), rows)):
            keys_RC = _keys(scores_BC[block], index_C)
            _mask(keys_RC, masked[block], start, stop)
            for column in range(target_BT.shape[1]):
                ranks_BT[block, column] += (keys_RC > own_BT[block, column, None]).sum(dim=1)
            if k:
                best = torch.cat([best_BK[block], keys_RC.topk(min(k, stop - start), dim=1).values], dim=1)
                best_BK[block] = best.topk(k, dim=1).values
    top_BK = torch.where(best_BK == MASKED, -1, _LOW - (best_BK & _LOW))
    return Ranking([ranks_BT[row, : len(own)].cpu().numpy() for row, own in enumerate(targets)], top_BK.cpu().numpy())


def _keys(scores: Tensor, index: Tensor) -> Tensor:
    """Distinct keys that order items as their scores do, ties by lower index; same shape as the scores."""
    scores = scores.float()
    if scores.isnan().any():
        raise ModelError(
            "a score is NaN, so items have no order; train again with a lower learning rate or without bf16"
        )
    bits = (scores + 0.0).view(torch.int32)  # + 0.0: -0 and 0 are a tie
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)  # floats of either sign, in order as integers
    return ordered.to(torch.int64).bitwise_left_shift_(32).add_(_LOW - index)


def ndcg(ranks: NDArray[np.int64], k: int = 10) -> float:
    """NDCG@k of one user from the 0-based ranks of all the user's targets."""
    ideal = (1 / np.log2(np.arange(min(len(ranks), k)) + 2)).sum()
    return float((1 / np.log2(ranks[ranks < k] + 2)).sum() / ideal)


def padded_targets(targets: Items) -> Tensor:
    """Targets (B, T) as one table, filled up with item 0."""
    target_BT = torch.zeros(len(targets), max((len(own) for own in targets), default=0), dtype=torch.int64)
    for row, values in enumerate(targets):
        target_BT[row, : len(values)] = torch.from_numpy(np.asarray(values, np.int64))
    return target_BT


def _mask(keys_BC: Tensor, masked: Items, start: int, stop: int) -> None:
    rows = np.repeat(np.arange(len(masked)), [len(m) for m in masked])
    columns = np.concatenate([np.asarray(m, np.int64) for m in masked]) if len(masked) else np.empty(0, np.int64)
    inside = (columns >= start) & (columns < stop)
    if inside.any():
        keys_BC[torch.from_numpy(rows[inside]), torch.from_numpy(columns[inside] - start)] = MASKED

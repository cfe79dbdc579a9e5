"""Answer the requests of a split with a model: interests of many users, in batches of like length."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hymirec.catalog.prepared import Sequences
from hymirec.catalog.schemas import Split
from hymirec.recommender.batches import request_batch
from hymirec.recommender.contract import Recommender
from hymirec.recommender.ranking import Items, Ranking, rank
from hymirec.recommender.trend import PastEvents

# Bonuses of all items for a block of requests; bounds memory for any catalogue.
BONUSES = 1 << 26


def users_with_targets(sequences: Sequences, split: Split) -> NDArray[np.int64]:
    """Rows of the users that have a target in the split, ascending."""
    lengths = np.diff(sequences.offsets)
    count = sequences.n_val - sequences.n_train if split == "validation" else lengths - sequences.n_val
    return np.flatnonzero(count > 0)


def split_interests(
    model: Recommender, sequences: Sequences, split: Split, users: NDArray[np.int64], batch_users: int
) -> Iterator[tuple[NDArray[np.int64], Tensor]]:
    """Yield (users (B,), interests (B, S, W)) batch by batch, users sorted by the length of their history."""
    device = next(model.parameters()).device
    length = (sequences.n_train if split == "validation" else sequences.n_val)[users]
    ordered = users[np.argsort(length, kind="stable")]
    for start in range(0, len(ordered), batch_users):
        chosen = ordered[start : start + batch_users]
        batch = {k: v.to(device) for k, v in request_batch(sequences, chosen, split, model.reach).items()}
        with torch.no_grad():
            yield chosen, model.answer(batch).float()


def split_targets(
    sequences: Sequences, users: NDArray[np.int64], split: Split, mask_history: bool
) -> tuple[list[NDArray[np.int32]], list[NDArray[np.int32]]]:
    """Each user's distinct targets (in order of time) and the items that are not ranked: the history's others."""
    targets, masked = [], []
    for user in users:
        wanted = sequences.targets(int(user), split)[0]
        first = np.sort(np.unique(wanted, return_index=True)[1])
        targets.append(wanted[first])
        history = sequences.history(int(user), split)[0]
        masked.append(np.setdiff1d(history, wanted) if mask_history else history[:0])
    return targets, masked


def request_times(sequences: Sequences, users: NDArray[np.int64], split: Split) -> NDArray[np.int64]:
    """When each user (row) asks: the time (B,) of the user's first target in the split, in seconds."""
    before = sequences.n_train if split == "validation" else sequences.n_val
    times: NDArray[np.int64] = sequences.ts[sequences.offsets[users] + before[users]]
    return times


class RequestRanker:
    """Ranks the catalogue for the requests of a split as the model would have at the time of each."""

    def __init__(self, model: Recommender, sequences: Sequences) -> None:
        with torch.no_grad():
            self.vectors_NW = model.item_vectors().float()
        self._sequences, self._trend = sequences, model.trend
        self._past = PastEvents.of(sequences, len(self.vectors_NW)) if model.trend.weight else None

    def rank(
        self,
        users: NDArray[np.int64],
        split: Split,
        interests_BSW: Tensor,
        targets: Items,
        masked: Items,
        k: int = 0,
    ) -> Ranking:
        """See `ranking.rank`; row b is the request of `users[b]`."""
        if self._past is None:
            return rank(interests_BSW, self.vectors_NW, targets, masked, k)
        ranks: list[NDArray[np.int64]] = []
        tops = [np.empty((0, k), np.int64)]
        now = request_times(self._sequences, users, split)
        rows = max(1, BONUSES // len(self.vectors_NW))
        for block in (slice(start, start + rows) for start in range(0, len(users), rows)):
            bonus = self._trend.bonus(self._past.before(now[block], self._trend.half_life))
            bonus_BN = torch.from_numpy(bonus).to(interests_BSW.device)
            found = rank(interests_BSW[block], self.vectors_NW, targets[block], masked[block], k, bonus_BN)
            ranks += found.ranks
            tops.append(found.top_BK)
        return Ranking(ranks, np.concatenate(tops))


def split_ranks(
    model: Recommender,
    sequences: Sequences,
    split: Split,
    users: NDArray[np.int64],
    batch_users: int,
    mask_history: bool,
) -> Iterator[tuple[NDArray[np.int64], list[NDArray[np.int64]], Tensor]]:
    """Yield (users, 0-based ranks of each user's targets, interests (B, S, W)) batch by batch."""
    ranker = RequestRanker(model, sequences)
    for chosen, interests in split_interests(model, sequences, split, users, batch_users):
        targets, masked = split_targets(sequences, chosen, split, mask_history)
        yield chosen, ranker.rank(chosen, split, interests, targets, masked).ranks, interests

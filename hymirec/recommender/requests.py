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


def recent_items(
    model: Recommender, sequences: Sequences, users: NDArray[np.int64], split: Split
) -> list[NDArray[np.int32]]:
    """The newest items of each user's history that the model reads one by one, oldest first."""
    return [sequences.history(int(user), split)[0][-model.reach.recent :] for user in users]


class RequestBonus:
    """What a model adds to its scores at the time of each request of a split."""

    def __init__(self, model: Recommender, sequences: Sequences, size: int) -> None:
        self._model, self._sequences = model, sequences
        self._past = PastEvents.of(sequences, size) if model.trend.weight else None

    def of(self, users: NDArray[np.int64], split: Split) -> NDArray[np.float32] | None:
        """(B, N) for the requests of users (B,); None where the model adds nothing."""
        trend, neighbours = self._model.trend, self._model.neighbours
        found: NDArray[np.float32] | None = None
        if self._past is not None:
            now = request_times(self._sequences, users, split)
            found = trend.bonus(self._past.before(now, trend.half_life))
        if neighbours.weight:
            beside: NDArray[np.float32] = neighbours.bonus(
                recent_items(self._model, self._sequences, users, split)
            ).toarray()
            found = beside if found is None else found + beside
        return found


class RequestRanker:
    """Ranks the catalogue for the requests of a split as the model would have at the time of each."""

    def __init__(self, model: Recommender, sequences: Sequences) -> None:
        with torch.no_grad():
            self.vectors_NW = model.item_vectors().float()
        self._adds = bool(model.trend.weight or model.neighbours.weight)
        self._bonus = RequestBonus(model, sequences, len(self.vectors_NW))

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
        if not self._adds:
            return rank(interests_BSW, self.vectors_NW, targets, masked, k)
        ranks: list[NDArray[np.int64]] = []
        tops = [np.empty((0, k), np.int64)]
        rows = max(1, BONUSES // len(self.vectors_NW))
        for block in (slice(start, start + rows) for start in range(0, len(users), rows)):
            bonus = self._bonus.of(users[block], split)
            assert bonus is not None
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

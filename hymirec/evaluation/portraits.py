"""What a model sees in a few users: their interests as the items nearest to each, and where the next item ranks.

B users  S interests  W width  N catalogue  K length of a list
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hymirec.catalog.prepared import Sequences
from hymirec.catalog.schemas import Split
from hymirec.config import EvaluationConfig
from hymirec.errors import RequestError
from hymirec.recommender.contract import Recommender
from hymirec.recommender.ranking import rank
from hymirec.recommender.requests import RequestRanker, split_interests, split_targets, users_with_targets

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Interest:
    """Items (K,) nearest to one interest, best first, their cosines (K,), and how many of the user's list it found."""

    items: Ints
    cosines: Floats
    share: int


@dataclass(frozen=True, eq=False)
class Portrait:
    """A user (row) of a split. `cosine_SS` is between interests; `ranks` (T,) are 0-based, `cosine_TS` of targets."""

    user: int
    interests: list[Interest]
    targets: Ints
    ranks: Ints
    cosine_SS: Floats = field(repr=False)
    cosine_TS: Floats = field(repr=False)


def spread_users(sequences: Sequences, split: Split, count: int) -> list[int]:
    """Rows of users with a target, evenly spaced quantiles of the length of their histories, short first."""
    users = users_with_targets(sequences, split)
    length = (sequences.n_train if split == "validation" else sequences.n_val)[users]
    order = users[np.argsort(length, kind="stable")]
    spots = [int((number + 1) / (count + 1) * len(order)) for number in range(count)] if len(order) else []
    return [int(order[spot]) for spot in dict.fromkeys(spots)]


def find_users(sequences: Sequences, split: Split, ids: Sequence[str]) -> list[int]:
    """Rows of users by their ids as the data has them.

    Raises RequestError for an id that the data does not have, or a user without a target in the split.
    """
    known = {str(user): row for row, user in enumerate(sequences.users.to_pylist())}
    asked = set(users_with_targets(sequences, split).tolist())
    for user in ids:
        if known.get(user) not in asked:
            some = ", ".join(str(sequences.users[row].as_py()) for row in sorted(asked)[:3])
            raise RequestError(f"user {user!r} has no target in the {split} split; some that have one: {some}")
    return [known[user] for user in ids]


def portraits(
    model: Recommender, sequences: Sequences, split: Split, users: Sequence[int], k: int, config: EvaluationConfig
) -> list[Portrait]:
    """Portraits of users (rows) in the given order, lists of `k` items, under the evaluation's own protocol."""
    rows = np.array(users, np.int64)
    found: dict[int, Portrait] = {}
    ranker = RequestRanker(model, sequences)
    for chosen, interests_BSW in split_interests(model, sequences, split, rows, config.batch_users):
        for user, interests_SW in zip(chosen.tolist(), interests_BSW, strict=True):
            found[user] = _portrait(user, interests_SW, ranker, sequences, split, k, config)
    return [found[user] for user in users]


def _portrait(
    user: int,
    interests_SW: Tensor,
    ranker: RequestRanker,
    sequences: Sequences,
    split: Split,
    k: int,
    config: EvaluationConfig,
) -> Portrait:
    rows, vectors_NW = np.array([user]), ranker.vectors_NW
    targets, masked = split_targets(sequences, rows, split, config.mask_history)
    merged = ranker.rank(rows, split, interests_SW[None], targets, masked, config.list_k)
    count = len(interests_SW)
    alone = rank(interests_SW[:, None], vectors_NW, [targets[0][:0]] * count, masked * count, k)

    def cosines(items: NDArray[np.integer]) -> Floats:
        """(len(items), S)."""
        index = torch.from_numpy(np.asarray(items, np.int64)).to(vectors_NW.device)
        values: Floats = (vectors_NW[index] @ interests_SW.T).cpu().numpy()
        return values

    listed = merged.top_BK[0][merged.top_BK[0] >= 0]
    shares = np.bincount(cosines(listed).argmax(axis=1), minlength=count)
    interests = []
    for number, top_K in enumerate(alone.top_BK):
        items = top_K[top_K >= 0]
        interests.append(Interest(items, cosines(items)[:, number], int(shares[number])))
    unit_SW = torch.nn.functional.normalize(interests_SW, dim=1)
    between = (unit_SW @ unit_SW.T).cpu().numpy()
    return Portrait(user, interests, targets[0].astype(np.int64), merged.ranks[0], between, cosines(targets[0]))

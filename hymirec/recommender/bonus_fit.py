"""Choose what is added to a trained model's scores: of several bonuses the one with the best validation NDCG@10.

B requests  N catalogue  T targets of a request
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hymirec.catalog.prepared import Sequences
from hymirec.config import EvaluationConfig
from hymirec.recommender.contract import Recommender
from hymirec.recommender.ranking import max_scores, ndcg, padded_targets
from hymirec.recommender.requests import BONUSES, RequestBonus, split_interests, split_targets, users_with_targets

# The choice looks at no more users than this, and at fewer where the catalogue is large.
USERS, SCORES = 5_000, 4_000_000_000
SEED = 0
Option = TypeVar("Option", bound=Hashable)


@dataclass(frozen=True)
class Chosen(Generic[Option]):
    """The best option, validation NDCG@10 with and without it, and their difference's standard error over users."""

    option: Option
    ndcg: float
    without: float
    error: float

    def report(self) -> dict[str, Any]:
        """For an artifact's JSON."""
        return {
            "validation_ndcg@10": round(self.ndcg, 4),
            "validation_ndcg@10_without": round(self.without, 4),
            "standard_error": round(self.error, 5),
        }


def choose_bonus(
    model: Recommender,
    sequences: Sequences,
    evaluation: EvaluationConfig,
    none: Option,
    options: Sequence[Option],
    bonus: Callable[[Option, NDArray[np.int64]], NDArray[np.float32]],
    errors: float = 1.0,
) -> Chosen[Option]:
    """The best of `options`, or `none`: a gain that is not above so many of its own standard errors is none.

    `bonus(option, users)` gives what it adds to the validation scores of users (B,), as (B, N), beside what the model
    adds already. Ties of scores count for the target here; the evaluation's ranks are exact.
    """
    users = _some_users(sequences, len(model.item_vectors()))
    gains: dict[Option, list[float]] = {option: [] for option in (none, *options)}
    if len(users) and options:
        _judge(model, sequences, users, evaluation, none, gains, bonus)
    means = {option: float(np.mean(values)) if values else 0.0 for option, values in gains.items()}
    best = max(means, key=lambda option: means[option])
    difference = np.array(gains[best]) - np.array(gains[none])
    error = float(difference.std() / np.sqrt(len(difference))) if len(difference) else 0.0
    if means[best] - means[none] <= errors * error:
        best = none
    return Chosen(best, means[best], means[none], error)


def _judge(
    model: Recommender,
    sequences: Sequences,
    users: NDArray[np.int64],
    evaluation: EvaluationConfig,
    none: Option,
    gains: dict[Option, list[float]],
    bonus: Callable[[Option, NDArray[np.int64]], NDArray[np.float32]],
) -> None:
    """Append each user's NDCG@10 under every option."""
    with torch.no_grad():
        vectors_NW = model.item_vectors().float()
    before = RequestBonus(model, sequences, len(vectors_NW))
    batch = max(1, min(evaluation.batch_users, BONUSES // len(vectors_NW)))
    for chosen, interests in split_interests(model, sequences, "validation", users, batch):
        targets, masked = split_targets(sequences, chosen, "validation", evaluation.mask_history)
        scores_BN = max_scores(interests, vectors_NW)
        already = before.of(chosen, "validation")
        if already is not None:
            scores_BN += torch.from_numpy(already).to(scores_BN.device)
        for row, items in enumerate(masked):
            scores_BN[row, torch.from_numpy(items.astype(np.int64))] = -torch.inf
        counts = [len(own) for own in targets]
        target_BT = padded_targets(targets).to(scores_BN.device)
        for option, values in gains.items():
            total_BN = scores_BN
            if option != none:
                total_BN = scores_BN + torch.from_numpy(bonus(option, chosen)).to(scores_BN.device)
            ranks_BT = _ranks(total_BN, target_BT)
            values += [ndcg(ranks[:count]) for ranks, count in zip(ranks_BT, counts, strict=True)]


def _ranks(scores_BN: Tensor, target_BT: Tensor) -> NDArray[np.int64]:
    own_BT = scores_BN.gather(1, target_BT)
    above = [(scores_BN > own_BT[:, t, None]).sum(dim=1) for t in range(target_BT.shape[1])]
    ranks_BT: NDArray[np.int64] = torch.stack(above, dim=1).cpu().numpy()
    return ranks_BT


def _some_users(sequences: Sequences, items: int) -> NDArray[np.int64]:
    users = users_with_targets(sequences, "validation")
    count = min(USERS, max(1, SCORES // max(1, items)))
    if len(users) <= count:
        return users
    return np.sort(np.random.default_rng(SEED).choice(users, count, replace=False))

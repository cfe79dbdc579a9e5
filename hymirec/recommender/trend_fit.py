"""Choose the trend of a trained model: the weight and half-life with the best NDCG@10 of validation targets.

B requests  N catalogue  T targets of a request
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hymirec.catalog.prepared import Sequences
from hymirec.config import EvaluationConfig, TrendConfig
from hymirec.recommender.contract import Recommender
from hymirec.recommender.ranking import max_scores, ndcg, padded_targets
from hymirec.recommender.requests import (
    BONUSES,
    request_times,
    split_interests,
    split_targets,
    users_with_targets,
)
from hymirec.recommender.trend import PastEvents, Trend

# The choice looks at no more users than this, and at fewer where the catalogue is large.
USERS, SCORES = 5_000, 4_000_000_000
SEED = 0


@dataclass(frozen=True)
class FittedTrend:
    """The trend, validation NDCG@10 with and without it, and the standard error of their difference over users."""

    trend: Trend
    ndcg: float
    without: float
    error: float

    def report(self) -> dict[str, Any]:
        """For an artifact's JSON."""
        return {
            "weight": self.trend.weight,
            "half_life": self.trend.half_life,
            "validation_ndcg@10": round(self.ndcg, 4),
            "validation_ndcg@10_without": round(self.without, 4),
            "standard_error": round(self.error, 5),
        }


def fit_trend(
    model: Recommender, sequences: Sequences, config: TrendConfig, evaluation: EvaluationConfig
) -> FittedTrend:
    """The best trend of the config's grid, or none: a gain that is not above its own standard error is none.

    Ties of scores count for the target here; the evaluation's ranks are exact.
    """
    users = _some_users(sequences, len(model.item_vectors()))
    settings = [Trend()] + [Trend(weight, days) for days in config.half_lives for weight in config.weights]
    gains: dict[Trend, list[float]] = {trend: [] for trend in settings}
    if len(users) and len(settings) > 1:
        _judge(model, sequences, users, evaluation, gains)
    means = {trend: float(np.mean(values)) if values else 0.0 for trend, values in gains.items()}
    best = max(means, key=lambda trend: means[trend])
    difference = np.array(gains[best]) - np.array(gains[Trend()])
    error = float(difference.std() / np.sqrt(len(difference))) if len(difference) else 0.0
    if means[best] - means[Trend()] <= error:
        best = Trend()
    return FittedTrend(best, means[best], means[Trend()], error)


def _judge(
    model: Recommender,
    sequences: Sequences,
    users: NDArray[np.int64],
    evaluation: EvaluationConfig,
    gains: dict[Trend, list[float]],
) -> None:
    """Append each user's NDCG@10 under every trend."""
    with torch.no_grad():
        vectors_NW = model.item_vectors().float()
    size = len(vectors_NW)
    past = PastEvents.of(sequences, size)
    batch = max(1, min(evaluation.batch_users, BONUSES // size))
    for chosen, interests in split_interests(model, sequences, "validation", users, batch):
        targets, masked = split_targets(sequences, chosen, "validation", evaluation.mask_history)
        scores_BN = max_scores(interests, vectors_NW)
        for row, items in enumerate(masked):
            scores_BN[row, torch.from_numpy(items.astype(np.int64))] = -torch.inf
        now = request_times(sequences, chosen, "validation")
        counts = [len(own) for own in targets]
        target_BT = padded_targets(targets).to(scores_BN.device)
        logs: dict[float, Tensor] = {}
        for trend, values in gains.items():
            total_BN = scores_BN
            if trend.weight:
                if trend.half_life not in logs:
                    bonus = Trend(1.0, trend.half_life).bonus(past.before(now, trend.half_life))
                    logs = {trend.half_life: torch.from_numpy(bonus).to(scores_BN.device)}
                total_BN = scores_BN + trend.weight * logs[trend.half_life]
            own_BT = total_BN.gather(1, target_BT)
            above = [(total_BN > own_BT[:, t, None]).sum(dim=1) for t in range(target_BT.shape[1])]
            ranks_BT = torch.stack(above, dim=1).cpu().numpy()
            values += [ndcg(ranks[:count]) for ranks, count in zip(ranks_BT, counts, strict=True)]


def _some_users(sequences: Sequences, items: int) -> NDArray[np.int64]:
    users = users_with_targets(sequences, "validation")
    count = min(USERS, max(1, SCORES // max(1, items)))
    if len(users) <= count:
        return users
    return np.sort(np.random.default_rng(SEED).choice(users, count, replace=False))

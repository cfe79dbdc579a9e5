"""Choose the trend of a trained model: the weight and half-life with the best NDCG@10 of validation targets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hymirec.catalog.prepared import Sequences
from hymirec.config import EvaluationConfig, TrendConfig
from hymirec.recommender.bonus_fit import Chosen, choose_bonus
from hymirec.recommender.contract import Recommender
from hymirec.recommender.requests import request_times
from hymirec.recommender.trend import PastEvents, Trend


@dataclass(frozen=True)
class FittedTrend:
    """The trend, and how it was chosen."""

    trend: Trend
    chosen: Chosen[Trend]

    def report(self) -> dict[str, Any]:
        """For an artifact's JSON."""
        return {"weight": self.trend.weight, "half_life": self.trend.half_life, **self.chosen.report()}


def fit_trend(
    model: Recommender, sequences: Sequences, config: TrendConfig, evaluation: EvaluationConfig
) -> FittedTrend:
    """The best trend of the config's grid, or none; see `choose_bonus`."""
    past = PastEvents.of(sequences, len(model.item_vectors()))
    # Trends come half-life by half-life: what they share is computed once.
    shared: dict[str, Any] = {"of": None}

    def bonus(trend: Trend, users: NDArray[np.int64]) -> NDArray[np.float32]:
        of = (trend.half_life, users.tobytes())
        if shared["of"] != of:
            now = request_times(sequences, users, "validation")
            log_BN = Trend(1.0, trend.half_life).bonus(past.before(now, trend.half_life))
            shared.update(of=of, log_BN=log_BN)
        found: NDArray[np.float32] = np.float32(trend.weight) * shared["log_BN"]
        return found

    options = [Trend(weight, days) for days in config.half_lives for weight in config.weights]
    chosen = choose_bonus(model, sequences, evaluation, Trend(), options, bonus)
    return FittedTrend(chosen.option, chosen)

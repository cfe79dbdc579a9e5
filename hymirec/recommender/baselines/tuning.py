"""Baselines tune themselves: a search with a stated budget, judged by NDCG@10 of the validation targets.

Validation targets choose settings and are never fitted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from hymirec.catalog.prepared import Sequences
from hymirec.recommender.baselines.contract import History
from hymirec.recommender.ranking import ndcg, score_ranks
from hymirec.recommender.requests import request_times, split_targets, users_with_targets

Setting = float | int
Settings = dict[str, Setting]
Space = Mapping[str, Sequence[Setting]]

USERS = 2000
BATCH = 250
SEED = 0


class Validation:
    """Requests of at most 2,000 users with a validation target, drawn from a fixed seed."""

    def __init__(self, sequences: Sequences, mask_history: bool) -> None:
        users = users_with_targets(sequences, "validation")
        if len(users) > USERS:
            users = np.sort(np.random.default_rng(SEED).choice(users, USERS, replace=False))
        self.users = len(users)
        self._batches = []
        for start in range(0, len(users), BATCH):
            chosen = users[start : start + BATCH]
            known = [sequences.history(int(user), "validation") for user in chosen]
            times = request_times(sequences, chosen, "validation").tolist()
            histories = [History(*own, now) for own, now in zip(known, times, strict=True)]
            self._batches.append((histories, *split_targets(sequences, chosen, "validation", mask_history)))

    def ndcg(self, score: Callable[[Sequence[History]], NDArray[np.float32]]) -> float:
        """Mean NDCG@10 over the users of scores (B, N) as `Baseline.score` gives them; 0 without users."""
        gain = 0.0
        for histories, targets, masked in self._batches:
            for ranks in score_ranks(torch.from_numpy(np.array(score(histories))), targets, masked):
                gain += ndcg(ranks)
        return gain / max(self.users, 1)


@dataclass(frozen=True)
class Tuned:
    """The best settings found, their value, and how many settings were judged."""

    settings: Settings
    value: float
    trials: int

    def report(self) -> dict[str, Setting]:
        """For tables of results: the settings, `trials`, and `validation_ndcg@10`."""
        return {**self.settings, "trials": self.trials, "validation_ndcg@10": round(self.value, 4)}


def search(space: Space, judge: Callable[[Settings], float], trials: int, draws: int, seed: int = SEED) -> Tuned:
    """Largest `judge` over a grid, judging at most `trials` settings, no setting twice.

    Starts from the first value of each list and `draws` random settings; then one setting at a time, in the order of
    the space, takes all its values while the others stay at the best so far, until nothing improves or the budget is
    spent.
    """
    rng = np.random.default_rng(seed)
    values: dict[tuple[Setting, ...], float] = {}
    best: tuple[Setting, ...] = tuple(options[0] for options in space.values())

    def consider(candidate: tuple[Setting, ...]) -> None:
        nonlocal best
        if candidate not in values and len(values) < trials:
            values[candidate] = judge(dict(zip(space, candidate, strict=True)))
            if values[candidate] > values[best]:
                best = candidate

    consider(best)
    for _ in range(draws):
        consider(tuple(options[int(rng.integers(len(options)))] for options in space.values()))
    before = None
    while before != best and len(values) < trials:
        before = best
        for place, options in enumerate(space.values()):
            for option in options:
                consider((*best[:place], option, *best[place + 1 :]))
    return Tuned(dict(zip(space, best, strict=True)), values[best], len(values))

"""What an evaluation found, and the tally that brings it together batch by batch.

B users of a batch  U users  T targets  N catalogue  K length of a list
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hymirec.catalog.prepared import Sequences
from hymirec.catalog.schemas import Split
from hymirec.config import EvaluationConfig
from hymirec.evaluation.bootstrap import interval
from hymirec.evaluation.groups import Group, by_length, by_popularity, popularity_groups
from hymirec.evaluation.metrics import count_lists, coverage, gini, means, novelty
from hymirec.evaluation.ranks import Ranks
from hymirec.recommender.ranking import Ranking

Ints = NDArray[np.int64]
LENGTH, POPULARITY = "history length", "target popularity"


@dataclass(frozen=True, eq=False)
class EvaluationResult:
    """Metrics of one model on one split.

    `per_user` holds (U,) values in the order of the users' rows, `lists` coverage, Gini and novelty at K, `groups` the
    metrics of each group of users (by history length) and of targets (by popularity in training), `settings` what a
    model that tunes itself chose.
    """

    model: str
    split: Split
    users: int
    items: int
    ranks: Ranks = field(repr=False)
    per_user: dict[str, NDArray[np.float64]] = field(repr=False)
    lists: dict[str, float]
    groups: dict[str, dict[str, Group]] = field(repr=False)
    overlap: float | None = None
    settings: Mapping[str, float | int] = field(default_factory=dict)

    @property
    def means(self) -> dict[str, float]:
        """Mean of each metric over the users, and the metrics of the lists."""
        return means(self.per_user) | self.lists

    def as_row(self, resamples: int, seed: int) -> dict[str, Any]:
        """One object of `docs/results/*.json`: metrics, with 95 % intervals at 10 (or at the first K)."""
        row: dict[str, Any] = {"model": self.model, "split": self.split, "users": self.users, "items": self.items}
        row |= {"targets": self.ranks.targets, **self.means}
        at = "10" if "R@10" in self.per_user else next(iter(self.per_user)).split("@")[1]
        for name in (f"R@{at}", f"N@{at}"):
            bounds = interval(self.per_user[name], resamples, seed)
            if bounds:
                row[f"{name}_ci"] = list(bounds)
        told: dict[str, Any] = {} if self.overlap is None else {"overlap": self.overlap}
        told |= {"settings": dict(self.settings)} if self.settings else {}
        return row | told | {"groups": self.groups}


class Tally:
    """Collects the rankings of all users, in batches of any size and order."""

    def __init__(self, sequences: Sequences, split: Split, items: int, config: EvaluationConfig) -> None:
        self._config, self._split, self._items = config, split, items
        self._length = sequences.n_train if split == "validation" else sequences.n_val
        self._popularity_N = np.bincount(sequences.training_events()[1], minlength=items)
        self._exposure_N = np.zeros(items, np.int64)
        self._parts: list[tuple[Ints, Ints, Ints]] = []

    def add(self, users: Ints, targets: Sequence[NDArray[np.integer]], ranking: Ranking) -> None:
        """Add the rows (B,) of users, their targets, and what was found."""
        owner = np.repeat(users, [len(own) for own in targets])
        items = np.concatenate(targets).astype(np.int64)
        self._parts.append((owner, items, np.concatenate(ranking.ranks)))
        self._exposure_N += count_lists(ranking.top_BK, self._items)

    def result(self, model: str, overlap: float | None = None) -> EvaluationResult:
        """The metrics of all that was added."""
        owner_T, item_T, rank_T = (np.concatenate(column) for column in zip(*self._parts, strict=True))
        order = np.argsort(owner_T, kind="stable")
        owner_T, item_T, rank_T = owner_T[order], item_T[order], rank_T[order]
        ranks = Ranks.of(owner_T, item_T, rank_T)
        values, ks, users = ranks.per_user(self._config.ks), self._config.ks, np.unique(owner_T)
        group_T = popularity_groups(self._popularity_N)[item_T]
        return EvaluationResult(
            model=model,
            split=self._split,
            users=len(users),
            items=self._items,
            ranks=ranks,
            per_user=values,
            lists=self._list_metrics(),
            groups={
                LENGTH: by_length(values, self._length[users], self._config.history_bins),
                POPULARITY: by_popularity(rank_T, owner_T, group_T, ks),
            },
            overlap=overlap,
        )

    def _list_metrics(self) -> dict[str, float]:
        k, shown_N = self._config.list_k, self._exposure_N
        return {
            f"coverage@{k}": coverage(shown_N),
            f"Gini@{k}": gini(shown_N),
            f"novelty@{k}": novelty(shown_N, self._popularity_N),
        }

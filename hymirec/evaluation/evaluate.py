"""Evaluate a recommender and baselines: full ranking for every user that has a target in a split.

B users of a batch  S interests  W width  N catalogue
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hymirec.catalog.prepared import Catalog, Sequences
from hymirec.catalog.schemas import Split
from hymirec.codebook import open_codebook
from hymirec.config import EvaluationConfig, PipelineConfig
from hymirec.errors import DataError
from hymirec.evaluation.bootstrap import interval
from hymirec.evaluation.metrics import means, per_user
from hymirec.evaluation.report import to_markdown
from hymirec.recommender.baselines import Baseline, History, Popularity, RecentPopularity
from hymirec.recommender.hybrid import HybridModel
from hymirec.recommender.losses import overlap
from hymirec.recommender.ranking import score_ranks
from hymirec.recommender.requests import split_ranks, split_targets, users_with_targets

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class EvaluationResult:
    """Metrics of one model on one split. `per_user` holds (U,) values in the order of the users' rows."""

    model: str
    split: Split
    users: int
    items: int
    per_user: dict[str, Floats] = field(repr=False)
    overlap: float | None = None

    @property
    def means(self) -> dict[str, float]:
        """Mean of each metric over the users."""
        return means(self.per_user)

    def as_row(self, resamples: int, seed: int) -> dict[str, Any]:
        """One object of `docs/results/*.json`: metrics, with 95 % intervals at 10 (or at the first K)."""
        row: dict[str, Any] = {"model": self.model, "split": self.split, "users": self.users, "items": self.items}
        row |= self.means
        at = "10" if "R@10" in self.per_user else next(iter(self.per_user)).split("@")[1]
        for name in (f"R@{at}", f"N@{at}"):
            bounds = interval(self.per_user[name], resamples, seed)
            if bounds:
                row[f"{name}_ci"] = list(bounds)
        return row if self.overlap is None else row | {"overlap": self.overlap}


def evaluate_model(
    model: HybridModel, sequences: Sequences, split: Split, config: EvaluationConfig, name: str = "HyMiRec"
) -> EvaluationResult:
    """Rank all items for all users with a model that is ready to serve (`HybridModel.open`).

    Raises DataError when no user has a target in the split.
    """
    users = _users(sequences, split)
    ranks: dict[int, NDArray[np.int64]] = {}
    cosine = 0.0
    batches = split_ranks(model, sequences, split, users, config.batch_users, config.mask_history)
    for chosen, found, interests in batches:
        ranks.update(zip(chosen.tolist(), found, strict=True))
        cosine += float(overlap(interests)) * len(chosen)
    values = _per_user([ranks[int(user)] for user in users], config.ks)
    return EvaluationResult(name, split, len(users), model.config.items, values, cosine / len(users))


def evaluate_baseline(
    baseline: Baseline, sequences: Sequences, catalog: Catalog, split: Split, config: EvaluationConfig
) -> EvaluationResult:
    """Rank all items for all users with a fitted baseline, under the same protocol.

    Raises DataError when no user has a target in the split.
    """
    users = _users(sequences, split)
    ranks: list[NDArray[np.int64]] = []
    for start in range(0, len(users), config.batch_users):
        chosen = users[start : start + config.batch_users]
        histories = [
            History(*sequences.history(int(u), split), int(sequences.targets(int(u), split)[1][0])) for u in chosen
        ]
        targets, masked = split_targets(sequences, chosen, split, config.mask_history)
        scores = torch.from_numpy(np.array(baseline.score(histories), np.float32))
        ranks.extend(score_ranks(scores, targets, masked))
    return EvaluationResult(baseline.name, split, len(users), catalog.size, _per_user(ranks, config.ks))


def evaluate_run(run_dir: Path, config: PipelineConfig, split: Split = "test") -> dict[str, Any]:
    """Evaluate the recommender of a run, with popularity beside it; writes nothing.

    Returns {"metrics": {"split", "mask_history", "models": [row, ...]}, "markdown": table}; the first row is HyMiRec.
    """
    sequences, catalog = Sequences.open(run_dir / "data"), Catalog.open(run_dir / "data")
    items = open_codebook(run_dir / "codebook").open_items(run_dir / "codes")
    model = HybridModel.open(run_dir / "recommender", items)
    if config.compute.use_gpu and torch.cuda.is_available():
        torch.nn.Module.to(model, "cuda")
    evaluation = config.evaluation
    results = [evaluate_model(model, sequences, split, evaluation)]
    baselines: Sequence[Baseline] = (Popularity(), RecentPopularity())
    for baseline in baselines:
        baseline.fit(sequences, catalog)
        results.append(evaluate_baseline(baseline, sequences, catalog, split, evaluation))
    rows = [result.as_row(evaluation.bootstrap, config.seed) for result in results]
    return {
        "metrics": {"split": split, "mask_history": evaluation.mask_history, "models": rows},
        "markdown": to_markdown(rows, evaluation.mask_history),
    }


def _users(sequences: Sequences, split: Split) -> NDArray[np.int64]:
    users = users_with_targets(sequences, split)
    if not len(users):
        raise DataError(f"no user has a target in the {split} split; look at data.split and its shares")
    return users


def _per_user(ranks: list[NDArray[np.int64]], ks: Sequence[int]) -> dict[str, Floats]:
    owner = np.repeat(np.arange(len(ranks)), [len(own) for own in ranks])
    return per_user(np.concatenate(ranks), owner, ks, len(ranks))

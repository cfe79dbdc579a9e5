"""Evaluate a recommender and baselines: full ranking for every user that has a target in a split.

The protocol is in docs/evaluation.md. B users of a batch  S interests  W width  N catalogue
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hymirec.artifacts import TIMING, read_json, write_atomic, write_json
from hymirec.catalog.prepared import Catalog, Sequences
from hymirec.catalog.schemas import Split
from hymirec.codebook import open_codebook
from hymirec.config import EvaluationConfig, PipelineConfig
from hymirec.errors import DataError
from hymirec.evaluation.ranks import Ranks
from hymirec.evaluation.report import to_markdown
from hymirec.evaluation.result import EvaluationResult, Tally
from hymirec.recommender.baselines import Baseline, History, Popularity, RecentPopularity
from hymirec.recommender.baselines.registry import CLOSED_FORMS, title
from hymirec.recommender.baselines.sequential import SequentialBaseline
from hymirec.recommender.baselines.task import open_baseline
from hymirec.recommender.contract import Recommender
from hymirec.recommender.hybrid import HybridModel
from hymirec.recommender.losses import overlap
from hymirec.recommender.ranking import rank_scores
from hymirec.recommender.requests import (
    RequestRanker,
    request_times,
    split_interests,
    split_targets,
    users_with_targets,
)

OURS = "HyMiRec"
RANKS_DIR = "ranks"


def evaluate_model(
    model: Recommender, sequences: Sequences, split: Split, config: EvaluationConfig, name: str = OURS
) -> EvaluationResult:
    """Rank all items for all users with a model that is ready to serve (`HybridModel.open`).

    Raises DataError when no user has a target in the split.
    """
    users = _users(sequences, split)
    cosine = 0.0
    ranker = RequestRanker(model, sequences)
    tally = Tally(sequences, split, len(ranker.vectors_NW), config)
    for chosen, interests in split_interests(model, sequences, split, users, config.batch_users):
        targets, masked = split_targets(sequences, chosen, split, config.mask_history)
        tally.add(chosen, targets, ranker.rank(chosen, split, interests, targets, masked, config.list_k))
        cosine += float(overlap(interests)) * len(chosen)
    added: dict[str, float | int] = {}
    if model.trend.weight:
        added |= {"trend.weight": model.trend.weight, "trend.half_life": model.trend.half_life}
    if model.neighbours.weight:
        added |= {"neighbours.weight": model.neighbours.weight, "neighbours.keep": model.neighbours.keep}
    return replace(tally.result(name, cosine / len(users)), settings=added)


def evaluate_baseline(
    baseline: Baseline, sequences: Sequences, catalog: Catalog, split: Split, config: EvaluationConfig
) -> EvaluationResult:
    """Rank all items for all users with a fitted baseline, under the same protocol.

    Raises DataError when no user has a target in the split.
    """
    users = _users(sequences, split)
    tally = Tally(sequences, split, catalog.size, config)
    for start in range(0, len(users), config.batch_users):
        chosen = users[start : start + config.batch_users]
        times = request_times(sequences, chosen, split).tolist()
        histories = [History(*sequences.history(int(u), split), at) for u, at in zip(chosen, times, strict=True)]
        targets, masked = split_targets(sequences, chosen, split, config.mask_history)
        scores = torch.from_numpy(np.array(baseline.score(histories), np.float32))
        tally.add(chosen, targets, rank_scores(scores, targets, masked, config.list_k))
    return replace(tally.result(baseline.name), settings=baseline.settings)


def run_results(run_dir: Path, config: PipelineConfig, split: Split = "test") -> list[EvaluationResult]:
    """Evaluate HyMiRec, or the baseline that the run is about, with popularity beside it; the run's own comes first.

    A closed form is fitted here.
    """
    sequences, catalog = Sequences.open(run_dir / "data"), Catalog.open(run_dir / "data")
    evaluation, settings = config.evaluation, config.baseline
    baselines: list[Baseline] = [Popularity(), RecentPopularity()]
    results: list[EvaluationResult] = []
    if settings is not None and settings.kind in CLOSED_FORMS:
        baselines.insert(0, CLOSED_FORMS[settings.kind](evaluation.mask_history))
    else:
        model, name = open_model(run_dir, config, catalog)
        results.append(evaluate_model(model, sequences, split, evaluation, name))
    for baseline in baselines:
        if all(baseline.name != result.model for result in results):
            baseline.fit(sequences, catalog)
            results.append(evaluate_baseline(baseline, sequences, catalog, split, evaluation))
    return results


def open_model(run_dir: Path, config: PipelineConfig, catalog: Catalog) -> tuple[Recommender, str]:
    """The model that a run trained, ready to answer, and its name; a closed form has none.

    Raises ArtifactMissingError for a run that is not that far.
    """
    model: HybridModel | SequentialBaseline
    if config.baseline is None:
        items = open_codebook(run_dir / "codebook").open_items(run_dir / "codes")
        model, name = HybridModel.open(run_dir / "recommender", items), OURS
    else:
        model, name = open_baseline(run_dir / "baseline", catalog), title(config.baseline)
    if config.compute.use_gpu and torch.cuda.is_available():
        torch.nn.Module.to(model, "cuda")
    return model, name


def report(results: Sequence[EvaluationResult], config: PipelineConfig) -> dict[str, Any]:
    """{"metrics": {"split", "mask_history", "models": [row, ...]}, "markdown": table} of results on one split."""
    evaluation = config.evaluation
    rows = [result.as_row(evaluation.bootstrap, config.seed) for result in results]
    return {
        "metrics": {"split": results[0].split, "mask_history": evaluation.mask_history, "models": rows},
        "markdown": to_markdown(rows, evaluation.mask_history),
    }


def evaluate_run(run_dir: Path, config: PipelineConfig, split: Split = "test") -> dict[str, Any]:
    """The `report` of a run's `run_results`; writes nothing."""
    return report(run_results(run_dir, config, split), config)


def write_evaluation(run_dir: Path, config: PipelineConfig, out: Path, split: Split = "test") -> None:
    """Evaluate a run and write `metrics.json`, `metrics.md` and each model's `ranks/MODEL.parquet` into `out`."""
    results = run_results(run_dir, config, split)
    found = report(results, config)
    write_json(out / "metrics.json", found["metrics"])
    write_atomic(out / "metrics.md", found["markdown"].encode())
    for result in results:
        result.ranks.save(ranks_path(out, result.model))


def ranks_path(evaluation_dir: Path, model: str = OURS) -> Path:
    """Where `write_evaluation` puts the ranks of a model."""
    return evaluation_dir / RANKS_DIR / f"{slug(model)}.parquet"


def open_ranks(run_dir: Path, model: str = OURS) -> Ranks:
    """The ranks that a finished run keeps of a model. Raises ArtifactMissingError when there are none."""
    return Ranks.open(ranks_path(run_dir / "evaluation", model))


def training_costs(run_dir: Path) -> dict[str, float]:
    """`seconds` and peak memory (MiB) of what trained the run's model, a closed form's evaluation included.

    Empty for a run that was not made by the pipeline.
    """
    for step in ("recommender", "baseline", "evaluation"):
        if (run_dir / step / TIMING).is_file():
            costs: dict[str, float] = read_json(run_dir / step / TIMING)
            return costs
    return {}


def slug(name: str) -> str:
    """A name as part of a file's name: lower case, `-` for what is neither letter nor digit."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _users(sequences: Sequences, split: Split) -> NDArray[np.int64]:
    users = users_with_targets(sequences, split)
    if not len(users):
        raise DataError(f"no user has a target in the {split} split; look at data.split and its shares")
    return users

"""Evaluation of a run: protocol, independence of batching, what the report says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from toy_run import toy_config, toy_run

from hymirec.catalog.prepared import Catalog, Sequences
from hymirec.codebook import ItemCodes
from hymirec.config import EvaluationConfig
from hymirec.errors import DataError
from hymirec.evaluation import evaluate_baseline, evaluate_model, evaluate_run
from hymirec.recommender.baselines import Popularity
from hymirec.recommender.hybrid import HybridModel
from hymirec.recommender.requests import split_interests, split_targets, users_with_targets
from hymirec.recommender.task import HybridTask
from hymirec.recommender.trend import Trend


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run")
    config = toy_config("data.split=global-time", "data.test_share=0.2", "data.validation_share=0.2")
    toy_run(out, config)
    task = HybridTask(config, out)
    task.export(task.build().eval(), out / "recommender")
    return out


def opened(run_dir: Path) -> tuple[HybridModel, Sequences]:
    model = HybridModel.open(run_dir / "recommender", ItemCodes.open(run_dir / "codes"))
    return model, Sequences.open(run_dir / "data")


@pytest.mark.parametrize("trend", [Trend(), Trend(0.5, 3.0)], ids=["plain", "trend"])
def test_metrics_equal_a_plain_loop_over_users(run_dir: Path, trend: Trend) -> None:
    model, sequences = opened(run_dir)
    model.trend = trend
    assert model.neighbours.weight > 0
    _, items, ts = sequences.training_events()
    found = evaluate_model(model, sequences, "test", EvaluationConfig(ks=(5,), bootstrap=0)).means
    users = users_with_targets(sequences, "test")
    recall = []
    for user, interests in _one_by_one(model, sequences, users):
        score = (interests @ model.item_vectors().T).amax(dim=0).numpy()
        age = sequences.targets(user, "test")[1][0] - ts
        weights = np.where(age > 0, 0.5 ** (age.clip(0) / (trend.half_life * 86_400)), 0)
        score += trend.weight * np.log1p(np.bincount(items, weights, minlength=len(score)))
        if model.neighbours.weight:
            recent = sequences.history(user, "test")[0][-model.reach.recent :]
            score += model.neighbours.bonus([recent]).toarray()[0]
        wanted = set(sequences.targets(user, "test")[0].tolist())
        hidden = set(sequences.history(user, "test")[0].tolist()) - wanted
        order = sorted((i for i in range(len(score)) if i not in hidden), key=lambda i: (-float(score[i]), i))
        recall.append(len(wanted & set(order[:5])) / len(wanted))
    assert found["R@5"] == pytest.approx(np.mean(recall))


def _one_by_one(model: HybridModel, sequences: Sequences, users: np.ndarray) -> list[tuple[int, torch.Tensor]]:
    return [
        (int(user[0]), interests[0])
        for user, interests in split_interests(model, sequences, "test", users, batch_users=1)
    ]


def test_metrics_do_not_depend_on_the_batch_size(run_dir: Path) -> None:
    model, sequences = opened(run_dir)
    rows = [evaluate_model(model, sequences, "test", EvaluationConfig(batch_users=size)).means for size in (1, 7, 256)]
    assert rows[0] == pytest.approx(rows[1])
    assert rows[0] == pytest.approx(rows[2])


def test_the_history_is_masked_and_repeated_targets_are_not(run_dir: Path) -> None:
    sequences = Sequences.open(run_dir / "data")
    users = users_with_targets(sequences, "test")
    targets, masked = split_targets(sequences, users, "test", mask_history=True)
    for user, own, hidden in zip(users, targets, masked, strict=True):
        assert len(set(own.tolist())) == len(own)
        history = set(sequences.history(int(user), "test")[0].tolist())
        assert set(hidden.tolist()) == history - set(own.tolist())
    assert all(not len(hidden) for hidden in split_targets(sequences, users, "test", mask_history=False)[1])


def test_popularity_by_hand(run_dir: Path) -> None:
    sequences, catalog = Sequences.open(run_dir / "data"), Catalog.open(run_dir / "data")
    baseline = Popularity()
    baseline.fit(sequences, catalog)
    config = EvaluationConfig(ks=(3,), mask_history=False)
    found = evaluate_baseline(baseline, sequences, catalog, "test", config).means
    top = np.argsort(-catalog.popularity, kind="stable")[:3]
    shares = [
        np.isin(np.unique(sequences.targets(int(u), "test")[0]), top).mean()
        for u in users_with_targets(sequences, "test")
    ]
    assert found["R@3"] == pytest.approx(np.mean(shares))


def test_a_run_is_reported_with_popularity_beside_it_and_equal_each_time(run_dir: Path) -> None:
    config = toy_config()
    result = evaluate_run(run_dir, config)
    rows = result["metrics"]["models"]
    assert [row["model"] for row in rows] == ["HyMiRec", "popularity", "popularity, last 30 days"]
    low, high = rows[0]["R@10_ci"]
    assert low <= rows[0]["R@10"] <= high
    assert rows[0]["users"] == rows[1]["users"]
    assert "overlap" in rows[0]
    assert "| HyMiRec | " in result["markdown"]
    assert result == evaluate_run(run_dir, config)


def test_a_split_without_targets_is_said(run_dir: Path) -> None:
    model, sequences = opened(run_dir)
    lengths = np.diff(sequences.offsets).astype(np.int32)
    nothing = Sequences(sequences.users, sequences.offsets, sequences.items, sequences.ts, lengths, lengths)
    with pytest.raises(DataError, match="no user has a target"):
        evaluate_model(model, nothing, "test", EvaluationConfig())

"""A sweep on tiny runs: finds the better of two values, shares what they have in common, and continues after a kill."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import ray
import yaml
from head import ROOT, plain_environment
from ray import tune
from variant_runs import make_until_codes, tiny

from hymirec.artifacts import read_json
from hymirec.config import PipelineConfig, load, parse
from hymirec.errors import ConfigError
from ray_jobs.sweep import ENDED, METRIC, SweepConfig, at, ended_early, points, search_id, trial_rows

pytestmark = [pytest.mark.ray, pytest.mark.timeout(2400)]
# Without a start from co-occurrence a model that learns nothing is bad. Checkpoints within epochs are no epochs.
TINY = ("compute.max_failures=0", "compute.checkpoint_steps=1", "recommender.item.cooccurrence=false")
OPTIM, EPOCHS = "recommender.optim", 2
GOOD = {"lr": 0.03, "epochs": EPOCHS, "batch_size": 32}
# It learns nothing, for hours: the sweep ends only if this trial is ended.
BAD = {"lr": 1.0e-7, "epochs": 100_000, "patience": 100_000, "batch_size": 32}


class Sweep:
    """The job of a person who kills it once and starts it again."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.out = directory, directory / "out"
        make_until_codes(tiny(directory / "before", *TINY))
        (directory / "base.yaml").write_text(yaml.safe_dump(tiny(directory / "unused", *TINY).model_dump(mode="json")))
        space = {
            "name": "test",
            "run_dir": str(self.out),
            # The first is trained before the kill, and leads when the bad one comes. Drawn twice, it is trained once.
            "space": {OPTIM: {"grid": [GOOD, GOOD, BAD]}},
            "trials": 1,
            "reuse": [str(directory / "before")],
            "at_once": 1,
            "reduction": 2,
        }
        (directory / "space.yaml").write_text(yaml.safe_dump(space))

    def start(self) -> subprocess.Popen[str]:
        base, space = str(self.directory / "base.yaml"), str(self.directory / "space.yaml")
        return subprocess.Popen(
            [sys.executable, "ray_jobs/sweep.py", "--config", base, "--space", space, "--name", "mine"],
            cwd=ROOT,
            env=plain_environment(RAY_ADDRESS=ray.get_runtime_context().gcs_address),
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def trained(self) -> dict[Path, int]:
        """Models that trials finished, with their times."""
        models = self.out.glob("trials/*/recommender/model.safetensors")
        return {path: path.stat().st_mtime_ns for path in models if (path.parent / "manifest.json").exists()}


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory, ray_cluster: None) -> Sweep:
    return Sweep(tmp_path_factory.mktemp("sweep"))


@pytest.fixture(scope="module")
def trained_before(sweep: Sweep) -> dict[Path, int]:
    """Kill the job after its first trial; returns what that left."""
    process = sweep.start()
    deadline = time.monotonic() + 900
    while not sweep.trained():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, "no trial ends"
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    return sweep.trained()


@pytest.fixture(scope="module")
def rows(sweep: Sweep, trained_before: dict[Path, int]) -> list[dict[str, Any]]:
    process = sweep.start()
    said = process.communicate()[0]
    assert process.returncode == 0, said
    assert "best: NDCG@10" in said
    return list(read_json(sweep.out / "sweep.json"))


def test_the_planted_better_point_wins_and_becomes_a_config(sweep: Sweep, rows: list[dict[str, Any]]) -> None:
    assert [row["point"] for row in rows] == [{OPTIM: GOOD}, {OPTIM: BAD}]
    assert rows[0][METRIC] > rows[1][METRIC]
    assert rows[0]["epochs"] == EPOCHS
    best = load(PipelineConfig, sweep.out / "best.yaml")
    assert (best.recommender.optim.lr, best.recommender.optim.epochs, best.name) == (GOOD["lr"], EPOCHS, "mine-best")
    lines = (sweep.out / "sweep.md").read_text().splitlines()
    assert lines[0] == "# Sweep: mine"
    assert [line.split(" | ")[-1] for line in lines[4:]] == ["finished |", "early |"]


def test_a_trial_that_lags_is_ended_early_and_leaves_nothing_large(sweep: Sweep, rows: list[dict[str, Any]]) -> None:
    assert rows[1]["ended"] == "early"
    assert rows[1]["epochs"] < 10
    reported = read_json(sweep.out / "trials" / rows[1]["trial"] / ENDED)["rows"]
    assert [row["epoch"] for row in reported] == list(range(1, rows[1]["epochs"] + 1))
    assert not (sweep.out / "trials" / rows[1]["trial"] / "recommender").exists()


def test_the_metric_of_a_trial_is_that_of_its_training(sweep: Sweep, rows: list[dict[str, Any]]) -> None:
    training = read_json(sweep.out / "trials" / rows[0]["trial"] / "recommender" / "training.json")
    assert rows[0][METRIC] == pytest.approx(max(epoch[METRIC] for epoch in training["history"][1:]))


def test_a_killed_sweep_goes_on_with_what_was_trained(
    sweep: Sweep, trained_before: dict[Path, int], rows: list[dict[str, Any]]
) -> None:
    assert len(trained_before) == 1
    assert sweep.trained() == trained_before


def test_a_search_that_ended_says_the_same_again_and_trains_nothing(sweep: Sweep, rows: list[dict[str, Any]]) -> None:
    process = sweep.start()
    said = process.communicate()[0]
    assert process.returncode == 0, said
    assert read_json(sweep.out / "sweep.json") == rows
    assert len(sweep.trained()) == 1
    assert not (sweep.out / "trials" / rows[1]["trial"] / "recommender").exists()


def test_steps_before_the_recommender_are_not_made_again(sweep: Sweep, rows: list[dict[str, Any]]) -> None:
    for row in rows:
        for name in ("data/sequences.parquet", "embeddings/part-00000.parquet", "codes/part-00000.parquet"):
            assert (sweep.out / "trials" / row["trial"] / name).samefile(sweep.directory / "before" / name)


def test_the_first_point_is_the_base_itself_where_that_is_asked_for(ray_cluster: None, tmp_path: Path) -> None:
    space = {"recommender.optim.lr": {"loguniform": [1e-4, 1e-2]}, "recommender.llm.layers": {"choice": [2, 3]}}
    base = parse(PipelineConfig, {"name": "base", "recommender": {"optim": {"lr": 0.003}, "llm": {"layers": 1}}})

    def drawn(base_first: bool) -> list[dict[str, Any]]:
        settings = parse(SweepConfig, {"name": "x", "space": space, "trials": 3, "base_first": base_first})
        tuner = tune.Tuner(
            lambda point: {METRIC: 0.0},
            param_space={key: domain.for_tune for key, domain in settings.space.items()},
            tune_config=tune.TuneConfig(num_samples=settings.trials, search_alg=points(settings, base, at_once=1)),
            run_config=tune.RunConfig(name=str(base_first), storage_path=str(tmp_path), verbose=0),
        )
        return [dict(result.config or {}) for result in tuner.fit()]

    assert [point["recommender.llm.layers"] in (2, 3) for point in drawn(False)] == [True] * 3
    first, *others = drawn(True)
    assert first == {"recommender.optim.lr": 0.003, "recommender.llm.layers": 1}
    assert [point["recommender.llm.layers"] in (2, 3) for point in others] == [True] * 2
    assert len({point["recommender.optim.lr"] for point in others}) == 2


def test_only_what_the_scheduler_ended_is_not_trained_again(tmp_path: Path) -> None:
    base = tiny(tmp_path / "base")
    settings = parse(SweepConfig, {"name": "x", "run_dir": str(tmp_path), "space": {OPTIM: {"grid": [GOOD, BAD]}}})
    epochs = pd.DataFrame({"epoch": [1, 2], METRIC: [0.2, 0.1]})
    ended, broken = (
        tune.Result(
            metrics={"config": {OPTIM: optim}, "done": done, "epoch": 2, METRIC: 0.1},
            checkpoint=None,
            error=None,
            path=str(tmp_path / "tune"),
            metrics_dataframe=epochs,
        )
        for optim, done in ((GOOD, True), (BAD, False))
    )
    rows = {row["ended"]: row for row in trial_rows([ended, broken], settings, base)}
    assert set(rows) == {"early", "broken off"}
    assert (rows["early"][METRIC], rows["early"]["epoch"], rows["early"]["epochs"]) == (0.2, 1, 2)
    search = search_id(settings, base)
    kept = {how: ended_early(tmp_path / "trials" / row["trial"], search) for how, row in rows.items()}
    assert kept == {"early": [{"epoch": 1, METRIC: 0.2}, {"epoch": 2, METRIC: 0.1}], "broken off": None}
    assert ended_early(tmp_path / "trials" / rows["early"]["trial"], "another search") is None


@pytest.mark.parametrize(
    ("domain", "words"),
    [
        ({}, "exactly one of"),
        ({"choice": [1], "grid": [1]}, "exactly one of"),
        ({"uniform": [2.0, 1.0]}, "low < high"),
        ({"loguniform": [0.0, 1.0]}, "above 0"),
        ({"normal": [0.0, 1.0]}, "unknown key"),
    ],
)
def test_a_domain_that_cannot_be_drawn_from_is_refused(domain: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        parse(SweepConfig, {"name": "x", "space": {"recommender.optim.lr": domain}})


def test_a_key_that_no_config_has_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"recommender\.optim\.speed: unknown key"):
        at(tiny(tmp_path), {"recommender.optim.speed": 1}, "x")


@pytest.mark.parametrize(
    ("space", "config"),
    [
        ("online-retail", "demo"),
        *(("rivals", f"online-retail/{name}") for name in ("gru4rec", "sasrec", "hstu")),
        *(("rivals-movielens-1m", f"movielens-1m/{name}") for name in ("hllm", "sasrec", "hstu")),
    ],
)
def test_a_shipped_space_is_one_of_its_config(space: str, config: str) -> None:
    configs = ROOT / "ray_jobs" / "configs"
    settings = load(SweepConfig, configs / f"sweep-{space}.yaml")
    base = load(PipelineConfig, configs / f"{config}.yaml")
    for key, domain in settings.space.items():
        assert at(base, {key: domain.example}, "x").name == "x"

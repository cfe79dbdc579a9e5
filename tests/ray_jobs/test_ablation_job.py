"""An ablation on tiny runs: killed and continued, one variant that cannot work, and a table that is right."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import yaml
from head import ROOT, plain_environment
from variant_runs import make_until_codes, tiny

from hymirec.artifacts import MANIFEST, read_json, read_manifest
from hymirec.config import load
from hymirec.errors import ConfigError
from hymirec.evaluation.ablation import RunFigures
from ray_jobs.ablation import AblationConfig, plan
from ray_jobs.console import Screen
from ray_jobs.pipeline import run_pipeline

pytestmark = [pytest.mark.ray, pytest.mark.timeout(2400)]
SEED = 0
# A worker that fails is not tried again; K = 10 and 200 as in a real table. Without a start from co-occurrence the one
# epoch of training is what decides; with it the untrained model may be the best, whatever the variant.
TINY = (
    "compute.max_failures=0",
    "evaluation.ks=[10, 200]",
    "evaluation.bootstrap=200",
    "recommender.item.cooccurrence=false",
    "recommender.optim.lr=0.03",
)
WINDOW = "recommender.dmil.window=1"
VARIANTS = [
    {"name": "next-item-only", "set": [WINDOW]},
    {"name": "broken", "set": ["recommender.llm.preset=custom", "recommender.llm.model=/no/such/model"]},
]


class Ablation:
    """The job of a person who kills it once and starts it again."""

    def __init__(self, directory: Path) -> None:
        self.out = directory / "out"
        make_until_codes(tiny(directory / "before", *TINY))
        base = tiny(directory / "unused", *TINY).model_dump(mode="json")
        (directory / "base.yaml").write_text(yaml.safe_dump(base))
        settings = {
            "name": "test",
            "run_dir": str(self.out),
            "base": "base.yaml",
            "seeds": [SEED],
            "at_once": 1,
            "variants": VARIANTS,
            "reuse": [str(directory / "before")],
        }
        self.config = directory / "ablation.yaml"
        self.config.write_text(yaml.safe_dump(settings))

    def start(self) -> subprocess.Popen[str]:
        env = plain_environment(RAY_ADDRESS=ray.get_runtime_context().gcs_address)
        return subprocess.Popen(
            [sys.executable, "ray_jobs/ablation.py", "--config", str(self.config)],
            cwd=ROOT,
            env=env,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def kill_after(self, path: Path) -> None:
        process = self.start()
        deadline = time.monotonic() + 900
        while not path.exists():
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < deadline, f"{path} does not appear"
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


@pytest.fixture(scope="module")
def ablation(tmp_path_factory: pytest.TempPathFactory, ray_cluster: None) -> Ablation:
    return Ablation(tmp_path_factory.mktemp("ablation"))


@pytest.fixture(scope="module")
def trained_before(ablation: Ablation) -> Mapping[Path, int]:
    """Kill the job when the base is trained; returns what stood there, with its times."""
    trained = ablation.out / f"base-{SEED}" / "recommender"
    ablation.kill_after(trained / MANIFEST)
    return {path: path.stat().st_mtime_ns for path in trained.glob("*.safetensors")}


@pytest.fixture(scope="module")
def ended(ablation: Ablation, trained_before: Mapping[Path, int]) -> tuple[int, str]:
    """The exit code and the words of the same command, started again."""
    process = ablation.start()
    said = process.communicate()[0]
    return process.returncode, said


@pytest.fixture(scope="module")
def table(ablation: Ablation, ended: tuple[int, str]) -> dict[str, Any]:
    return dict(read_json(ablation.out / "ablation.json"))


def test_a_killed_ablation_goes_on_where_it_was(
    ended: tuple[int, str], trained_before: Mapping[Path, int], table: dict[str, Any]
) -> None:
    assert len(trained_before) >= 2
    assert {path: path.stat().st_mtime_ns for path in trained_before} == trained_before
    assert [row["variant"] for row in table["rows"]] == ["base", "next-item-only"]


def test_a_variant_that_fails_is_named_with_its_error_and_the_exit_code_is_1(
    ablation: Ablation, ended: tuple[int, str], table: dict[str, Any]
) -> None:
    code, said = ended
    assert code == 1
    assert f"broken-{SEED}: FAILED" in said
    assert "1 of 3 runs failed" in said
    (failure,) = table["failed"]
    assert (failure["variant"], failure["seed"]) == ("broken", SEED)
    assert "/no/such/model" in failure["error"]
    assert "/no/such/model" in (ablation.out / "ablation.md").read_text()


def test_the_table_says_what_the_runs_say(ablation: Ablation, table: dict[str, Any]) -> None:
    base, variant = table["rows"]
    runs = {row["variant"]: ablation.out / f"{row['variant']}-{SEED}" for row in table["rows"]}
    for row in table["rows"]:
        model = read_json(runs[row["variant"]] / "evaluation" / "metrics.json")["models"][0]
        for name in ("R@10", "N@10", "R@200", "N@200", "overlap", "users", "items"):
            assert row[name] == pytest.approx(model[name], abs=1e-12)
        report = read_json(runs[row["variant"]] / "codebook" / "report.json")
        assert row["bytes_per_item"] == report["bytes_per_item"]
        assert row["seconds"] > 0
        assert row["peak_rss_mb"] > 50
    assert variant["N@10_diff"] == pytest.approx(variant["N@10"] - base["N@10"])
    assert 0 < variant["N@10_p"] <= 1
    assert base["R@10_ci"][0] <= base["R@10"] <= base["R@10_ci"][1]
    a, b = (RunFigures.read(run) for run in runs.values())
    assert a.targets == b.targets
    assert not np.array_equal(a.per_user["N@200"], b.per_user["N@200"])


def test_steps_with_equal_inputs_are_taken_over_and_not_run_again(ablation: Ablation, ended: tuple[int, str]) -> None:
    before = ablation.config.parent / "before"
    for name in ("data/sequences.parquet", "embeddings/part-00000.parquet", "codes/part-00000.parquet"):
        for variant in ("base", "next-item-only", "broken"):
            assert (ablation.out / f"{variant}-{SEED}" / name).samefile(before / name)
    assert "encode all items" not in ended[1]


def test_a_variant_is_a_pipeline_run_of_the_same_config(
    ablation: Ablation, ended: tuple[int, str], tmp_path: Path
) -> None:
    config = tiny(tmp_path / "run", *TINY, WINDOW)
    make_until_codes(config)
    run_pipeline(config, Screen())
    variant = ablation.out / f"next-item-only-{SEED}"
    for name in ("recommender", "evaluation"):
        assert read_manifest(variant / name).as_dict() == read_manifest(tmp_path / "run" / name).as_dict()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("variants=[{name: x, set: [recommender.lite.enabled=false]}]", "variant x: .*recommender.lite: unknown key"),
        ("variants=[{name: x}, {name: x}]", "two variants are called x"),
        ("variants=[{name: base}]", "'base' is the base"),
        ("seeds=[1, 1]", "a seed is given twice"),
        ("base=nowhere.yaml", "nowhere.yaml: no such file"),
    ],
)
def test_an_ablation_that_cannot_work_is_refused_before_anything_runs(tmp_path: Path, change: str, words: str) -> None:
    (tmp_path / "base.yaml").write_text("name: x\n")
    path = tmp_path / "ablation.yaml"
    path.write_text(json.dumps({"name": "a", "base": "base.yaml"}))
    with pytest.raises(ConfigError, match=words):
        plan(load(AblationConfig, path, [change]), path)


def test_the_shipped_ablation_holds_the_papers_rows_and_every_variant_is_a_config() -> None:
    path = ROOT / "ray_jobs" / "configs" / "ablation-online-retail.yaml"
    settings = load(AblationConfig, path)
    runs = plan(settings, path)
    assert len(runs) == len(settings.seeds) * (1 + len(settings.variants))
    paper = {"no-light", "no-codebook", "euclidean", "no-indicator", "no-dmil", "next-item-only", "max-matching"}
    assert paper <= {variant.name for variant in settings.variants}
    base = runs["base", settings.seeds[0]].model_dump(exclude={"name", "run_dir"})
    different = [runs[variant.name, settings.seeds[0]] for variant in settings.variants]
    assert all(config.model_dump(exclude={"name", "run_dir"}) != base for config in different)

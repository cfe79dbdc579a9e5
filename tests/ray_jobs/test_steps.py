from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from hymirec.artifacts import TIMING, Step, read_json
from hymirec.config import PipelineConfig, parse
from ray_jobs.pipeline import StepSpec, Work, run_step


def step_that(run: Any) -> StepSpec:
    return StepSpec("data", "a step", (), lambda config: config.data, run)


def works_on(run_dir: Path) -> Work:
    config = parse(PipelineConfig, {"name": "steps", "run_dir": str(run_dir)}, "here")
    return Work(config, run_dir, Step(run_dir, "data", {"a": 1}), lambda done, total: None)


def killed_after(seconds: float) -> StepSpec:
    """A step that leaves a file of that long after its start, and does not end."""

    def run(work: Work) -> Mapping[str, Any]:
        began = (work.step.dir / "work" / "seconds").stat().st_mtime
        (work.step.dir / "half").write_bytes(b"")
        os.utime(work.step.dir / "half", (began + seconds, began + seconds))
        raise KeyboardInterrupt

    return step_that(run)


def finished(work: Work) -> Mapping[str, Any]:
    (work.step.dir / "whole").write_bytes(b"")
    return {}


def test_the_seconds_of_a_step_are_those_of_all_its_starts(tmp_path: Path) -> None:
    for seconds in (100, 1000):
        with pytest.raises(KeyboardInterrupt):
            run_step(killed_after(seconds), works_on(tmp_path))
    run_step(step_that(finished), works_on(tmp_path))
    assert read_json(tmp_path / "data" / TIMING)["seconds"] == pytest.approx(1100, abs=5)


def test_a_step_of_other_inputs_begins_to_count_anew(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run_step(killed_after(100), works_on(tmp_path))
    work = works_on(tmp_path)
    run_step(step_that(finished), Work(work.config, tmp_path, Step(tmp_path, "data", {"a": 2}), work.on_progress))
    assert read_json(tmp_path / "data" / TIMING)["seconds"] < 5

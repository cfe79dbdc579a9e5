"""Ray Train + DeepSpeed run the same loop: the same learning, the same weights after a kill."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from ray.train import ScalingConfig
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from safetensors.torch import load_file
from toy_task import make_broken_task, make_dying_task, make_task

from hymirec.config import ComputeConfig, OptimConfig, PipelineConfig
from hymirec.errors import ModelError
from ray_jobs.trainer import Trainer, train_on_ray

OPTIM = OptimConfig(epochs=3, batch_size=32, lr=2e-2, patience=10)
pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]


def config(**compute: object) -> PipelineConfig:
    return PipelineConfig(compute=ComputeConfig(workers=2, cpus_per_worker=1, **compute))  # type: ignore[arg-type]


# An epoch is 8 steps, and the fourth is never begun: of the three before it either all are done again or one.
@pytest.mark.parametrize(("checkpoint_steps", "again"), [(1000, 3), (2, 1)])
def test_zero_2_on_two_workers_survives_a_kill_with_the_same_weights(
    tmp_path: Path, checkpoint_steps: int, again: int
) -> None:
    whole = train_on_ray(make_task, config(), OPTIM, tmp_path, tmp_path / "whole", "a" * 64)
    settings = config(checkpoint_steps=checkpoint_steps)
    killed = train_on_ray(make_dying_task, settings, OPTIM, tmp_path, tmp_path / "killed_run", "b" * 64)
    assert (tmp_path / "killed").exists()
    assert (tmp_path / "steps").stat().st_size == 3 * 8 + again
    assert killed == whole
    assert whole["history"][-1]["accuracy"] > 0.85
    a = load_file(tmp_path / "whole" / "model.safetensors")
    b = load_file(tmp_path / "killed_run" / "model.safetensors")
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_zero_3_learns_what_zero_2_learns(tmp_path: Path) -> None:
    optim = OptimConfig(epochs=2, batch_size=32, lr=2e-2, patience=10)
    two = train_on_ray(make_task, config(), optim, tmp_path, tmp_path / "two", "d" * 64)
    three = train_on_ray(make_task, config(zero_stage=3), optim, tmp_path, tmp_path / "three", "e" * 64)
    for a, b in zip(two["history"], three["history"], strict=True):
        assert a == pytest.approx(b, abs=2e-2)
    a = load_file(tmp_path / "two" / "model.safetensors")
    b = load_file(tmp_path / "three" / "model.safetensors")
    assert all(torch.allclose(a[name], b[name], atol=1e-3) for name in a)


def test_a_task_that_cannot_be_built_fails_with_its_own_message(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot be built; give it another name"):
        train_on_ray(make_broken_task, config(max_failures=0), OPTIM, tmp_path, tmp_path / "out", "c" * 64)


@pytest.mark.parametrize("datasets", [{}, {"rows": "a dataset"}])
def test_a_run_starts_no_processes_that_it_has_no_use_for(datasets: dict[str, str]) -> None:
    kinds = []
    for trainer in (TorchTrainer, Trainer):
        made = trainer(print, datasets=datasets, scaling_config=ScalingConfig(num_workers=1))
        kinds.append({type(callback) for callback in made._create_default_callbacks()})
    useless = {PlacementGroupCleanerCallback} | (set() if datasets else {DatasetsCallback})
    assert kinds[0] - kinds[1] == useless
    assert kinds[1] < kinds[0]

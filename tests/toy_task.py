"""A real, tiny training problem: logistic regression on two separable clouds, validated by accuracy."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from hymirec.config import PipelineConfig
from hymirec.errors import ModelError


class ToyModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 8)
        self.head = nn.Linear(8, 1)

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        logits = self.head(torch.relu(self.linear(batch["x"]))).squeeze(-1)
        loss = nn.functional.binary_cross_entropy_with_logits(logits, batch["y"])
        return {"loss": loss, "margin": logits.abs().mean()}


class ToyTask:
    name = "toy"
    metric = "accuracy"

    def __init__(self, rows: int = 256, batch: int = 32) -> None:
        rng = np.random.default_rng(0)
        y = rng.integers(0, 2, rows).astype(np.float32)
        x = rng.normal(size=(rows, 4)).astype(np.float32) + (2 * y[:, None] - 1) * 0.8
        self.x, self.y, self.batch = torch.from_numpy(x.astype(np.float32)), torch.from_numpy(y), batch

    def build(self) -> nn.Module:
        torch.manual_seed(3)
        return ToyModel()

    def steps(self, world: int) -> int:
        return len(self.x) // self.batch

    def batches(self, epoch: int, rank: int, world: int) -> Iterator[dict[str, Tensor]]:
        order = torch.from_numpy(np.random.default_rng([1, epoch]).permutation(len(self.x)))
        share = self.batch // world
        for step in range(self.steps(world)):
            rows = order[step * self.batch + rank * share : step * self.batch + (rank + 1) * share]
            yield {"x": self.x[rows], "y": self.y[rows]}

    def validate(self, model: nn.Module, rank: int, world: int) -> dict[str, tuple[float, int]]:
        x, y = self.x[rank::world], self.y[rank::world]
        logits = model.head(torch.relu(model.linear(x))).squeeze(-1)  # type: ignore[operator,union-attr]
        return {"accuracy": (float(((logits > 0).float() == y).sum()), len(y))}

    def export(self, model: nn.Module, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        save_file({name: p.detach().clone() for name, p in model.named_parameters()}, directory / "model.safetensors")


def make_task(config: PipelineConfig, run_dir: Path) -> ToyTask:
    return ToyTask()


class Dying(ToyTask):
    """Rank 1 kills itself once, in the second epoch."""

    def __init__(self, marker: Path) -> None:
        super().__init__()
        self.marker = marker

    def batches(self, epoch, rank, world):  # type: ignore[no-untyped-def]
        for step, batch in enumerate(super().batches(epoch, rank, world)):
            if epoch == 1 and rank == 1 and step == 3 and not self.marker.exists():
                self.marker.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            yield batch


def make_dying_task(config: PipelineConfig, run_dir: Path) -> ToyTask:
    return Dying(run_dir / "killed")


class Broken(ToyTask):
    def build(self) -> nn.Module:
        raise ModelError("the model of this task cannot be built; give it another name")


def make_broken_task(config: PipelineConfig, run_dir: Path) -> ToyTask:
    return Broken()

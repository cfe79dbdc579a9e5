"""A real, tiny training problem: logistic regression on two separable clouds, validated by accuracy."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
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
    return Noisy()


class Noisy(ToyTask):
    """With dropout: every step draws random numbers."""

    def build(self) -> nn.Module:
        model = super().build()
        model.head = nn.Sequential(nn.Dropout(0.2), model.head)  # type: ignore[arg-type]
        return model


class Dying(Noisy):
    """Rank 1 kills itself once, in the second epoch, and counts its steps by the bytes of a file.

    It waits until Ray Train has noted the checkpoint before: that takes longer than a step of a toy.
    """

    def __init__(self, marker: Path, runs: Path, noted: dict[str, int]) -> None:
        super().__init__()
        self.marker, self.runs, self.noted = marker, runs, noted

    def batches(self, epoch, rank, world):  # type: ignore[no-untyped-def]
        for step, batch in enumerate(super().batches(epoch, rank, world)):
            if epoch == 1 and rank == 1 and step == 3 and not self.marker.exists():
                self._wait()
                self.marker.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            yield batch

    def build(self) -> nn.Module:
        model = super().build()
        model.register_forward_hook(self._count)
        return model

    def _count(self, *_: object) -> None:
        if dist.get_rank() == 1:
            with self.marker.with_name("steps").open("ab") as file:
                file.write(b".")

    def _wait(self) -> None:
        end = time.monotonic() + 60
        while time.monotonic() < end:
            with suppress(OSError, ValueError):
                (snapshot,) = self.runs.glob("*/checkpoint_manager_snapshot.json")
                newest = json.loads(snapshot.read_text())["checkpoint_results"][-1]["checkpoint_dir_name"]
                state = json.loads((snapshot.parent / newest / "state.json").read_text())
                if self.noted.items() <= state.items():
                    return
            time.sleep(0.1)
        raise TimeoutError(f"no checkpoint of {self.noted} was noted")


def make_dying_task(config: PipelineConfig, run_dir: Path) -> ToyTask:
    """Dies after a checkpoint of two steps of its second epoch, or where none is written within one, of the first."""
    noted = {"epoch": 1, "step": 2 if config.compute.checkpoint_steps == 2 else 0}
    return Dying(run_dir / "killed", run_dir / "killed_run" / "checkpoints", noted)


class Broken(ToyTask):
    def build(self) -> nn.Module:
        raise ModelError("the model of this task cannot be built; give it another name")


def make_broken_task(config: PipelineConfig, run_dir: Path) -> ToyTask:
    return Broken()

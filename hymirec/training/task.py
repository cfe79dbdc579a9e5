"""What a trainable thing has to offer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from torch import Tensor, nn


class TrainTask(Protocol):
    """One training problem. All methods are called on every rank alike."""

    name: str
    """Short name, used in logs."""
    metric: str
    """The validation metric that chooses the best checkpoint; larger is better."""

    def build(self) -> nn.Module:
        """A model with equal weights on every rank; `forward(batch)` returns {"loss": scalar, diagnostics: scalars}."""
        ...

    def steps(self, world: int) -> int:
        """Micro-batches an epoch on each rank; equal on all ranks, or a collective would hang."""
        ...

    def batches(self, epoch: int, rank: int, world: int) -> Iterator[dict[str, Tensor]]:
        """This rank's micro-batches of an epoch; a function of (seed, epoch, rank, world) and nothing else."""
        ...

    def validate(self, model: nn.Module, rank: int, world: int) -> dict[str, tuple[float, int]]:
        """This rank's share of the validation: {metric: (sum, count)}; holds `self.metric`."""
        ...

    def export(self, model: nn.Module, directory: Path) -> None:
        """Write the artifact of a model that holds the best weights."""
        ...

"""How workers that hold shards of the rows agree: sums."""

from __future__ import annotations

from typing import Protocol

import torch.distributed as dist
from torch import Tensor


class Reducer(Protocol):
    """Sums a tensor over all workers. Everything the fit needs to share is a sum of integers."""

    rank: int
    world: int

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over all workers, the same on each; the argument may be overwritten."""
        ...


class IdentityReducer:
    """One worker that holds all rows."""

    rank = 0
    world = 1

    def sum(self, tensor: Tensor) -> Tensor:
        """The tensor itself."""
        return tensor


class TorchDistributedReducer:
    """Workers of an initialised torch process group (gloo or nccl)."""

    def __init__(self) -> None:
        self.rank = dist.get_rank()
        self.world = dist.get_world_size()

    def sum(self, tensor: Tensor) -> Tensor:
        """All-reduce in place."""
        dist.all_reduce(tensor)
        return tensor

"""What the workers of a fit exchange: sums of integers, and a few rows. The same code runs alone with no exchange."""

from __future__ import annotations

from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor


class Reducer(Protocol):
    """Collectives of a group of workers. Every worker makes the same calls in the same order."""

    rank: int
    world: int

    def sum_(self, tensor: Tensor) -> Tensor:
        """Add an int64 tensor of equal shape over all workers, in place; returns it."""

    def gather(self, tensor: Tensor) -> Tensor:
        """Rows of all workers, in rank order; their numbers of rows may differ, their other dimensions may not."""


class IdentityReducer:
    """One worker alone."""

    rank = 0
    world = 1

    def sum_(self, tensor: Tensor) -> Tensor:
        """Nothing to add."""
        return tensor

    def gather(self, tensor: Tensor) -> Tensor:
        """All rows are here."""
        return tensor


class TorchDistributedReducer:
    """The default process group of torch.distributed (gloo or nccl)."""

    def __init__(self) -> None:
        self.rank = dist.get_rank()
        self.world = dist.get_world_size()

    def sum_(self, tensor: Tensor) -> Tensor:
        """All-reduce; integer sums are exact in any order."""
        dist.all_reduce(tensor)
        return tensor

    def gather(self, tensor: Tensor) -> Tensor:
        """All-gather of blocks padded to the longest, as bytes: gloo knows no int16."""
        lengths = torch.zeros(self.world, dtype=torch.int64, device=tensor.device)
        lengths[self.rank] = len(tensor)
        dist.all_reduce(lengths)
        longest = int(lengths.max())
        padded = tensor.new_zeros((longest, *tensor.shape[1:]))
        padded[: len(tensor)] = tensor
        blocks = [torch.empty_like(padded).view(-1).view(torch.uint8) for _ in range(self.world)]
        if padded.numel():
            dist.all_gather(blocks, padded.view(-1).view(torch.uint8))
        whole = [block.view(tensor.dtype).view(padded.shape) for block in blocks]
        return torch.cat([block[:length] for block, length in zip(whole, lengths.tolist(), strict=True)])

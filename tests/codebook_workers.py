"""Workers of a codebook fit as threads that exchange through memory, and data to fit on."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hymirec.codebook import Reducer

T = TypeVar("T")


class ThreadReducer:
    """One worker of a group of threads of this process."""

    def __init__(self, rank: int, board: list[Tensor], barrier: threading.Barrier) -> None:
        self.rank, self.world = rank, len(board)
        self._board, self._barrier = board, barrier

    def sum_(self, tensor: Tensor) -> Tensor:
        return tensor.copy_(torch.stack(self._exchange(tensor)).sum(0))

    def gather(self, tensor: Tensor) -> Tensor:
        return torch.cat(self._exchange(tensor))

    def _exchange(self, tensor: Tensor) -> list[Tensor]:
        self._board[self.rank] = tensor.clone()
        self._barrier.wait()
        blocks = list(self._board)
        self._barrier.wait()
        return blocks


def run_threads(world: int, work: Callable[[Reducer], T]) -> list[T]:
    """`work` on each of `world` workers; their results in rank order."""
    barrier = threading.Barrier(world, timeout=60)
    board = [torch.empty(0)] * world
    with ThreadPoolExecutor(world) as pool:
        return list(pool.map(work, [ThreadReducer(rank, board, barrier) for rank in range(world)]))


def clustered(rows: int, width: int, clusters: int = 12, seed: int = 0) -> NDArray[np.float32]:
    """Rows around a few directions of uneven popularity, of different lengths."""
    rng = np.random.default_rng(seed)
    share = 1.0 / np.arange(1, clusters + 1)
    centre = rng.normal(size=(clusters, width))[rng.choice(clusters, size=rows, p=share / share.sum())]
    x = centre + 0.6 * rng.normal(size=(rows, width))
    return (x * rng.uniform(0.5, 2.0, size=(rows, 1))).astype(np.float32)

"""Exponential moving average of weights: the trained model, without the noise of its last steps.

It is validated and kept in place of the weights themselves. An early stop then has a model that looks annealed, at a
learning rate that is not (Polyak and Juditsky, 1992).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from hymirec.config import ComputeConfig, OptimConfig
from hymirec.training.engine import Engine, StateDict, unwrap

FILE = "average.safetensors"
UPDATES = "updates"
log = logging.getLogger(__name__)


def averaged(engine: Engine, optim: OptimConfig, compute: ComputeConfig) -> Engine:
    """The engine, with an average of its weights if `optim.ema` asks for one. Not under ZeRO-3, which is logged."""
    if not optim.ema:
        return engine
    if compute.engine == "deepspeed" and compute.zero_stage == 3:
        log.warning("optim.ema=%s is left out: under ZeRO-3 no rank holds whole weights to average", optim.ema)
        return engine
    return AveragedEngine(engine, optim.ema)


class AveragedEngine:
    """Trains as the engine that it wraps; what is gathered, and the full state, is the average.

    The average of trainable parameters is fp32, on their devices, the same on all ranks. After n updates the decay is
    at most (1 + n) / (10 + n), so that the first ones are soon forgotten.
    """

    def __init__(self, engine: Engine, decay: float) -> None:
        self.device = engine.device
        self._engine, self._decay, self._updates = engine, decay, 0
        self._mean = {name: p.detach().float().clone() for name, p in self._trainable().items()}

    def _trainable(self) -> dict[str, nn.Parameter]:
        return {name: p for name, p in unwrap(self.module).named_parameters() if p.requires_grad}

    @property
    def module(self) -> nn.Module:
        """See `Engine.module`."""
        return self._engine.module

    def step(self, loss: Tensor, lr: float, update: bool) -> None:
        """See `Engine.step`; then the average moves towards the weights."""
        self._engine.step(loss, lr, update)
        if not update:
            return
        self._updates += 1
        decay = min(self._decay, (1 + self._updates) / (10 + self._updates))
        now = [p.detach().float() for p in self._trainable().values()]
        get_ema_multi_avg_fn(decay)(list(self._mean.values()), now, self._updates)

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """Within, the model has the average's weights; afterwards its own again, to the bit."""
        with self._engine.gathered():
            own = self._trainable()
            kept = {name: p.detach().clone() for name, p in own.items()}
            _copy(self._mean, own)
            try:
                yield
            finally:
                _copy(kept, own)

    def full_state(self) -> StateDict:
        """The average, and the weights that are not trained."""
        mean = {name: value.cpu().clone() for name, value in self._mean.items()}
        return self._engine.full_state() | mean

    def save(self, directory: Path) -> None:
        """The engine's files, and from rank 0 the average."""
        self._engine.save(directory)
        if not dist.is_initialized() or dist.get_rank() == 0:
            tensors = {name: mean.cpu().contiguous() for name, mean in self._mean.items()}
            save_file({**tensors, UPDATES: torch.tensor(self._updates)}, directory / FILE)

    def load(self, directory: Path) -> None:
        """See `Engine.load`."""
        self._engine.load(directory)
        tensors = load_file(directory / FILE)
        self._updates = int(tensors.pop(UPDATES))
        for name, mean in self._mean.items():
            mean.copy_(tensors[name])


def _copy(source: dict[str, Tensor], target: dict[str, nn.Parameter]) -> None:
    with torch.no_grad():
        for name, p in target.items():
            p.copy_(source[name])

"""Exponential moving average of weights: the trained model, without the noise of its last steps.

It is validated and kept in place of the weights themselves. An early stop then has a model that looks annealed, at a
learning rate that is not (Polyak and Juditsky, 1992).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

FILE = "average.safetensors"
UPDATES = "updates"


class WeightAverage:
    """The average of a model's trainable parameters, fp32, on their devices. All ranks hold the same.

    After n updates the decay is at most (1 + n) / (10 + n), so that the first ones are soon forgotten.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._decay = decay
        self._updates = 0
        self._mean = {name: p.detach().float().clone() for name, p in model.named_parameters() if p.requires_grad}

    def update(self, model: nn.Module) -> None:
        """Move towards the model's weights of now."""
        self._updates += 1
        decay = min(self._decay, (1 + self._updates) / (10 + self._updates))
        now = [p.detach().float() for name, p in model.named_parameters() if name in self._mean]
        get_ema_multi_avg_fn(decay)(list(self._mean.values()), now, self._updates)

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """Within, the model has the average's weights; afterwards its own again, to the bit."""
        own = {name: p for name, p in model.named_parameters() if name in self._mean}
        kept = {name: p.detach().clone() for name, p in own.items()}
        try:
            with torch.no_grad():
                for name, p in own.items():
                    p.copy_(self._mean[name])
            yield
        finally:
            with torch.no_grad():
                for name, p in own.items():
                    p.copy_(kept[name])

    def full_state(self, model: nn.Module) -> dict[str, Tensor]:
        """All weights in fp32 on the CPU, those that are not trained from the model."""
        return {name: self._mean.get(name, p).detach().float().cpu().clone() for name, p in model.named_parameters()}

    def save(self, directory: Path) -> None:
        """Write it; one rank is enough."""
        tensors = {name: mean.cpu().contiguous() for name, mean in self._mean.items()}
        save_file({**tensors, UPDATES: torch.tensor(self._updates)}, directory / FILE)

    def load(self, directory: Path) -> None:
        """Continue from a saved average."""
        tensors = load_file(directory / FILE)
        self._updates = int(tensors.pop(UPDATES))
        for name, mean in self._mean.items():
            mean.copy_(tensors[name])

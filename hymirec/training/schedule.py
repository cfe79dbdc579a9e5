"""Learning rate: linear warm-up, cosine decay."""

from __future__ import annotations

import math

from hymirec.config import OptimConfig


def learning_rate(optim: OptimConfig, update: int, total: int) -> float:
    """Learning rate of optimizer update `update` (from 0) of `total`.

    Rises linearly over the first `warmup_ratio` of all updates, then falls by a half cosine to `min_lr_ratio * lr`.
    """
    warmup = math.ceil(total * optim.warmup_ratio)
    if update < warmup:
        return optim.lr * (update + 1) / warmup
    progress = (update - warmup) / max(1, total - 1 - warmup)
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return optim.lr * (optim.min_lr_ratio + (1 - optim.min_lr_ratio) * cosine)

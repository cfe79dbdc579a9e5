"""Fit the codebook: balanced cosine k-means on residuals, by workers that each hold a shard of the rows.

Balance by streamed prices: score = x.c - price_c. A pass is cut into global slices by a hash of the row's number; each
worker assigns its part of a slice with the prices of the slice before, the K counts are summed over the workers, and
prices move towards equal load. At the end of a pass the vector sums are reduced once, and the prices are averaged.

The result does not depend on the number of workers to the last bit: products are exact integers (`exact.py`), sums of
integers are exact, prices are computed from summed counts, and seeds are chosen by the hash of row numbers.

N rows of this worker  K centroids  D width
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor

from hymirec.codebook.exact import SCALE, assign, quantise
from hymirec.codebook.reduce import Reducer
from hymirec.codebook.residual import ResidualCodebook, project_out
from hymirec.config import CodebookConfig
from hymirec.errors import NonFiniteEmbeddingError

# First step of a price, in units of cosine, for a centroid with twice its fair load; falls as 1 / sqrt(1 + iteration).
PRICE_STEP = 0.05
# Counts are smoothed by this many rows a centroid, so that the first slices of a pass do not throw prices about.
SMOOTHING = 8.0
TENSORS = "fit.safetensors"
STATE = "fit.json"


@dataclass
class FitState:
    """Where a fit stands: finished layers, and the centroids and prices of the layer in progress."""

    layer: int = 0
    iteration: int = 0
    finished: list[Tensor] = field(default_factory=list)
    centroids_KD: Tensor | None = None
    price_K: Tensor | None = None
    usage: list[dict[str, float]] = field(default_factory=list)

    def save(self, directory: Path) -> None:
        """Write the state as safetensors and JSON."""
        tensors = {f"layer{i}": layer.contiguous() for i, layer in enumerate(self.finished)}
        if self.centroids_KD is not None and self.price_K is not None:
            tensors |= {"centroids": self.centroids_KD.contiguous(), "price": self.price_K.contiguous()}
        save_file(tensors, directory / TENSORS)
        numbers = {"layer": self.layer, "iteration": self.iteration, "usage": self.usage}
        (directory / STATE).write_text(json.dumps(numbers))

    @classmethod
    def load(cls, directory: Path) -> FitState:
        """Read what `save` wrote."""
        tensors = load_file(directory / TENSORS)
        numbers = json.loads((directory / STATE).read_text())
        finished = [tensors[f"layer{i}"] for i in range(numbers["layer"])]
        return cls(
            numbers["layer"],
            numbers["iteration"],
            finished,
            tensors.get("centroids"),
            tensors.get("price"),
            numbers["usage"],
        )


def fit_codebook(
    rows_ND: NDArray[np.float32] | Tensor,
    row_ids: NDArray[np.int64],
    config: CodebookConfig,
    seed: int,
    reducer: Reducer,
    state: FitState | None = None,
    on_iteration: Callable[[FitState], None] | None = None,
) -> tuple[ResidualCodebook, list[dict[str, float]]]:
    """Fit a codebook on this worker's rows (N, D) with their global numbers (N,).

    Returns the codebook, equal on every worker, and the usage of each layer's last pass. `on_iteration` gets a state
    after each pass, from which an interrupted fit goes on to the same result.
    Raises NonFiniteEmbeddingError when a row holds NaN or infinity.
    """
    rows = torch.as_tensor(rows_ND, dtype=torch.float32)
    finite = torch.isfinite(rows).all(dim=1)
    if not bool(finite.all()):
        bad = int(row_ids[int((~finite).nonzero()[0])])
        raise NonFiniteEmbeddingError(f"the embedding of the item with index {bad} is not finite; encode it again")
    state = state or FitState()
    total = int(reducer.sum(torch.tensor([len(rows)], dtype=torch.int64, device=rows.device))[0])
    k = max(1, min(config.centroids, total))
    residual = rows
    for done in state.finished:
        residual = _next_residual(residual, done.to(rows.device))
    while state.layer < config.layers:
        layer = _Layer(residual, row_ids, config, k, total, seed, reducer)
        centroids = layer.fit(state, on_iteration)
        state.finished.append(centroids.cpu())
        state.layer, state.iteration = state.layer + 1, 0
        state.centroids_KD = state.price_K = None
        residual = _next_residual(residual, centroids)
    return ResidualCodebook(torch.stack(state.finished)), state.usage


def _next_residual(residual_ND: Tensor, centroids_KD: Tensor) -> Tensor:
    code_N = assign(quantise(residual_ND), quantise(centroids_KD))
    return project_out(residual_ND, centroids_KD[code_N])[0]


def row_hash(row_ids: NDArray[np.int64], salt: int) -> NDArray[np.int64]:
    """A 62-bit hash of row numbers (splitmix64), the same on every machine."""
    with np.errstate(over="ignore"):
        z = row_ids.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15) * np.uint64(salt + 1)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    return (z >> np.uint64(2)).astype(np.int64)


class _Layer:
    """One layer's k-means over the residuals of all workers."""

    def __init__(
        self,
        residual_ND: Tensor,
        row_ids: NDArray[np.int64],
        config: CodebookConfig,
        k: int,
        total: int,
        seed: int,
        reducer: Reducer,
    ) -> None:
        self._config, self._k, self._total, self._seed, self._reducer = config, k, total, seed, reducer
        self._device = residual_ND.device
        self._ids = row_ids
        self._q_ND = quantise(residual_ND)
        slices = torch.from_numpy(row_hash(row_ids, 1) % config.slices)
        order = torch.argsort(slices, stable=True)
        bounds = torch.searchsorted(slices[order], torch.arange(config.slices + 1)).tolist()
        order = order.to(self._device)
        self._slices = [order[a:b] for a, b in pairwise(bounds)]

    def fit(self, state: FitState, on_iteration: Callable[[FitState], None] | None) -> Tensor:
        """Run the passes that are left; returns unit centroids (K, D, fp32)."""
        if state.centroids_KD is None or state.price_K is None:
            state.centroids_KD = self._rows_by_hash(self._k, salt=1000 * state.layer + self._seed)
            state.price_K = torch.zeros(self._k, dtype=torch.float64)
        centroids, price = state.centroids_KD.to(self._device), state.price_K.to(self._device)
        while state.iteration < self._config.iterations:
            sums, counts, price = self._pass(quantise(centroids), price, state.iteration)
            centroids = self._update(centroids, sums, counts, state)
            state.iteration += 1
            state.centroids_KD, state.price_K = centroids.cpu(), price.cpu()
            if state.iteration == self._config.iterations:
                state.usage.append(usage(counts))
            if on_iteration is not None:
                on_iteration(state)
        return centroids

    def _pass(self, q_KD: Tensor, price_K: Tensor, iteration: int) -> tuple[Tensor, Tensor, Tensor]:
        balanced = self._config.balance == "prices"
        sums = torch.zeros(q_KD.shape, dtype=torch.float64, device=self._device)
        counts = torch.zeros(self._k, dtype=torch.int64, device=self._device)
        mean_price = torch.zeros_like(price_K)
        step = PRICE_STEP / (1 + iteration) ** 0.5
        for rows in self._slices:
            q = self._q_ND[rows]
            code = assign(q, q_KD, (price_K * SCALE * SCALE).round().to(torch.float32) if balanced else None)
            sums.index_add_(0, code, q.to(torch.float64))
            counts += self._reducer.sum(torch.bincount(code, minlength=self._k))
            if balanced:
                fair = counts.sum() / self._k
                load = (counts + SMOOTHING) / (fair + SMOOTHING) - 1
                price_K = price_K + step * load.clamp(-1, 1)
                price_K = price_K - price_K.mean()
                mean_price += price_K / len(self._slices)
        return self._reducer.sum(sums), counts, mean_price

    def _update(self, centroids_KD: Tensor, sums_KD: Tensor, counts_K: Tensor, state: FitState) -> Tensor:
        """Unit means; empty or cancelled centroids are seeded again from rows chosen by hash."""
        norm = (sums_KD * sums_KD).sum(dim=1).sqrt()
        updated = (sums_KD / norm.clamp(min=1e-300)[:, None]).to(torch.float32)
        empty = ((counts_K == 0) | (norm == 0)).nonzero()[:, 0]
        if len(empty):
            salt = self._seed + 1000 * state.layer + 1_000_000 * (state.iteration + 1)
            updated[empty] = self._rows_by_hash(len(empty), salt).to(self._device)
        return updated

    def _rows_by_hash(self, count: int, salt: int) -> Tensor:
        """The `count` rows of all workers with the smallest hashes, as unit rows; equal on every worker.

        Zero rows come last; where nothing else is left, unit axes take their place, so that no centroid is zero.
        """
        zero = (self._q_ND == 0).all(dim=1).cpu().numpy()
        hashes = np.where(zero, np.int64(2**62), row_hash(self._ids, salt))
        mine = np.argsort(hashes, kind="stable")[:count]
        width = self._q_ND.shape[1]
        packed = torch.zeros((self._reducer.world * count, width + 1), dtype=torch.int64)
        packed[:, width] = 0
        first = self._reducer.rank * count
        # A slot that nobody fills keeps hash 0; filled slots are shifted by one so that they differ from it.
        packed[first : first + len(mine), :width] = self._q_ND[torch.from_numpy(mine).to(self._device)].cpu().long()
        packed[first : first + len(mine), width] = torch.from_numpy(hashes[mine] + 1)
        packed = self._reducer.sum(packed.to(self._device)).cpu()
        packed = packed[packed[:, width] > 0]
        order = torch.argsort(packed[:, width], stable=True)[:count]
        chosen = packed[order, :width].to(torch.float64)
        chosen = chosen[torch.arange(count) % max(1, len(chosen))]
        norm = (chosen * chosen).sum(dim=1).sqrt()
        axis = torch.eye(width, dtype=torch.float64)[torch.arange(count) % width]
        return torch.where(norm[:, None] > 0, chosen / norm.clamp(min=1)[:, None], axis).to(torch.float32)


def usage(counts_K: Tensor) -> dict[str, float]:
    """How evenly centroids are used: max/mean, coefficient of variation, perplexity and dead ones."""
    counts = counts_K.to(torch.float64).cpu()
    share = counts / counts.sum().clamp(min=1)
    used = share[share > 0]
    return {
        "max_over_mean": float(counts.max() / counts.mean().clamp(min=1e-12)),
        "cv": float(counts.std(unbiased=False) / counts.mean().clamp(min=1e-12)),
        "perplexity": float(torch.exp(-(used * used.log()).sum())),
        "dead": float((counts == 0).sum()),
    }

"""Fit the codebook: layer by layer, balanced cosine k-means on what earlier layers left, on any number of workers.

Every worker holds a shard of the rows as integer directions (2 bytes a component). The result is the same bits for any
number of workers, any spread and order of the rows, any chunk size and thread count, and after a resume from any
earlier state: see `exact.py` for the arithmetic and `balanced.py` for what travels between workers.

n rows of this worker  D width  L layers  K centroids
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hymirec.artifacts import hash_json
from hymirec.codebook.balanced import Pass, Shard, run_pass
from hymirec.codebook.exact import CHUNK_ROWS, from_units, mix, to_units
from hymirec.codebook.reduce import Reducer
from hymirec.codebook.residual import ResidualCodebook
from hymirec.codebook.seeds import first_seeds, new_seeds, spread
from hymirec.codebook.state import FitState, Usage
from hymirec.config import CodebookConfig
from hymirec.errors import ArtifactDamagedError, ModelError, NonFiniteEmbeddingError

OnIteration = Callable[[FitState], None]
# A pass in which a centroid has twice its fair load raises its price by this share of the spread of cosines. Measured
# on MiniLM titles and on a shop: max/mean load 1.1 to 1.3; less balances later, more costs cosine.
PRICE_STEP = 2.0
# Price steps fall linearly over a layer's passes, down to this share. Centroids still move at the end, and loads with
# them: a smaller share, or prices averaged over a pass, follow too slowly (max/mean up to 1.8 on clustered rows).
LEAST_STEP = 0.4
_MAX_PASSES = 1 << 20


def fit_codebook(
    rows_ND: NDArray[np.floating[Any]] | Tensor,
    row_ids: NDArray[np.int64],
    config: CodebookConfig,
    seed: int,
    reducer: Reducer,
    state: FitState | None = None,
    on_iteration: OnIteration | None = None,
) -> ResidualCodebook:
    """Fit on this worker's rows (n, D) with their global numbers (n,), which must differ over all workers.

    Every worker returns the same codebook; `info["usage"]` holds the usage of each layer's last pass. K is capped at
    the number of rows of all workers. Zero rows are ignored; equal rows seed one centroid; where there are fewer
    directions than centroids, the others are pseudo-random. `on_iteration` is called on every worker after every pass.
    Raises NonFiniteEmbeddingError naming a row's number, on all workers alike; ModelError when there are no rows;
    ArtifactDamagedError when `state` belongs to other rows, another seed or another config.
    """
    rows = torch.as_tensor(rows_ND)
    if rows.ndim != 2 or row_ids.shape != (len(rows),):
        raise ValueError(f"expected rows (n, D) and row_ids (n,), got {tuple(rows.shape)} and {row_ids.shape}")
    _check_finite(rows, row_ids, reducer)
    fit = _Fit(rows, row_ids, config, seed, reducer)
    now = fit.start(0, torch.empty(0, *fit.shape, dtype=torch.int16), ()) if state is None else fit.resume(state)
    while now.layer < config.layers:
        while now.iteration < config.iterations:
            now = fit.iterate(now)
            if on_iteration is not None:
                on_iteration(now)
        now = fit.next_layer(now)
    info = {
        "balance": config.balance,
        "iterations": config.iterations,
        "magnitudes": config.magnitudes,
        "usage": [asdict(usage) for usage in now.usage],
    }
    layers, count, width = now.finished_LKD.shape
    return ResidualCodebook(from_units(now.finished_LKD.view(-1, width)).view(layers, count, width), info)


class _Fit:
    """The rows of a layer in progress, and the steps that lead from one state to the next."""

    def __init__(
        self, rows_nD: Tensor, row_ids: NDArray[np.int64], config: CodebookConfig, seed: int, reducer: Reducer
    ) -> None:
        self._config, self._seed, self._reducer = config, seed, reducer
        units = to_units(rows_nD)
        self._device = units.device
        self._shard = Shard.of(units, mix(row_ids.astype(np.uint64), seed), config.slices)
        totals = torch.tensor([len(units), int(units.sum(dtype=torch.int64))], device=self._device)
        total, checksum = reducer.sum_(totals).tolist()
        if total == 0:
            raise ModelError("expected at least one row to fit a codebook on, got none; encode the items first")
        self.shape = (min(config.centroids, total), units.shape[1])
        self.owner = hash_json([config.model_dump(mode="json"), seed, total, checksum, self.shape])

    def start(self, layer: int, finished_LKD: Tensor, usage: tuple[Usage, ...]) -> FitState:
        """The state before the first pass of a layer."""
        count, width = self.shape
        if layer == self._config.layers:
            units, step = torch.empty(0, width, dtype=torch.int16), 0.0
        else:
            units = first_seeds(self._shard, count, self._salt(layer, 0), self._reducer)
            step = PRICE_STEP * spread(units) if self._config.balance == "prices" else 0.0
        price = torch.zeros(len(units), dtype=torch.float64)
        return FitState(self.owner, layer, 0, step, finished_LKD, units.cpu(), price, usage)

    def resume(self, state: FitState) -> FitState:
        """Bring this worker's rows to the layer of a state."""
        if state.owner != self.owner:
            raise ArtifactDamagedError(
                "the state belongs to another fit (other rows, seed or codebook config); start the fit without it"
            )
        for units_KD in state.finished_LKD:
            self._shard = self._shard.residual(units_KD.to(self._device))
        return state

    def iterate(self, state: FitState) -> FitState:
        """One pass, and the centroids that it gives."""
        last = state.iteration == self._config.iterations - 1
        step = state.step * max(LEAST_STEP, 1 - state.iteration / self._config.iterations)
        done = run_pass(
            self._shard, state.units_KD.to(self._device), state.price_K.to(self._device), step, self._reducer
        )
        return replace(
            state,
            iteration=state.iteration + 1,
            units_KD=self._centroids(done, self._salt(state.layer, state.iteration + 1)).cpu(),
            price_K=done.price_K.cpu(),
            usage=(*state.usage, Usage.of(done.counts_K)) if last else state.usage,
        )

    def next_layer(self, state: FitState) -> FitState:
        """Close a layer: its rows become the residuals that its centroids leave."""
        if state.layer + 1 < self._config.layers:
            self._shard = self._shard.residual(state.units_KD.to(self._device))
        return self.start(state.layer + 1, torch.cat([state.finished_LKD, state.units_KD[None]]), state.usage)

    def _centroids(self, done: Pass, salt: int) -> Tensor:
        """Directions of the sums; a centroid without rows, or whose rows cancel out, starts again from a drawn row."""
        units = to_units(done.sums_KD)
        empty = (done.counts_K == 0) | (units == 0).all(1)
        if bool(empty.any()):
            units[empty] = new_seeds(self._shard, int(empty.sum()), salt, self._reducer)
        return units

    def _salt(self, layer: int, iteration: int) -> int:
        return 1 + layer * _MAX_PASSES + iteration


def _check_finite(rows_nD: Tensor, row_ids: NDArray[np.int64], reducer: Reducer) -> None:
    """All workers learn of a bad row, so that none is left waiting for the one that found it."""
    bad = torch.zeros(len(rows_nD), dtype=torch.bool, device=rows_nD.device)
    for start in range(0, len(rows_nD), CHUNK_ROWS):
        bad[start : start + CHUNK_ROWS] = ~torch.isfinite(rows_nD[start : start + CHUNK_ROWS]).all(1)
    mine = torch.from_numpy(row_ids[bad.cpu().numpy()][:1].astype(np.int64)).to(rows_nD.device)
    found = reducer.gather(mine)
    if len(found):
        raise NonFiniteEmbeddingError(
            f"the embedding of the item with index {int(found.min())} holds NaN or infinity; look at that item's "
            "text and at the weights that encoded it, then run the embeddings step again"
        )

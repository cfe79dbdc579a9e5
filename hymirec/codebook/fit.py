"""Fit the codebook: layer by layer, balanced cosine k-means on what earlier layers left, on any number of workers.

Every worker holds a shard of the rows as rotated 8-bit directions (one byte a component, in memory or in a local
file). The result is the same bits for any number of workers, any spread and order of the rows, any kernel and thread
count, and after a resume from any earlier state: see `kernels.py` and `rotation.py` for the arithmetic and
`balanced.py` for what travels between workers.

n rows of this worker  D width  P padded width  L layers  K centroids
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hymirec.artifacts import hash_json
from hymirec.codebook.balanced import Pass, run_pass
from hymirec.codebook.exact import mix, norms
from hymirec.codebook.kernels import choose
from hymirec.codebook.magnitudes import fit_magnitudes
from hymirec.codebook.reduce import Reducer
from hymirec.codebook.refit import refit_codebook
from hymirec.codebook.residual import ResidualCodebook
from hymirec.codebook.rotation import Rotation, quantised
from hymirec.codebook.seeds import Seeds, first_seeds, given_seeds, new_seeds
from hymirec.codebook.shard import Shard, build_shard, lowest
from hymirec.codebook.state import FitState, Usage
from hymirec.codebook.strict import StrictPass
from hymirec.config import CodebookConfig
from hymirec.errors import ArtifactDamagedError, ModelError, NonFiniteEmbeddingError

OnIteration = Callable[[FitState], None]
# This worker's rows (B, D) and their global numbers (B,), anew at every call.
Batches = Callable[[], Iterable[tuple[Tensor, NDArray[np.int64]]]]
# A pass in which a centroid has twice its fair load raises its price by this share of the spread of cosines. Measured
# on MiniLM titles and on clustered rows: max/mean load 1.05 and 1.18; 2 balances later (CV .076 instead of .038 on the
# latter), more costs cosine.
PRICE_STEP = 4.0
# Price steps fall linearly over a layer's passes, down to this share. Centroids still move at the end, and loads with
# them: a smaller share, or prices averaged over a pass, follow too slowly (max/mean up to 1.8 on clustered rows).
LEAST_STEP = 0.4
# Rows that magnitude levels are fitted on, and the most components that they may have.
SAMPLE_ROWS = 16_384
SAMPLE_COMPONENTS = 1 << 24
# Rows in memory are read this many at a time.
BATCH_ROWS = 16_384
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
    """`fit_batches` on rows (n, D) in memory with their global numbers (n,), which must differ over all workers."""
    rows = torch.as_tensor(rows_ND)
    if rows.ndim != 2 or row_ids.shape != (len(rows),):
        raise ValueError(f"expected rows (n, D) and row_ids (n,), got {tuple(rows.shape)} and {row_ids.shape}")

    def batches() -> Iterator[tuple[Tensor, NDArray[np.int64]]]:
        for start in range(0, max(len(rows), 1), BATCH_ROWS):
            yield rows[start : start + BATCH_ROWS], row_ids[start : start + BATCH_ROWS]

    return fit_batches(batches, config, seed, reducer, rows.device, state, on_iteration)


def fit_batches(
    batches: Batches,
    config: CodebookConfig,
    seed: int,
    reducer: Reducer,
    device: torch.device,
    state: FitState | None = None,
    on_iteration: OnIteration | None = None,
    last: ResidualCodebook | None = None,
) -> ResidualCodebook:
    """Fit on the rows that `batches()` yields on each worker.

    Every worker returns the same codebook; `info["usage"]` holds the usage of each layer's last pass, and `facts` what
    depends on the machine (kernel, seconds), which is not saved. K is capped at the number of rows of all workers. Zero
    rows are ignored; equal rows seed one centroid; where there are fewer directions than centroids, the others are
    pseudo-random. `on_iteration` is called on every worker after every pass. `batches` is called once, and again for
    every round of a joint refit. With `last` the fit goes on from that codebook, whose layers and centroids count
    then: centroid k of the result has grown out of centroid k.
    Raises NonFiniteEmbeddingError naming a row's number, on all workers alike; ModelError when there are no rows, or
    too many for strict balance; ArtifactDamagedError when `state` belongs to other rows, another seed or config.
    """
    if last is not None:
        config = config.model_copy(update={"layers": last.layers, "centroids": last.centroids})
    fit = _Fit(batches, config, seed, reducer, device, last)
    now = fit.begin() if state is None else fit.resume(state)
    while now.layer < config.layers:
        while now.iteration < config.iterations:
            now = fit.iterate(now)
            if on_iteration is not None:
                on_iteration(now)
        now = fit.next_layer(now)
    return fit.finish(now)


class _Fit:
    """The rows of a layer in progress, and the steps that lead from one state to the next."""

    def __init__(
        self,
        batches: Batches,
        config: CodebookConfig,
        seed: int,
        reducer: Reducer,
        device: torch.device,
        last: ResidualCodebook | None,
    ) -> None:
        self._batches, self._config, self._seed, self._last = batches, config, seed, last
        self._reducer, self._device = reducer, device
        started = time.monotonic()
        reader = _Reader(batches(), reducer, device, seed, config.magnitudes.startswith("lloyd"))
        self._rotation = Rotation(reader.width)
        self._kernel = choose(config.kernel, device)
        self._shard: Shard = build_shard(reader, self._rotation, config.slices, config.memory_mb, device)
        self._sample = reader.finish()
        totals = torch.tensor([reader.rows, self._shard.checksum()], device=device)
        total, checksum = reducer.sum_(totals).tolist()
        if total == 0:
            raise ModelError("expected at least one row to fit a codebook on, got none; encode the items first")
        if last is not None and last.width != reader.width:
            raise ModelError(
                f"expected embeddings of {last.width} dimensions, as the last codebook has, got {reader.width}; encode "
                "the new items with the content encoder of that codebook"
            )
        self.total = total
        self.shape = (config.centroids if last is not None else min(config.centroids, total), reader.width)
        # The kernel and the memory change no bit, so a fit may go on with others.
        named = config.model_dump(mode="json", exclude={"kernel", "memory_mb"})
        start = None if last is None else hashlib.sha256(last.centroids_LKD.cpu().numpy().tobytes()).hexdigest()
        self.owner = hash_json([named, seed, total, checksum, self.shape, start])
        self._seconds = [0.0] * config.layers
        self._facts = {
            "kernel": self._kernel.name,
            "rows": reader.rows,
            "rows_on_disk": self._shard.on_disk,
            "read_seconds": round(time.monotonic() - started, 3),
        }
        self._strict: StrictPass | None = None

    def begin(self) -> FitState:
        """The state before the first pass."""
        count, width = self.shape
        nothing = torch.empty(0, count, self._rotation.padded, dtype=torch.int8)
        return self._start(0, nothing, torch.empty(0, count, width), ())

    def _start(self, layer: int, finished_LKP: Tensor, centroids_LKD: Tensor, usage: tuple[Usage, ...]) -> FitState:
        """The state before the first pass of a layer."""
        units, step = finished_LKP.new_empty(0, self._rotation.padded), 0.0
        if layer < self._config.layers:
            seeds = self._seeds(layer)
            units, step = seeds.units_KP, PRICE_STEP * seeds.spread if self._config.balance == "prices" else 0.0
        price = torch.zeros(len(units), dtype=torch.float64)
        return FitState(self.owner, layer, 0, step, finished_LKP, centroids_LKD, units.cpu(), price, usage)

    def _seeds(self, layer: int) -> Seeds:
        length, salt = self._rotation.length, self._salt(layer, 0)
        if self._last is None:
            return first_seeds(self._shard, self.shape[0], salt, length, self._kernel, self._reducer)
        units = self._rotation.directions(self._last.centroids_LKD[layer].to(self._device))
        return given_seeds(self._shard, units, salt, length, self._kernel, self._reducer)

    def resume(self, state: FitState) -> FitState:
        """Bring this worker's rows to the layer of a state."""
        if state.owner != self.owner:
            raise ArtifactDamagedError(
                "the state belongs to another fit (other rows, seed or codebook config); start the fit without it"
            )
        for units_KP in state.finished_LKP[: self._config.layers - 1]:
            self._leave(units_KP)
        return state

    def iterate(self, state: FitState) -> FitState:
        """One pass, and the centroids that it gives."""
        started = time.monotonic()
        last = state.iteration == self._config.iterations - 1
        step = state.step * max(LEAST_STEP, 1 - state.iteration / self._config.iterations)
        units = state.units_KP.to(self._device)
        if self._config.balance == "strict":
            self._strict = self._strict or StrictPass.of(self._shard, self.shape[0], self._reducer)
            done = self._strict.run(units)
        else:
            length = self._rotation.length
            done = run_pass(self._shard, units, state.price_K, step, self._reducer, self._kernel, length)
        exact = self._centroids(done, self._salt(state.layer, state.iteration + 1))
        centroids = state.centroids_LKD
        if last:
            found = self._rotation.inverse(exact)
            found = (found / norms(found)[:, None]).float().cpu()
            centroids = torch.cat([centroids, found[None]])
        self._seconds[state.layer] += time.monotonic() - started
        return replace(
            state,
            iteration=state.iteration + 1,
            units_KP=quantised(exact, self._rotation.length).cpu(),
            centroids_LKD=centroids,
            price_K=done.price_K,
            usage=(*state.usage, Usage.of(done.counts_K)) if last else state.usage,
        )

    def next_layer(self, state: FitState) -> FitState:
        """Close a layer: its rows become the residuals that its centroids leave."""
        if state.layer + 1 < self._config.layers:
            self._leave(state.units_KP)
        finished = torch.cat([state.finished_LKP, state.units_KP[None]])
        return self._start(state.layer + 1, finished, state.centroids_LKD, state.usage)

    def finish(self, state: FitState) -> ResidualCodebook:
        """Joint refit and magnitude levels, as the config asks."""
        config = self._config
        info = {
            "balance": config.balance,
            "beam": config.beam,
            "iterations": config.iterations,
            "magnitudes": "float32" if self._sample is not None else config.magnitudes,
            "refit": config.refit,
            "rows": self.total,
            "usage": [asdict(usage) for usage in state.usage],
        }
        started = time.monotonic()
        codebook = ResidualCodebook(state.centroids_LKD.to(self._device), info)
        if config.joint_refits:
            codebook = refit_codebook(
                codebook, self._rows, self._reducer, config.joint_refits, config.beam, self._kernel
            )
        if self._sample is not None:
            _, magnitudes = codebook.encode(self._sample)
            codec = fit_magnitudes(config.magnitudes, magnitudes.cpu().numpy())
            codebook = ResidualCodebook(codebook.centroids_LKD, codebook.info, codec)
        self._facts["layer_seconds"] = [round(seconds, 3) for seconds in self._seconds]
        self._facts["finish_seconds"] = round(time.monotonic() - started, 3)
        codebook.facts = self._facts
        return codebook

    def _rows(self) -> Iterator[Tensor]:
        for rows, _ in self._batches():
            yield rows.to(self._device).float()

    def _leave(self, units_KP: Tensor) -> None:
        self._shard.leave(self._kernel.table(units_KP.to(self._device)), self._kernel, self._rotation.length)
        self._strict = None

    def _centroids(self, done: Pass, salt: int) -> Tensor:
        """Sums, fp64; a centroid without rows, or whose rows cancel out, starts again from a drawn row."""
        sums = done.sums_KP.double()
        empty = (done.counts_K == 0) | (done.sums_KP == 0).all(1)
        if bool(empty.any()):
            seeds = new_seeds(self._shard, int(empty.sum()), salt, self._rotation.length, self._reducer)
            sums[empty] = seeds.double()
        return sums

    def _salt(self, layer: int, iteration: int) -> int:
        return 1 + layer * _MAX_PASSES + iteration


class _Reader:
    """Rows on their way into the shard: checked, counted, and some of them kept as they are."""

    def __init__(
        self,
        batches: Iterable[tuple[Tensor, NDArray[np.int64]]],
        reducer: Reducer,
        device: torch.device,
        seed: int,
        sample: bool,
    ) -> None:
        self._iterator, self._reducer, self._device, self._seed = iter(batches), reducer, device, seed
        self._first = next(self._iterator, None)
        mine = [] if self._first is None else [self._first[0].shape[1]]
        widths = reducer.gather(torch.tensor(mine, dtype=torch.int64, device=device)).unique().tolist()
        if not widths:
            raise ModelError("expected at least one row to fit a codebook on, got none; encode the items first")
        if len(widths) > 1:
            raise ModelError(f"expected embeddings of one width, got {widths}; run the embeddings step again")
        self.width = int(widths[0])
        self.rows = 0
        self._bad: int | None = None
        self._sample = _Sample(self.width) if sample else None

    def __iter__(self) -> Iterator[tuple[Tensor, NDArray[np.uint64]]]:
        batch = self._first
        while batch is not None:
            rows, ids = batch[0].to(self._device).float(), batch[1]
            finite = torch.isfinite(rows).all(1)
            if self._bad is None and not bool(finite.all()):
                self._bad = int(ids[(~finite).cpu().numpy()][0])
            if not bool(finite.all()):
                rows = torch.where(finite[:, None], rows, 0.0)
            hashes = mix(ids.astype(np.uint64), self._seed)
            self.rows += len(rows)
            if self._sample is not None:
                self._sample.add(rows, hashes)
            yield rows, hashes
            batch = next(self._iterator, None)

    def finish(self) -> Tensor | None:
        """The sample of all workers' rows. All of them learn of a bad row: none must wait for the one that saw it."""
        mine = torch.tensor([] if self._bad is None else [self._bad], dtype=torch.int64, device=self._device)
        found = self._reducer.gather(mine)
        if len(found):
            raise NonFiniteEmbeddingError(
                f"the embedding of the item with index {int(found.min())} holds NaN or infinity; look at that item's "
                "text and at the weights that encoded it, then run the embeddings step again"
            )
        return None if self._sample is None else self._sample.of_all(self._reducer, self._device)


class _Sample:
    """The rows whose numbers hash lowest."""

    def __init__(self, width: int) -> None:
        self._count = max(1024, min(SAMPLE_ROWS, SAMPLE_COMPONENTS // width))
        self._rows, self._keys = torch.empty(0, width), np.empty(0, np.uint64)

    def add(self, rows_BD: Tensor, hashes: NDArray[np.uint64]) -> None:
        """Keep the lowest of what is held and what comes."""
        keys = np.concatenate([self._keys, hashes])
        kept = np.argpartition(keys, self._count)[: self._count] if len(keys) > self._count else np.arange(len(keys))
        kept.sort()
        held = torch.from_numpy(kept[kept < len(self._keys)])
        new = torch.from_numpy(kept[kept >= len(self._keys)] - len(self._keys))
        self._rows = torch.cat([self._rows[held], rows_BD[new.to(rows_BD.device)].cpu()])
        self._keys = keys[kept]

    def of_all(self, reducer: Reducer, device: torch.device) -> Tensor:
        """The same rows in the same order on every worker, fp32."""
        rows = self._rows.to(device)
        return lowest(self._keys, lambda at: rows[torch.from_numpy(at).to(device)], self._count, reducer, device)

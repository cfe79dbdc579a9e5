"""The training loop: epochs, validation, best checkpoint, early stop, resume.

A checkpoint is written after each epoch, and within a long one every `compute.checkpoint_steps` updates. It holds
everything: the engine's state, the best weights so far, and the loop's own state. Random numbers are seeded anew for
each (seed, epoch, rank), and a checkpoint within an epoch has where they stand, so a run that was killed and resumed
from any checkpoint ends with the same weights as one that was not.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from hymirec.config import ComputeConfig, OptimConfig
from hymirec.errors import ModelError
from hymirec.training.average import averaged
from hymirec.training.engine import Engine, StateDict, make_engine, unwrap
from hymirec.training.generators import load_random, save_random, seed_all
from hymirec.training.reporter import Reporter, SaveFn
from hymirec.training.schedule import learning_rate
from hymirec.training.task import TrainTask

STATE = "state.json"
BEST = "best.safetensors"


@dataclass
class LoopState:
    """Where the loop stands. `epoch` is the next one to run, of which `step` micro-batches are done, with `sums`."""

    epoch: int = 0
    step: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    best: float = -math.inf
    best_epoch: int = -1
    history: list[dict[str, float]] = field(default_factory=list)


@dataclass(frozen=True)
class FitResult:
    """`state` holds the best weights (fp32, CPU; rank 0 only), `history` one row of metrics an epoch.

    With `optim.ema` weights are averages, and metrics are theirs.
    """

    state: StateDict
    history: list[dict[str, float]]
    best_epoch: int


def fit(task: TrainTask, optim: OptimConfig, compute: ComputeConfig, seed: int, reporter: Reporter) -> FitResult:
    """Train a task and return its best weights by validation.

    Raises ModelError when the loss is not finite.
    """
    seed_all(seed, 0, 0)
    engine = averaged(make_engine(task.build(), optim, compute), optim, compute)
    state, best = _resume(engine, reporter)
    if not state.history:
        # Epoch 0 of the history is the untrained model: what training has to beat.
        best = _validated(task, engine, reporter, state, best, epoch=-1, train={})
    while state.epoch < optim.epochs and state.epoch - 1 - state.best_epoch < optim.patience:
        epoch = state.epoch
        if not state.step:
            seed_all(seed, epoch + 1, reporter.rank)
        save = partial(_save, engine=engine, state=state, best=best, rank=reporter.rank)
        train = _train_epoch(task, engine, optim, compute.checkpoint_steps, state, reporter, save)
        state.epoch, state.step, state.sums = epoch + 1, 0, {}
        best = _validated(task, engine, reporter, state, best, epoch, train)
        reporter.report(state.history[-1], partial(save, best=best))
    return FitResult(best, state.history, state.best_epoch)


def load_weights(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Copy weights by name; every parameter must be there.

    Raises ModelError for a missing one.
    """
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name not in state:
                raise ModelError(f"the checkpoint has no weights for {name}; it belongs to another configuration")
            p.copy_(state[name])


def _train_epoch(
    task: TrainTask,
    engine: Engine,
    optim: OptimConfig,
    checkpoint_steps: int,
    state: LoopState,
    reporter: Reporter,
    save: SaveFn,
) -> dict[str, float]:
    """Run the epoch's micro-batches that are not done yet; returns the means over all of them."""
    epoch, steps = state.epoch, task.steps(reporter.world)
    updates = max(1, steps // optim.accumulation)
    # Micro-batches that do not fill an accumulation are left out, so that every update has the same weight.
    last = updates * optim.accumulation
    engine.module.train()
    batches = islice(task.batches(epoch, reporter.rank, reporter.world), state.step, last)
    for step, batch in enumerate(batches, start=state.step):
        out = engine.module({key: value.to(engine.device) for key, value in batch.items()})
        update = (step + 1) % optim.accumulation == 0
        lr = learning_rate(optim, epoch * updates + step // optim.accumulation, optim.epochs * updates)
        engine.step(out["loss"], lr, update)
        scalars = {key: float(value.detach()) for key, value in out.items()}
        if not math.isfinite(scalars["loss"]):
            raise ModelError(
                f"{task.name}: the loss is {scalars['loss']} at epoch {epoch}, step {step}; lower optim.lr "
                f"(now {optim.lr}) or optim.clip_norm (now {optim.clip_norm})"
            )
        for key, value in scalars.items():
            state.sums[key] = state.sums.get(key, 0.0) + value
        state.step = step + 1
        reporter.progress(epoch, state.step, steps, {"loss": scalars["loss"], "lr": lr})
        if state.step % (checkpoint_steps * optim.accumulation) == 0 and state.step < last:
            reporter.keep(save)
    return {f"train_{key}": value / state.step for key, value in state.sums.items()}


def _validated(
    task: TrainTask,
    engine: Engine,
    reporter: Reporter,
    state: LoopState,
    best: StateDict,
    epoch: int,
    train: dict[str, float],
) -> StateDict:
    """Validate, add a row to the history, and return the best weights so far."""
    engine.module.eval()
    with torch.no_grad(), engine.gathered():
        metrics = _reduce(task.validate(unwrap(engine.module), reporter.rank, reporter.world), engine, reporter.world)
    state.history.append({"epoch": float(epoch + 1), **train, **metrics})
    if metrics[task.metric] > state.best:
        state.best, state.best_epoch = metrics[task.metric], epoch
        weights = engine.full_state()
        return weights if reporter.rank == 0 else {}
    return best


def _reduce(metrics: Mapping[str, tuple[float, int]], engine: Engine, world: int) -> dict[str, float]:
    names = sorted(metrics)
    pairs = torch.tensor([metrics[name] for name in names], dtype=torch.float64, device=engine.device)
    if world > 1:
        dist.all_reduce(pairs)
    return {name: float(total / max(1.0, float(count))) for name, (total, count) in zip(names, pairs, strict=True)}


def _save(directory: Path, engine: Engine, state: LoopState, best: StateDict, rank: int) -> None:
    engine.save(directory)
    if state.step:
        save_random(directory, rank)
    if rank == 0:
        save_file(best, directory / BEST)
        (directory / STATE).write_text(json.dumps(asdict(state)))


def _resume(engine: Engine, reporter: Reporter) -> tuple[LoopState, StateDict]:
    with reporter.latest() as directory:
        if directory is None:
            return LoopState(), {}
        engine.load(directory)
        state = LoopState(**json.loads((directory / STATE).read_text()))
        if state.step:
            load_random(directory, reporter.rank)
        return state, load_file(directory / BEST) if reporter.rank == 0 else {}

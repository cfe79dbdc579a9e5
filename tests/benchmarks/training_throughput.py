"""A step of stage 2 by our training path against a plain torch loop and Hugging Face Trainer: same model, same batches.

CPU seconds of STEPS steps between the first and the last one, batches included; starts, validation and checkpoints are
left out on all sides. AdamW (fused, as Trainer's own default), clipping and learning rates are equal, the average of
weights is off, one thread each. `fit` and its peers run in this process; with Ray Train and DeepSpeed our steps run in
a worker, as the jobs start it.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

import ray
import torch
from bench_kit import Figure, compare_timed, main
from reporters import Quiet
from tiny_run import code, encode, train
from torch import nn
from transformers import Trainer, TrainerCallback, TrainingArguments

from hymirec.artifacts import read_json, write_json
from hymirec.catalog.prepare import prepare
from hymirec.catalog.tables import load_tables
from hymirec.config import PipelineConfig, parse
from hymirec.encoder.task import Stage1Task
from hymirec.recommender.task import HybridTask
from hymirec.training import fit
from hymirec.training.engine import make_optimizer
from hymirec.training.schedule import learning_rate
from ray_jobs.trainer import run_workers

ROUNDS, STEPS = 3, 40
SECONDS = "seconds.json"


def config(engine: str) -> PipelineConfig:
    """The default recommender on 2,000 items; an epoch has a little more than STEPS steps of 16 sequences."""
    synthetic = {"items": 2_000, "users": 16 * (STEPS + 2), "events_per_user": 120}
    return parse(
        PipelineConfig,
        {
            "name": "throughput",
            "data": {"kind": "synthetic", "synthetic": synthetic},
            "encoder": {"optim": {"epochs": 0}},
            "codebook": {"layers": 2, "centroids": 64, "iterations": 3},
            "recommender": {"optim": {"epochs": 1, "ema": 0}},
            "compute": {"engine": engine},
        },
    )


def prepared(directory: Path) -> Path:
    """A run up to the codes."""
    settings = config("torch")
    prepare(load_tables(settings.data, settings.seed), settings.data, directory / "data")
    train(Stage1Task(settings, directory), settings.encoder.optim, settings, directory, "encoder")
    encode(settings, directory)
    code(settings, directory)
    return directory


class Clock(Quiet):
    """A reporter that notes when the first and the last step ended."""

    def __init__(self) -> None:
        self.first = self.last = 0.0

    def progress(self, epoch: int, step: int, steps: int, scalars: Mapping[str, float]) -> None:
        if step == 1:
            self.first = time.process_time()
        if step == STEPS + 1:
            self.last = time.process_time()

    @property
    def seconds(self) -> float:
        return self.last - self.first


def ours(run_dir: Path) -> float:
    """`hymirec.training.fit`."""
    settings, clock = config("torch"), Clock()
    fit(HybridTask(settings, run_dir), settings.recommender.optim, settings.compute, settings.seed, clock)
    return clock.seconds


def _worker(work: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    settings, run_dir, out = work["work"]
    clock = Clock()
    fit(HybridTask(settings, run_dir), settings.recommender.optim, settings.compute, settings.seed, clock)
    write_json(out / SECONDS, clock.seconds)


def on_ray(run_dir: Path) -> float:
    """The same with DeepSpeed in a worker of Ray Train, as the jobs do it."""
    settings = config("deepspeed")
    with tempfile.TemporaryDirectory() as directory:
        out = Path(directory)
        run_workers(_worker, (settings, run_dir, out), settings.compute, out, "throughput")
        return float(read_json(out / SECONDS))


def plain(run_dir: Path) -> float:
    """What one would write by hand."""
    settings = config("torch")
    optim = settings.recommender.optim
    task = HybridTask(settings, run_dir)
    model = task.build().train()
    optimizer = make_optimizer(model, optim)
    total, start, end = task.steps(1), 0.0, 0.0
    for step, batch in enumerate(task.batches(0, 0, 1)):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(optim, step, total)
        model(batch)["loss"].backward()
        nn.utils.clip_grad_norm_(model.parameters(), optim.clip_norm)
        optimizer.step()
        optimizer.zero_grad()
        if step == 0:
            start = time.process_time()
        if step == STEPS:
            end = time.process_time()
    return end - start


class Stream(torch.utils.data.IterableDataset[dict[str, torch.Tensor]]):
    """The task's own batches."""

    def __init__(self, task: HybridTask) -> None:
        self._task = task

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        yield from self._task.batches(0, 0, 1)


class Keywords(nn.Module):
    """Trainer hands a batch over as keywords; it finds the loss in the returned dictionary."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, **batch: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": self.model(batch)["loss"]}


class Watch(TrainerCallback):
    """Notes when steps end."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._clock.progress(0, state.global_step, 0, {})


def trainer(run_dir: Path) -> float:
    """Hugging Face Trainer."""
    settings, clock = config("torch"), Clock()
    optim = settings.recommender.optim
    task = HybridTask(settings, run_dir)
    model, total = task.build(), task.steps(1)
    optimizer = make_optimizer(model, optim)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate(optim, step, total) / optim.lr)
    with tempfile.TemporaryDirectory() as directory:
        arguments = TrainingArguments(
            output_dir=directory,
            max_steps=STEPS + 1,
            per_device_train_batch_size=1,
            max_grad_norm=optim.clip_norm,
            logging_strategy="no",
            save_strategy="no",
            report_to=[],
            remove_unused_columns=False,
            disable_tqdm=True,
            use_cpu=True,
        )
        Trainer(
            model=Keywords(model),
            args=arguments,
            train_dataset=Stream(task),
            data_collator=lambda rows: rows[0],
            optimizers=(optimizer, schedule),
            callbacks=[Watch(clock)],
        ).train()
    return clock.seconds


def figures() -> Iterator[Figure]:
    """Ours against both peers, then the whole of Ray Train and DeepSpeed."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as directory:
        run = prepared(Path(directory))
        name = f"{STEPS} steps of 16 sequences"
        yield compare_timed(f"{name}: fit against a plain loop", lambda: ours(run), lambda: plain(run), 0.95, ROUNDS)
        yield compare_timed(f"{name}: fit against HF Trainer", lambda: ours(run), lambda: trainer(run), 1.0, ROUNDS)
        ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
        whole = f"{name}: Ray Train and DeepSpeed"
        yield compare_timed(f"{whole} against a plain loop", lambda: on_ray(run), lambda: plain(run), 0.95, ROUNDS)
        yield compare_timed(f"{whole} against HF Trainer", lambda: on_ray(run), lambda: trainer(run), 1.0, ROUNDS)
        ray.shutdown()


if __name__ == "__main__":
    main(figures)

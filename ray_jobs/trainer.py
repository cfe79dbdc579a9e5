"""Run a `TrainTask` on Ray Train workers, with DeepSpeed or plain PyTorch.

Killed workers: the group is restarted from the newest reported checkpoint (`compute.max_failures`). Killed driver: the
same step run again finds the run under its `checkpoints/` directory and goes on from there.
"""

from __future__ import annotations

import json
import logging
import os
import pkgutil
import resource
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray.data
import ray.train
import torch
import torch.distributed as dist
from ray._private.worker import get_dashboard_url
from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.tune.integration.ray_train import TuneReportCallback

from hymirec.artifacts import TIMING, write_json
from hymirec.config import ComputeConfig, OptimConfig, PipelineConfig
from hymirec.errors import HyMiRecError, ModelError
from hymirec.training import TrainTask, fit
from hymirec.training.loop import load_weights
from hymirec.training.reporter import ProgressFile, SaveFn
from ray_jobs.cluster import worker_environment
from ray_jobs.console import OnProgress

PROGRESS = Path("logs/progress.json")
TaskFactory = Callable[[PipelineConfig, Path], TrainTask]
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Named:
    """A `TaskFactory` by its name, `module:class`: only the workers import it, with all that models bring along."""

    name: str

    def __call__(self, config: PipelineConfig, run_dir: Path) -> TrainTask:
        """Import and call it."""
        task: TrainTask = pkgutil.resolve_name(self.name)(config, run_dir)
        return task


class RayReporter:
    """Reports to Ray Train; rank 0 also writes the progress file and TensorBoard events."""

    def __init__(self, out: Path) -> None:
        context = ray.train.get_context()
        self.rank = context.get_world_rank()
        self.world = context.get_world_size()
        self._progress = ProgressFile(out / PROGRESS) if self.rank == 0 else None
        self._board = _tensorboard(out) if self.rank == 0 else None

    @contextmanager
    def latest(self) -> Iterator[Path | None]:
        """Yield the newest checkpoint that Ray Train knows, as a local directory."""
        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None:
            yield None
            return
        with checkpoint.as_directory() as directory:
            yield Path(directory)

    def report(self, metrics: Mapping[str, float], save: SaveFn) -> None:
        """Draw the epoch's curves, and keep a checkpoint."""
        if self._board is not None:
            for name, value in metrics.items():
                self._board.add_scalar(name, value, int(metrics["epoch"]))
            self._board.flush()
        self._hand_over(metrics, save)

    def keep(self, save: SaveFn) -> None:
        """A report without metrics is none of an epoch."""
        self._hand_over({}, save)

    def _hand_over(self, metrics: Mapping[str, float], save: SaveFn) -> None:
        """Every rank hands over its own files; Ray Train merges them into one checkpoint."""
        with tempfile.TemporaryDirectory() as directory:
            save(Path(directory))
            ray.train.report(dict(metrics), checkpoint=ray.train.Checkpoint.from_directory(directory))

    def progress(self, epoch: int, step: int, steps: int, scalars: Mapping[str, float]) -> None:
        """Rank 0 speaks for all."""
        if self._progress is not None:
            self._progress.write(epoch, step, steps, scalars)


def _tensorboard(out: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        log.warning("no TensorBoard events: install the extra `tracking`")
        return None
    return SummaryWriter(str(out / "tensorboard"))


@dataclass(frozen=True)
class _Work:
    """What a worker is told; plain data and an importable factory."""

    factory: TaskFactory
    config: PipelineConfig
    optim: OptimConfig
    run_dir: Path
    out: Path


def _worker(work: dict[str, _Work]) -> None:
    job = work["work"]
    compute = job.config.compute
    torch.set_num_threads(compute.threads_per_worker)
    os.environ.setdefault("LOCAL_RANK", str(ray.train.get_context().get_local_rank()))
    task = job.factory(job.config, job.run_dir)
    reporter = RayReporter(job.out)
    result = fit(task, job.optim, compute, job.config.seed, reporter)
    peak = peak_memory(compute)
    if reporter.rank == 0:
        model = task.build()
        load_weights(model, result.state)
        task.export(model.to("cuda" if compute.use_gpu else "cpu").eval(), job.out)
        write_json(job.out / "training.json", {"history": result.history, "best_epoch": result.best_epoch + 1})
        write_json(job.out / TIMING, peak)


def peak_memory(compute: ComputeConfig) -> dict[str, int]:
    """Peak memory of the largest worker so far, in MiB; a collective."""
    used = [resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10]
    if compute.use_gpu:
        used.append(torch.cuda.max_memory_allocated() >> 20)
    peak = torch.tensor(used, device="cuda" if compute.use_gpu else "cpu")
    if dist.is_initialized():
        dist.all_reduce(peak, dist.ReduceOp.MAX)
    return dict(zip(("peak_rss_mb", "peak_gpu_mb"), peak.tolist(), strict=False))


def train_on_ray(
    factory: TaskFactory, config: PipelineConfig, optim: OptimConfig, run_dir: Path, out: Path, inputs: str
) -> dict[str, Any]:
    """Train `factory(config, run_dir)` on `compute.workers` workers; the artifact is written into `out`.

    `inputs` names the run: equal inputs continue an unfinished run, other inputs start afresh. Returns the training
    history. Raises ModelError with the worker's own error when the run fails for good.
    """
    run_workers(_worker, _Work(factory, config, optim, run_dir, out), config.compute, out, inputs)
    history: dict[str, Any] = json.loads((out / "training.json").read_text())
    return history


def run_workers(
    function: Callable[[dict[str, Any]], None],
    work: Any,
    compute: ComputeConfig,
    out: Path,
    inputs: str,
    datasets: Mapping[str, ray.data.Dataset] | None = None,
) -> None:
    """Run `function({"work": work})` on `compute.workers` Ray Train workers until it ends on all of them.

    Checkpoints lie under `out/checkpoints` while it runs. Workers find their shares of `datasets`, to the last
    row, with `ray.train.get_dataset_shard`. Raises ModelError with the worker's own error.
    """
    storage = out / "checkpoints"
    name = inputs[:16]
    _drop_unreadable_run(storage / name)
    trainer = Trainer(
        function,
        train_loop_config={"work": work},
        datasets=dict(datasets or {}),
        dataset_config=WholeShards(),
        torch_config=TorchConfig(backend="nccl" if compute.use_gpu else "gloo"),
        scaling_config=worker_scaling(compute),
        run_config=RunConfig(
            name=name,
            storage_path=str(storage),
            callbacks=_tune_callbacks(),
            failure_config=FailureConfig(max_failures=compute.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
            worker_runtime_env={"env_vars": worker_environment(compute)},
        ),
    )
    try:
        trainer.fit()
    except ray.train.TrainingFailedError as e:
        raise ModelError(f"the workers failed: {_root_cause(e)}") from e
    shutil.rmtree(storage, ignore_errors=True)


class Trainer(TorchTrainer):
    """Ray Train without the processes that a run here has no use for.

    Its cleaner of placement groups asks the dashboard's server whether the controller is alive. On a cluster without
    one (ours on a single machine, which ends with its driver) each question takes 40 s to fail, and the end of a run
    waits 12 s for it. And a run without datasets needs no manager of datasets, which imports torch beside the workers.
    """

    def _create_default_callbacks(self) -> list[Any]:
        useless: list[type] = [] if get_dashboard_url() else [PlacementGroupCleanerCallback]
        if not self.datasets:
            useless.append(DatasetsCallback)
        callbacks: list[Any] = super()._create_default_callbacks()
        return [callback for callback in callbacks if not isinstance(callback, tuple(useless))]


class EpochsToTune(TuneReportCallback):
    """Ray Tune hears of each epoch once, and not of the checkpoints within it."""

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        """See `UserCallback.after_report`."""
        if metrics[0]:
            super().after_report(run_context, metrics, checkpoint)


def _tune_callbacks() -> list[TuneReportCallback]:
    """Inside a trial of Ray Tune, the trial reports what the workers report of an epoch."""
    try:
        return [EpochsToTune()]
    except RuntimeError:
        return []


class WholeShards(ray.train.DataConfig):
    """Every row reaches one worker. Ray Train's own split drops the rows that do not divide by the workers."""

    def configure(
        self,
        datasets: dict[str, ray.data.Dataset],
        world_size: int,
        worker_handles: Any,
        worker_node_ids: Any,
        **kwargs: Any,
    ) -> list[dict[str, ray.data.DataIterator]]:
        """A streaming split that may be uneven."""
        output: list[dict[str, ray.data.DataIterator]] = [{} for _ in range(world_size)]
        for name, dataset in datasets.items():
            shards = dataset.streaming_split(world_size, equal=False, locality_hints=worker_node_ids)
            for shard, mine in zip(shards, output, strict=True):
                mine[name] = shard
        return output


def worker_scaling(compute: ComputeConfig) -> ScalingConfig:
    """Workers and what each of them holds."""
    resources = {"CPU": compute.cpus_per_worker} | ({"GPU": 1} if compute.use_gpu else {})
    return ScalingConfig(num_workers=compute.workers, use_gpu=compute.use_gpu, resources_per_worker=resources)


def _drop_unreadable_run(run: Path) -> None:
    """Ray Train writes its own snapshot in place; a driver killed in that moment leaves half a file."""
    for snapshot in run.glob("*snapshot*.json"):
        try:
            json.loads(snapshot.read_text())
        except (OSError, ValueError):
            log.warning("%s is unreadable; this step starts from its beginning", snapshot)
            shutil.rmtree(run)
            return


def _root_cause(error: BaseException) -> str:
    """The message of the innermost error of ours, or of the innermost error at all."""
    failures = list(getattr(error, "worker_failures", {}).values()) or [error]
    seen: BaseException | None = failures[0]
    message = str(error)
    while seen is not None:
        message = str(seen) or message
        if isinstance(seen, HyMiRecError):
            break
        seen = seen.__cause__
    return message.strip().splitlines()[-1] if message.strip() else type(error).__name__


@contextmanager
def followed(path: Path, epochs: int, on_progress: OnProgress | None) -> Iterator[None]:
    """Poll a worker's progress file while it trains."""
    stop = threading.Event()

    def follow() -> None:
        while not stop.wait(0.5):
            try:
                now = json.loads(path.read_text())
            except (OSError, ValueError):
                continue
            if on_progress is not None:
                on_progress(now["epoch"] * now["steps"] + now["step"], max(1, epochs) * now["steps"])

    thread = threading.Thread(target=follow, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()

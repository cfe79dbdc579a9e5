"""The codebook on a cluster: fitted by Ray Train workers that each hold a shard, items coded by Ray Data."""

from __future__ import annotations

import logging
import resource
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import ray.data
import ray.train
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from hymirec.artifacts import read_json, write_atomic, write_json
from hymirec.catalog.parts import to_numpy
from hymirec.catalog.schemas import EMBEDDING, INDEX
from hymirec.catalog.vectors import as_matrix, count_rows, read_vectors, vector_width
from hymirec.codebook import (
    DRIFT_FILE,
    FitState,
    IdentityReducer,
    ItemQuantizer,
    Reducer,
    ResidualCodebook,
    TorchDistributedReducer,
    fit_batches,
    fit_variant,
    open_codebook,
    refresh_config,
    sample_report,
    save_refreshed,
    to_markdown,
)
from hymirec.config import PipelineConfig
from hymirec.errors import ArtifactError
from hymirec.training.reporter import ProgressFile
from ray_jobs.console import OnProgress
from ray_jobs.parts import map_parts
from ray_jobs.trainer import PROGRESS, followed, run_workers

# A report is a barrier of all workers, dearer than a pass over a small catalogue, which is sooner done again.
CHECKPOINT_SECONDS = 10.0
EMBEDDINGS = "embeddings"
BATCH_ROWS = 16_384
# Ray Data starts half a dozen processes to read; workers read a catalogue of fewer bytes (fp32) sooner by themselves.
STREAM_BYTES = 64 << 20
READER_CPUS = 0.25
TIMING_FILE = "timing.json"
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Work:
    config: PipelineConfig
    run_dir: Path
    out: Path
    checkpoint_seconds: float
    stream_bytes: int
    last: Path | None = None

    @property
    def embeddings(self) -> Path:
        """Where the vectors of all items lie."""
        return self.run_dir / EMBEDDINGS

    @property
    def streamed(self) -> bool:
        """Whether Ray Data hands the vectors out."""
        rows_bytes = 4 * count_rows(self.embeddings) * vector_width(self.embeddings)
        return self.config.codebook.kind == "cosine" and rows_bytes >= self.stream_bytes


def _worker(work: dict[str, _Work]) -> None:
    """Fit on this rank's share of the items; rank 0 writes the artifact."""
    job = work["work"]
    config, compute = job.config.codebook, job.config.compute
    torch.set_num_threads(compute.threads_per_worker)
    reducer: Reducer = TorchDistributedReducer() if dist.is_initialized() else IdentityReducer()
    device = torch.device("cuda" if compute.use_gpu else "cpu")
    progress = ProgressFile(job.out / PROGRESS) if reducer.rank == 0 else None

    def on_iteration(state: FitState) -> None:
        if progress is not None:
            passes = state.layer * config.iterations + state.iteration
            progress.write(0, passes, config.layers * config.iterations, {})
        if clock.due():
            _checkpoint(state, reducer.rank)

    clock = _Clock(job.checkpoint_seconds, reducer, device)
    total = count_rows(job.embeddings)
    start, stop = (total * rank // reducer.world for rank in (reducer.rank, reducer.rank + 1))

    batches = _streamed if job.streamed else partial(_read, job.embeddings, start, stop)
    codebook: ItemQuantizer
    if config.kind == "cosine":
        last = ResidualCodebook.from_pretrained(job.last) if job.last is not None else None
        fitted = fit_batches(batches, config, job.config.seed, reducer, device, _newest_state(), on_iteration, last)
        _write_timing(job.out, reducer, device, fitted.facts)
        codebook = fitted.cpu()
        if reducer.rank == 0 and last is not None:
            save_refreshed(last, codebook, job.embeddings, job.out)
    else:
        rows = torch.from_numpy(read_vectors(job.embeddings, start, stop)).to(device)
        codebook = fit_variant(rows, np.arange(start, stop), config, job.config.seed, reducer)
    if reducer.rank == 0:
        report = sample_report(codebook, job.embeddings)
        codebook.save_pretrained(job.out)
        write_json(job.out / "report.json", report)
        write_atomic(job.out / "README.md", to_markdown(report).encode())


def _streamed() -> Iterator[tuple[torch.Tensor, NDArray[np.int64]]]:
    """This worker's share of the embeddings, streamed by Ray Data."""
    shard = ray.train.get_dataset_shard(EMBEDDINGS)
    for table in shard.iter_batches(batch_size=BATCH_ROWS, batch_format="pyarrow"):
        yield torch.from_numpy(as_matrix(table[EMBEDDING])), to_numpy(table[INDEX]).astype(np.int64)


def _read(embeddings: Path, start: int, stop: int) -> Iterator[tuple[torch.Tensor, NDArray[np.int64]]]:
    """The embeddings of items start..stop, read by this worker itself."""
    for first in range(start, stop, BATCH_ROWS):
        ids = np.arange(first, min(first + BATCH_ROWS, stop))
        yield torch.from_numpy(read_vectors(embeddings, first, first + len(ids))), ids


def _write_timing(out: Path, reducer: Reducer, device: torch.device, facts: dict[str, Any]) -> None:
    """What the fit took, with the peak memory of the largest worker; beside the artifact, no part of it."""
    peak = torch.tensor([resource.getrusage(resource.RUSAGE_SELF).ru_maxrss])
    largest = int(reducer.gather(peak.to(device)).max())
    if reducer.rank == 0:
        write_json(out / TIMING_FILE, {"workers": reducer.world, "peak_rss_mb": largest // 1024, **facts})


class _Clock:
    """Says when a checkpoint is due, on all workers alike: rank 0 looks at its clock and the others learn of it."""

    def __init__(self, seconds: float, reducer: Reducer, device: torch.device) -> None:
        self._seconds, self._reducer, self._device = seconds, reducer, device
        self._last = time.monotonic()

    def due(self) -> bool:
        """Whether `seconds` have passed on rank 0 since this was last so. Every worker calls it equally often."""
        passed = time.monotonic() - self._last >= self._seconds
        flag = torch.tensor([int(passed and self._reducer.rank == 0)], device=self._device)
        if not int(self._reducer.sum_(flag)):
            return False
        self._last = time.monotonic()
        return True


def _newest_state() -> FitState | None:
    """What Ray Train holds of an earlier attempt; a damaged state is as good as none, only slower."""
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return None
    try:
        with checkpoint.as_directory() as directory:
            return FitState.load(Path(directory))
    except (ArtifactError, OSError) as e:
        log.warning("the fit starts from its beginning: %s", e)
        return None


def _checkpoint(state: FitState, rank: int) -> None:
    """Every rank reports (it is a barrier); the state is the same on all, so rank 0 hands it over."""
    metrics = {"layer": state.layer, "iteration": state.iteration}
    if rank != 0:
        ray.train.report(metrics)
        return
    with tempfile.TemporaryDirectory() as directory:
        state.save(Path(directory))
        ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(directory))


def codebook_step(
    config: PipelineConfig,
    run_dir: Path,
    out: Path,
    inputs: str,
    on_progress: OnProgress | None = None,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
    stream_bytes: int = STREAM_BYTES,
) -> dict[str, Any]:
    """Fit the codebook of `run_dir/embeddings` into `out`: the same bytes for any number of workers and any kills.

    `inputs` names the fit: equal inputs continue an unfinished one. From `stream_bytes` on (fp32) Ray Data streams the
    vectors to the workers, below it each reads its own. Returns nothing that depends on scheduling.
    """
    _fit_on_ray(_Work(config, run_dir, out, checkpoint_seconds, stream_bytes), inputs, on_progress)
    return {}


def refresh_step(
    config: PipelineConfig, run_dir: Path, last: Path, out: Path, inputs: str, passes: int
) -> dict[str, Any]:
    """Go on from the codebook `last` with the embeddings of `run_dir`; returns the drift report, also in `out`."""
    codebook = refresh_config(ResidualCodebook.from_pretrained(last), passes)
    kept = config.codebook.model_dump(include={"kernel", "memory_mb"})
    config = config.model_copy(update={"codebook": codebook.model_copy(update=kept)})
    _fit_on_ray(_Work(config, run_dir, out, CHECKPOINT_SECONDS, STREAM_BYTES, last), inputs, None)
    return read_json(out / DRIFT_FILE)


def _fit_on_ray(work: _Work, inputs: str, on_progress: OnProgress | None) -> None:
    datasets = {EMBEDDINGS: _rows(work)} if work.streamed else None
    with followed(work.out / PROGRESS, 1, on_progress):
        run_workers(_worker, work, work.config.compute, work.out, inputs, datasets)


def _rows(work: _Work) -> ray.data.Dataset:
    # Readers take little and are few: where workers hold all CPUs, they must still find room.
    rows = ray.data.read_parquet(str(work.embeddings), num_cpus=READER_CPUS, concurrency=work.config.compute.workers)
    return rows.select_columns([INDEX, EMBEDDING])


class CodeWorker:
    """Holds the codebook; one call codes one part."""

    def __init__(self, codebook_dir: str, target: str, threads: int) -> None:
        torch.set_num_threads(threads)
        self._codebook = open_codebook(codebook_dir)
        self._target = Path(target)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Code the parts of the batch."""
        paths = [Path(str(path)) for path in batch["part"]]
        return {"rows": np.array([self._codebook.code_part(path, self._target / path.name) for path in paths])}


def codes_step(
    config: PipelineConfig, run_dir: Path, out: Path, on_progress: OnProgress | None = None
) -> dict[str, Any]:
    """Write `out/part-*.parquet`, one for each part of the run's embeddings."""
    code_items(config, run_dir / "codebook", run_dir / "embeddings", out, on_progress)
    return {}


def code_items(
    config: PipelineConfig, codebook: Path, embeddings: Path, out: Path, on_progress: OnProgress | None = None
) -> None:
    """Write `out/part-*.parquet`, one for each part of the embeddings. Coding needs no GPU and asks for none."""
    arguments = {
        "codebook_dir": str(codebook),
        "target": str(out),
        "threads": config.compute.threads_per_worker,
    }
    compute = config.compute.model_copy(update={"use_gpu": False})
    map_parts(CodeWorker, arguments, embeddings, out, compute, on_progress)

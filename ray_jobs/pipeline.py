"""The pipeline: eight steps, each a directory of the run that is done once its manifest is there.

With `baseline` in the config it is data, that baseline, evaluation; a closed form is fitted in the evaluation.

A step runs when its inputs (its part of the config and the manifests of the steps it needs) are not the ones that its
manifest holds. Killing the pipeline anywhere and running the same command again ends in the same artifacts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

import hymirec
from hymirec.artifacts import TIMING, Manifest, Step, read_json, write_atomic, write_json
from hymirec.catalog.fingerprint import source_fingerprint
from hymirec.config import CLOSED_FORM_KINDS, TEXT_KINDS, EncoderConfig, OptimConfig, PipelineConfig, dump
from hymirec.errors import ConfigError
from ray_jobs.console import OnProgress, Screen
from ray_jobs.prepare import prepare_step

CLOCK = Path("work/seconds")


@dataclass(frozen=True)
class Work:
    """What a step's function is given."""

    config: PipelineConfig
    run_dir: Path
    step: Step
    on_progress: OnProgress


@dataclass(frozen=True)
class StepSpec:
    """A step: what it needs, which part of the config it depends on, and what it does."""

    name: str
    title: str
    needs: tuple[str, ...]
    part: Callable[[PipelineConfig], Any]
    run: Callable[[Work], Mapping[str, Any]]


def _numerics(config: PipelineConfig) -> dict[str, Any]:
    """The parts of `compute` that the trained numbers depend on."""
    keys = {"workers", "threads_per_worker", "use_gpu", "engine", "zero_stage", "bf16"}
    return config.compute.model_dump(include=keys)


def _prepare(work: Work) -> Mapping[str, Any]:
    return prepare_step(work.config, work.step.dir)


# The steps below import what they need when they run: what models bring along takes seconds to import, and neither a
# step that was done before nor a mistake in the config should take them.


def _trained(task: str, optim: OptimConfig, work: Work) -> Mapping[str, Any]:
    from ray_jobs.trainer import PROGRESS, Named, followed, train_on_ray

    with followed(work.step.dir / PROGRESS, optim.epochs, work.on_progress):
        history = train_on_ray(Named(task), work.config, optim, work.run_dir, work.step.dir, work.step.inputs)
    return {"best_epoch": history["best_epoch"], **history["history"][history["best_epoch"]]}


def _encoder(work: Work) -> Mapping[str, Any]:
    return _trained("hymirec.encoder.task:Stage1Task", work.config.encoder.optim, work)


def _encode(work: Work) -> Mapping[str, Any]:
    from ray_jobs.encode import encode_step

    return encode_step(work.config, work.run_dir, work.step.dir, work.on_progress)


def _codebook(work: Work) -> Mapping[str, Any]:
    from ray_jobs.codebook import codebook_step

    return codebook_step(work.config, work.run_dir, work.step.dir, work.step.inputs, work.on_progress)


def _codes(work: Work) -> Mapping[str, Any]:
    from ray_jobs.codebook import codes_step

    return codes_step(work.config, work.run_dir, work.step.dir, work.on_progress)


def _recommender(work: Work) -> Mapping[str, Any]:
    return _trained("hymirec.recommender.task:HybridTask", work.config.recommender.optim, work)


def _baseline(work: Work) -> Mapping[str, Any]:
    assert work.config.baseline is not None
    return _trained("hymirec.recommender.baselines.task:BaselineTask", work.config.baseline.optim, work)


def _evaluate(work: Work) -> Mapping[str, Any]:
    job = ray.remote(_evaluated).options(
        num_cpus=work.config.compute.cpus_per_worker, num_gpus=1 if work.config.compute.use_gpu else 0
    )
    ray.get(job.remote(work.run_dir, work.config, work.step.dir))
    return {}


def _evaluated(run_dir: Path, config: PipelineConfig, out: Path) -> None:
    from hymirec.evaluation.evaluate import write_evaluation
    from ray_jobs.trainer import peak_memory

    write_evaluation(run_dir, config, out)
    write_json(out / TIMING, peak_memory(config.compute))


def _bundle(work: Work) -> Mapping[str, Any]:
    from hymirec.bundle import write_bundle

    return write_bundle(work.run_dir, work.config, work.step.dir).info


EVALUATE = "rank the whole catalogue for every user"
STEPS = (
    StepSpec("data", "read and split the interactions", (), lambda c: (c.data, c.seed), _prepare),
    StepSpec(
        "encoder",
        "train the content encoder (stage 1)",
        ("data",),
        lambda c: (c.encoder, c.seed, _numerics(c)),
        _encoder,
    ),
    StepSpec(
        "embeddings",
        "encode all items",
        ("data", "encoder"),
        lambda c: (c.encoder.encode_batch, c.compute.bf16, c.compute.use_gpu),
        _encode,
    ),
    StepSpec("codebook", "fit the codebook", ("embeddings",), lambda c: (c.codebook, c.seed), _codebook),
    StepSpec("codes", "code all items", ("embeddings", "codebook"), lambda c: c.codebook, _codes),
    StepSpec(
        "recommender",
        "train the hybrid recommender (stage 2)",
        ("data", "embeddings", "codebook", "codes"),
        lambda c: (c.recommender, c.seed, _numerics(c)),
        _recommender,
    ),
    StepSpec(
        "evaluation",
        EVALUATE,
        ("data", "codebook", "codes", "recommender"),
        lambda c: (c.evaluation, c.seed),
        _evaluate,
    ),
    StepSpec(
        "bundle",
        "write the bundle",
        ("data", "encoder", "codebook", "codes", "recommender", "evaluation"),
        lambda c: c.retrieval,
        _bundle,
    ),
)


BASELINE_STEPS = (
    STEPS[0],
    StepSpec(
        "baseline",
        "train the baseline",
        ("data",),
        lambda c: (c.baseline, *_read_texts(c), c.seed, _numerics(c)),
        _baseline,
    ),
    StepSpec("evaluation", EVALUATE, ("data", "baseline"), lambda c: (c.evaluation, c.seed), _evaluate),
)
CLOSED_FORM_STEPS = (
    STEPS[0],
    StepSpec(
        "evaluation",
        f"fit the baseline and {EVALUATE}",
        ("data",),
        lambda c: (c.evaluation, c.seed, _kind(c)),
        _evaluate,
    ),
)


def _read_texts(config: PipelineConfig) -> tuple[EncoderConfig, ...]:
    return (config.encoder,) if _kind(config) in TEXT_KINDS else ()


def _kind(config: PipelineConfig) -> str | None:
    return config.baseline.kind if config.baseline else None


def steps_of(config: PipelineConfig) -> tuple[StepSpec, ...]:
    """The steps of the config's run."""
    if config.baseline is None:
        return STEPS
    return CLOSED_FORM_STEPS if _kind(config) in CLOSED_FORM_KINDS else BASELINE_STEPS


def run_pipeline(config: PipelineConfig, screen: Screen, last: str | None = None) -> Path:
    """Bring every step of the run, or those up to `last`, up to date; returns the directory of the last one."""
    run_dir = config.directory
    manifests: dict[str, Manifest] = {}
    write_config(config)
    last = last or steps_of(config)[-1].name
    steps = steps_until(config, last)
    for number, spec in enumerate(steps, start=1):
        step = make_step(spec, config, manifests)
        manifest = step.done()
        if manifest is not None:
            screen.skipped(number, len(steps), spec.title)
        else:
            with screen.step(number, len(steps), spec.title) as on_progress:
                manifest = run_step(spec, Work(config, run_dir, step, on_progress))
        manifests[spec.name] = manifest
    return run_dir / last


def write_config(config: PipelineConfig) -> None:
    """Make the run directory and keep the resolved config in it."""
    write_atomic(config.directory / "config.yaml", dump(config).encode())


def steps_until(config: PipelineConfig, last: str) -> tuple[StepSpec, ...]:
    """The steps of the config's run up to and with `last`."""
    steps = steps_of(config)
    return steps[: [spec.name for spec in steps].index(last) + 1]


def trained_step(config: PipelineConfig) -> str:
    """The step that trains what the run is about. Raises ConfigError for a closed form, which has none."""
    kind = _kind(config)
    if kind in CLOSED_FORM_KINDS:
        raise ConfigError(f"baseline.kind={kind} tunes itself while it is evaluated; run ray_jobs/train.py with it")
    return "recommender" if kind is None else "baseline"


def make_step(spec: StepSpec, config: PipelineConfig, manifests: Mapping[str, Manifest]) -> Step:
    """A step of the config's run, with its inputs: its part of the config and the manifests of the steps it needs."""
    inputs: dict[str, Any] = {
        "config": _plain(spec.part(config)),
        "needs": {name: manifests[name].id for name in spec.needs},
        "version": hymirec.__version__,
    }
    if not spec.needs:
        inputs["source"] = source_fingerprint(config.data)
    return Step(config.directory, spec.name, inputs)


def run_step(spec: StepSpec, work: Work) -> Manifest:
    """Run one step, from its beginning or from where it was killed, whatever stands in its directory."""
    start = time.monotonic()
    before = _earlier_starts(work.step.begin())
    info = spec.run(work)
    timing = work.step.dir / TIMING
    told = read_json(timing) if timing.is_file() else {}
    write_json(timing, told | {"seconds": round(before + time.monotonic() - start, 1)})
    return work.step.commit(info)


def _earlier_starts(directory: Path) -> float:
    """Seconds that earlier starts of this unfinished step took, each until the last file that it wrote.

    A file that is written at each start keeps them; its own time is when that start began.
    """
    clock = directory / CLOCK
    seconds = 0.0
    if clock.is_file():
        began = last = clock.stat().st_mtime
        for path in directory.rglob("*"):
            # A worker of the killed start may still be writing, and removing what it wrote.
            with suppress(FileNotFoundError):
                last = max(last, path.stat().st_mtime)
        seconds = float(clock.read_text()) + last - began
    write_atomic(clock, str(seconds).encode())
    return seconds


def _plain(value: Any) -> Any:
    """Config nodes as plain JSON values."""
    if isinstance(value, tuple):
        return [_plain(part) for part in value]
    return value.model_dump(mode="json") if hasattr(value, "model_dump") else value

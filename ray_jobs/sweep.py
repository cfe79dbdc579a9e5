"""Search over any keys of a pipeline config: Ray Tune with ASHA, by the recommender's validation NDCG@10 of each epoch.

    python ray_jobs/sweep.py --config ray_jobs/configs/demo.yaml --space ray_jobs/configs/sweep-online-retail.yaml

Steps before the recommender are made once for all trials that do not differ in them. Run again after a crash or a kill,
it continues. It leaves `best.yaml`, a config for ray_jobs/train.py, and a table of all trials.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import ray
import typer
import yaml
from pydantic import Field, model_validator
from ray import tune
from ray.actor import ActorHandle
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search.basic_variant import BasicVariantGenerator

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from hymirec.artifacts import MANIFEST, Manifest, hash_json, read_json, write_atomic, write_json
from hymirec.config import Config, PipelineConfig, dump, load, override, parse
from hymirec.errors import ModelError
from ray_jobs.cluster import connect
from ray_jobs.console import Screen, log_to_file, spoken_errors
from ray_jobs.pipeline import Work, make_step, run_step, steps_until, trained_step
from ray_jobs.variants import StepPool, cause, in_home, runs_at_once

METRIC = "ndcg@10"
# A trial ends when its training does. ASHA would also end it at a last epoch, before it has written its model.
NO_LAST_EPOCH = 10**6
# What a trial's own process takes; the workers of its training ask for theirs.
TRIAL_CPUS = 0.01
# Ray Tune forgets what it did less than so long before a kill; its own choice would be ten seconds and more.
os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "2")
Point = Mapping[str, Any]


class Domain(Config):
    """What a key may be; exactly one of the four."""

    choice: tuple[Any, ...] | None = Field(None, min_length=1, description="one of these, drawn for each trial")
    grid: tuple[Any, ...] | None = Field(None, min_length=1, description="each of these, `trials` times")
    uniform: tuple[float, float] | None = Field(None, description="from low to high")
    loguniform: tuple[float, float] | None = Field(None, description="from low to high, even in the logarithm")

    @model_validator(mode="after")
    def _one(self) -> Domain:
        if sum(value is not None for _, value in self) != 1:
            raise ValueError("give exactly one of choice, grid, uniform, loguniform")
        low, high = self.uniform or self.loguniform or (1.0, 2.0)
        if low >= high or (self.loguniform and low <= 0):
            raise ValueError("expected [low, high] with low < high, and above 0 for loguniform")
        return self

    @property
    def for_tune(self) -> Any:
        """The same in Ray Tune's words."""
        if self.grid is not None:
            return tune.grid_search(list(self.grid))
        if self.choice is not None:
            return tune.choice(list(self.choice))
        low, high = self.uniform or self.loguniform or (0.0, 0.0)
        return tune.uniform(low, high) if self.uniform else tune.loguniform(low, high)

    @property
    def example(self) -> Any:
        """Some value."""
        return (self.grid or self.choice or self.uniform or self.loguniform or ())[0]


class SweepConfig(Config):
    """A search."""

    name: str = Field(pattern=r"^[A-Za-z0-9._-]+$", description="name of the sweep")
    run_dir: str | None = Field(None, description="where everything is written; none given: runs/NAME")
    space: dict[str, Domain] = Field(min_length=1, description="dotted key of the pipeline config: its values")
    trials: int = Field(20, ge=1, description="points that are drawn")
    seed: int = Field(17, ge=0, description="of the points; the runs have the base's seed")
    grace_epochs: int = Field(1, ge=1, description="no trial is ended before this many epochs")
    reduction: float = Field(3.0, gt=1, description="at each rung the best 1/reduction of the trials go on")
    reuse: tuple[str, ...] = Field((), description="run directories whose finished steps may be taken over")
    at_once: int = Field(0, ge=0, description="trials at a time; 0: as many as the cluster's CPUs or GPUs carry")

    @property
    def directory(self) -> Path:
        """The absolute directory of the sweep."""
        return in_home(self.run_dir or f"runs/{self.name}")


def at(base: PipelineConfig, point: Point, name: str, run_dir: Path | None = None) -> PipelineConfig:
    """The base config at a point of the space.

    Raises ConfigError for a key that is not there or a combination that cannot work.
    """
    values = base.model_dump(mode="json") | {"name": name, "run_dir": str(run_dir) if run_dir else None}
    changes = [f"{key}={yaml.safe_dump(value, default_flow_style=True)}" for key, value in point.items()]
    return parse(PipelineConfig, override(values, changes), f"at {dict(point)}")


@ray.remote(num_cpus=0)
class SharedSteps:
    """The step pool of all trials, which are processes of their own."""

    def __init__(self, cwd: str, root: Path, reuse: list[Path], at_once: int) -> None:
        if Path(cwd).is_dir():
            os.chdir(cwd)
        self._pool = StepPool(root, reuse, at_once, lambda line: None)

    async def bring(self, config: PipelineConfig) -> dict[str, Manifest]:
        """Bring a run up to what its training reads."""
        return await self._pool.bring(config, steps_until(config, trained_step(config))[-2].name)


def trial(point: Point, base: PipelineConfig, root: Path, steps: ActorHandle) -> None:
    """One trial: train at a point. Ray Tune hears of each epoch from the training itself (ray_jobs/trainer.py)."""
    name = str(tune.get_context().get_trial_id())
    config = at(base, point, name, root / name)
    manifests = ray.get(steps.bring.remote(config))
    spec = steps_until(config, trained_step(config))[-1]
    step = make_step(spec, config, manifests)
    if step.done() is None:
        run_step(spec, Work(config, config.directory, step, lambda done, total: None))
        return
    # It was killed between its last epoch and its end.
    for row in epochs(step.dir):
        tune.report(row)


def epochs(directory: Path) -> list[dict[str, float]]:
    """Metrics of each epoch of a finished training."""
    history: list[dict[str, float]] = read_json(directory / "training.json")["history"]
    return history[1:]


class Told(tune.Callback):
    """One line for each epoch of each trial."""

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """See `tune.Callback`."""
        line = f"{trial.trial_id}: epoch {int(result['epoch'])}, NDCG@10 {result[METRIC]:.4f}"
        Screen().console.print(line, markup=False, soft_wrap=True)


def make_tuner(settings: SweepConfig, base: PipelineConfig, steps: ActorHandle, at_once: int) -> tune.Tuner:
    """A new search, or the one that was broken off with the same base and space."""
    root = settings.directory
    run = tune.with_resources(
        tune.with_parameters(trial, base=base, root=root / "trials", steps=steps), {"cpu": TRIAL_CPUS}
    )
    name = "tune-" + hash_json([base.model_dump(mode="json"), settings.model_dump(mode="json")])[:12]
    if tune.Tuner.can_restore(str(root / name)):
        return tune.Tuner.restore(str(root / name), run, resume_unfinished=True, restart_errored=True)
    scheduler = ASHAScheduler(
        time_attr="epoch",
        max_t=NO_LAST_EPOCH,
        grace_period=settings.grace_epochs,
        reduction_factor=settings.reduction,
    )
    return tune.Tuner(
        run,
        param_space={key: domain.for_tune for key, domain in settings.space.items()},
        tune_config=tune.TuneConfig(
            metric=METRIC,
            mode="max",
            num_samples=settings.trials,
            scheduler=scheduler,
            search_alg=BasicVariantGenerator(max_concurrent=at_once, random_state=settings.seed),
            trial_dirname_creator=lambda trial: trial.trial_id,
        ),
        run_config=tune.RunConfig(name=name, storage_path=str(root), verbose=0, callbacks=[Told()]),
    )


def trial_rows(results: tune.ResultGrid, root: Path, trained: str) -> list[dict[str, Any]]:
    """All trials, the best first: point, best NDCG@10 and its epoch, epochs that were run, how it ended.

    `trained` names the step that a trial trains.
    """
    rows = []
    for result in results:
        # A trial that is started again may get another directory from Ray Tune, but keeps its id.
        name = str((result.metrics or {}).get("trial_id", Path(result.path).name))
        row: dict[str, Any] = {"trial": name, "point": dict(result.config or {})}
        frame = result.metrics_dataframe
        if frame is not None and METRIC in frame:
            best = frame.loc[frame[METRIC].idxmax()]
            row |= {METRIC: float(best[METRIC]), "epoch": int(best["epoch"]), "epochs": int(frame["epoch"].max())}
        whole = (root / name / trained / MANIFEST).is_file()
        row["ended"] = f"failed: {cause(result.error)}" if result.error else "finished" if whole else "early"
        rows.append(row)
    return sorted(rows, key=lambda row: -row.get(METRIC, -1.0))


def to_markdown(name: str, rows: list[dict[str, Any]]) -> str:
    """The table of all trials."""
    keys = list(rows[0]["point"])
    lines = [f"# Sweep: {name}", "", "| trial | NDCG@10, validation | epoch | of | " + " | ".join(keys) + " | ended |"]
    lines.append("|---|---:|---:|---:|" + "---|" * (len(keys) + 1))
    for row in rows:
        value = f"{row[METRIC]:.4f}" if METRIC in row else "-"
        point = [f"{v:.4g}" if isinstance(v, float) else str(v) for v in row["point"].values()]
        cells = [row["trial"], value, str(row.get("epoch", "-")), str(row.get("epochs", "-")), *point, row["ended"]]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def write_results(settings: SweepConfig, base: PipelineConfig, rows: list[dict[str, Any]]) -> PipelineConfig:
    """Write sweep.json, sweep.md and best.yaml; returns the best config. What trials that ended early left is removed.

    Raises ModelError when no trial finished an epoch.
    """
    out = settings.directory
    write_json(out / "sweep.json", rows)
    write_atomic(out / "sweep.md", to_markdown(settings.name, rows).encode())
    if METRIC not in rows[0]:
        raise ModelError(f"no trial finished an epoch; the first one {rows[0]['ended']}. See {out / 'sweep.md'}")
    for row in rows:
        if row["ended"] == "early":
            shutil.rmtree(out / "trials" / row["trial"] / trained_step(base), ignore_errors=True)
    best = at(base, rows[0]["point"], f"{settings.name}-best")
    write_atomic(out / "best.yaml", dump(best).encode())
    return best


def main(
    config: Annotated[Path, typer.Option(help="YAML of the pipeline config that the search starts from")],
    space: Annotated[Path, typer.Option(help="YAML of the search; shipped ones are ray_jobs/configs/sweep-*")],
    assignments: Annotated[list[str] | None, typer.Option("--set", help="change one key of the base: a.b=c")] = None,
) -> None:
    """Search, and say what is best."""
    screen = Screen()
    with spoken_errors(screen, Path("the sweep's logs/sweep.log")):
        base, settings = load(PipelineConfig, config, assignments or ()), load(SweepConfig, space)
        trained = trained_step(base)
        at(base, {key: domain.example for key, domain in settings.space.items()}, settings.name)
        log_to_file(settings.directory / "logs" / "sweep.log")
        connect(base.compute)
        at_once = settings.at_once or runs_at_once(base.compute)
        trials = settings.directory / "trials"
        steps = SharedSteps.remote(str(Path.cwd()), trials, [in_home(path) for path in settings.reuse], at_once)
        rows = trial_rows(make_tuner(settings, base, steps, at_once).fit(), trials, trained)
        write_results(settings, base, rows)
    best = rows[0]
    screen.console.print(f"best: NDCG@10 {best[METRIC]:.4f} at {best['point']}", markup=False, soft_wrap=True)
    screen.console.print(f"{settings.directory / 'best.yaml'}, all trials: sweep.md", markup=False, soft_wrap=True)


if __name__ == "__main__":
    typer.run(main)

"""Search over any keys of a pipeline config: Ray Tune with ASHA, by the recommender's validation NDCG@10 of each epoch.

    python ray_jobs/sweep.py --config ray_jobs/configs/demo.yaml --space ray_jobs/configs/sweep-online-retail.yaml

Steps before the recommender are made once for all trials that do not differ in them. Run again after a crash or a kill,
it draws the same points: trials that ended are not trained again, one that was broken off goes on from its last epoch.
It leaves `best.yaml`, a config for ray_jobs/train.py, and a table of all trials.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
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
# What a trial that was ended early leaves: the epochs that it ran, for the next start of the same search.
ENDED = "ended.json"
# What Ray Tune writes. It is not read again: a kill may leave its files cut off.
TUNE = "tune"
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
    base_first: bool = Field(False, description="the first of the points is the base's own")
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


def base_point(settings: SweepConfig, base: PipelineConfig) -> Point:
    """Where the base itself is in the space."""

    def value(key: str) -> Any:
        found: Any = base.model_dump(mode="json")
        for part in key.split("."):
            found = found[part]
        return found

    return {key: value(key) for key in settings.space}


def points(settings: SweepConfig, base: PipelineConfig, at_once: int) -> BasicVariantGenerator:
    """What draws the points; equal settings draw equal ones."""
    first = [dict(base_point(settings, base))] if settings.base_first else None
    return BasicVariantGenerator(points_to_evaluate=first, max_concurrent=at_once, random_state=settings.seed)


def trial_name(base: PipelineConfig, point: Point) -> str:
    """The name of a trial and of its run directory: a point that is drawn twice is trained once."""
    return hash_json([base.model_dump(mode="json"), dict(point)])[:10]


def trial(point: Point, base: PipelineConfig, root: Path, search: str, steps: ActorHandle) -> None:
    """One trial: train at a point. Ray Tune hears of each epoch from the training itself (ray_jobs/trainer.py).

    Of what an earlier start trained, it hears from its files.
    """
    name = trial_name(base, point)
    config = at(base, point, name, root / name)
    with _alone(root / f"{name}.lock"):
        rows = ended_early(root / name, search)
        if rows is None:
            manifests = ray.get(steps.bring.remote(config))
            spec = steps_until(config, trained_step(config))[-1]
            step = make_step(spec, config, manifests)
            if step.done() is None:
                run_step(spec, Work(config, config.directory, step, lambda done, total: None))
                return
            rows = epochs(step.dir)
        for row in rows:
            tune.report(row)


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """One process at a time; the end of a process ends its turn."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def epochs(directory: Path) -> list[dict[str, float]]:
    """Metrics of each epoch of a finished training."""
    history: list[dict[str, float]] = read_json(directory / "training.json")["history"]
    return history[1:]


def ended_early(directory: Path, search: str) -> list[dict[str, float]] | None:
    """Metrics of each epoch of a trial that this search ended early; None for any other."""
    path = directory / ENDED
    told = read_json(path) if path.is_file() else {}
    rows: list[dict[str, float]] | None = told["rows"] if told.get("search") == search else None
    return rows


class Told(tune.Callback):
    """One line for each epoch of each trial."""

    def __init__(self, base: PipelineConfig) -> None:
        self._base = base

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """See `tune.Callback`."""
        line = f"{trial_name(self._base, trial.config)}: epoch {int(result['epoch'])}, NDCG@10 {result[METRIC]:.4f}"
        Screen().console.print(line, markup=False, soft_wrap=True)


def search_id(settings: SweepConfig, base: PipelineConfig) -> str:
    """What is searched, as a hash: where it starts and all of its settings."""
    return hash_json([base.model_dump(mode="json"), settings.model_dump(mode="json")])[:12]


def make_tuner(settings: SweepConfig, base: PipelineConfig, steps: ActorHandle, at_once: int) -> tune.Tuner:
    """The search."""
    root = settings.directory
    shutil.rmtree(root / TUNE, ignore_errors=True)
    told = {"base": base, "root": root / "trials", "search": search_id(settings, base), "steps": steps}
    scheduler = ASHAScheduler(
        time_attr="epoch",
        max_t=NO_LAST_EPOCH,
        grace_period=settings.grace_epochs,
        reduction_factor=settings.reduction,
    )
    return tune.Tuner(
        tune.with_resources(tune.with_parameters(trial, **told), {"cpu": TRIAL_CPUS}),
        param_space={key: domain.for_tune for key, domain in settings.space.items()},
        tune_config=tune.TuneConfig(
            metric=METRIC,
            mode="max",
            num_samples=settings.trials,
            scheduler=scheduler,
            search_alg=points(settings, base, at_once),
            trial_dirname_creator=lambda trial: trial.trial_id,
        ),
        run_config=tune.RunConfig(name=TUNE, storage_path=str(root), verbose=0, callbacks=[Told(base)]),
    )


def trial_rows(results: Iterable[tune.Result], settings: SweepConfig, base: PipelineConfig) -> list[dict[str, Any]]:
    """All trials, the best first: point, best NDCG@10 and its epoch, epochs that were run, how it ended.

    A trial that was ended early is noted as such for the next start.
    """
    rows: dict[str, dict[str, Any]] = {}
    for result in results:
        point = dict(result.config or {})
        name = trial_name(base, point)
        run_dir = settings.directory / "trials" / name
        trained = run_dir / trained_step(base)
        whole = (trained / MANIFEST).is_file()
        ran = epochs(trained) if whole else _reported(result)
        row: dict[str, Any] = {"trial": name, "point": point}
        if ran:
            best = max(ran, key=lambda own: own[METRIC])
            row |= {METRIC: best[METRIC], "epoch": int(best["epoch"]), "epochs": int(ran[-1]["epoch"])}
        row["ended"] = f"failed: {cause(result.error)}" if result.error else "finished" if whole else "broken off"
        # Ray Tune says so of a trial that the scheduler ended; after Ctrl-C there are others.
        if row["ended"] == "broken off" and (result.metrics or {}).get("done"):
            row["ended"] = "early"
            write_json(run_dir / ENDED, {"search": search_id(settings, base), "rows": ran})
        rows[name] = row
    return sorted(rows.values(), key=lambda row: -row.get(METRIC, -1.0))


def _reported(result: tune.Result) -> list[dict[str, float]]:
    """Metrics of each epoch that Ray Tune heard of."""
    frame = result.metrics_dataframe
    if frame is None or METRIC not in frame:
        return []
    kept: list[dict[str, float]] = frame[["epoch", METRIC]].to_dict("records")
    return kept


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
    name: Annotated[str | None, typer.Option(help="name of the search, instead of the YAML's")] = None,
) -> None:
    """Search, and say what is best."""
    screen = Screen()
    with spoken_errors(screen, Path("the sweep's logs/sweep.log")):
        base = load(PipelineConfig, config, assignments or ())
        settings = load(SweepConfig, space, [f"name={name}"] if name else ())
        at(base, {key: domain.example for key, domain in settings.space.items()}, settings.name)
        log_to_file(settings.directory / "logs" / "sweep.log")
        connect(base.compute)
        at_once = settings.at_once or runs_at_once(base.compute)
        trials = settings.directory / "trials"
        steps = SharedSteps.remote(str(Path.cwd()), trials, [in_home(path) for path in settings.reuse], at_once)
        rows = trial_rows(make_tuner(settings, base, steps, at_once).fit(), settings, base)
        write_results(settings, base, rows)
    best = rows[0]
    screen.console.print(f"best: NDCG@10 {best[METRIC]:.4f} at {best['point']}", markup=False, soft_wrap=True)
    screen.console.print(f"{settings.directory / 'best.yaml'}, all trials: sweep.md", markup=False, soft_wrap=True)


if __name__ == "__main__":
    typer.run(main)

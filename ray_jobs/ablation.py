"""Runs that differ from a base in a few keys each, over several seeds, and one table that compares them.

    python ray_jobs/ablation.py --config ray_jobs/configs/ablation-online-retail.yaml
    ray job submit --working-dir . -- python ray_jobs/ablation.py --config ray_jobs/configs/ablation-online-retail.yaml

Run again after a crash or a kill, it continues. A run that fails is named with its error, the others go on, and the
exit code is 1.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated

import typer
from pydantic import Field, model_validator

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from hymirec.artifacts import write_atomic, write_json
from hymirec.config import Config, PipelineConfig, load
from hymirec.errors import ConfigError
from hymirec.evaluation.ablation import Failure, RunFigures, VariantRuns, ablation_rows, to_markdown
from ray_jobs.cluster import connect
from ray_jobs.console import Screen, log_to_file, spoken_errors
from ray_jobs.variants import StepPool, cause, in_home, load_base, runs_at_once

BASE = "base"
NAME = r"^[A-Za-z0-9._-]+$"
LAST = "evaluation"
Key = tuple[str, int]


class Variant(Config):
    """The base with a few keys changed."""

    name: str = Field(pattern=NAME, description="row of the table")
    set: tuple[str, ...] = Field((), description="assignments `a.b=c` on top of the base")


class AblationConfig(Config):
    """An ablation: a base, variants, seeds."""

    name: str = Field(pattern=NAME, description="name of the ablation")
    run_dir: str | None = Field(None, description="where everything is written; none given: runs/NAME")
    base: str = Field(description="YAML of the pipeline config, relative to this file")
    set: tuple[str, ...] = Field((), description="assignments on the base, for all variants")
    seeds: tuple[int, ...] = Field((17,), min_length=1, description="every variant is run with each of them")
    variants: tuple[Variant, ...] = Field((), description="the base itself is always run")
    reuse: tuple[str, ...] = Field((), description="run directories whose finished steps may be taken over")
    at_once: int = Field(0, ge=0, description="runs at a time; 0: as many as the cluster's CPUs or GPUs carry")

    @model_validator(mode="after")
    def _names(self) -> AblationConfig:
        names = [BASE, *(variant.name for variant in self.variants)]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"two variants are called {', '.join(twice)} ({BASE!r} is the base); rename one")
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError("a seed is given twice")
        return self

    @property
    def directory(self) -> Path:
        """The absolute directory of the ablation."""
        return in_home(self.run_dir or f"runs/{self.name}")


def plan(settings: AblationConfig, source: Path) -> dict[Key, PipelineConfig]:
    """The config of each run, by (variant, seed); the base comes first.

    Raises ConfigError with the name of a variant that cannot work.
    """
    runs: dict[Key, PipelineConfig] = {}
    for variant in (Variant(name=BASE), *settings.variants):
        for seed in settings.seeds:
            name = f"{variant.name}-{seed}"
            # JSON: a path or a name that looks like a number stays a string.
            place = json.dumps(str(settings.directory / name))
            own = [f"name={json.dumps(f'{settings.name}-{name}')}", f"run_dir={place}", f"seed={seed}"]
            try:
                config = load_base(source, settings.base, [*settings.set, *variant.set, *own])
            except ConfigError as e:
                raise ConfigError(f"variant {variant.name}: {e}") from e
            runs[variant.name, seed] = config
    return runs


class Table:
    """The table of an ablation, written anew whenever a run ends."""

    def __init__(self, settings: AblationConfig, runs: Mapping[Key, PipelineConfig]) -> None:
        self._settings, self._runs = settings, runs
        self._variants = {
            variant.name: VariantRuns(variant.name, variant.set, {})
            for variant in (Variant(name=BASE), *settings.variants)
        }
        self.failures: list[Failure] = []

    def add(self, key: Key, error: BaseException | None) -> str:
        """Take in a run that ended, write the table, and return a line for the person who waits."""
        name, seed = key
        if error is not None:
            self.failures.append(Failure(name, seed, cause(error)))
            line = f"{name}-{seed}: FAILED: {self.failures[-1].error}"
        else:
            figures = RunFigures.read(self._runs[key].directory)
            self._variants[name].runs[seed] = figures
            line = f"{name}-{seed}: done, " + ", ".join(f"{k} {figures.means[k]:.4f}" for k in figures.shown)
        self._write()
        return line

    def _write(self) -> None:
        config = next(iter(self._runs.values()))
        variants = [variant for variant in self._variants.values() if variant.runs]
        rows = ablation_rows(variants, BASE, config.evaluation.bootstrap, config.seed)
        out = self._settings.directory
        write_json(out / "ablation.json", {"rows": rows, "failed": [failure.as_row() for failure in self.failures]})
        write_atomic(out / "ablation.md", to_markdown(self._settings.name, rows, self.failures).encode())


async def run_all(
    runs: Mapping[Key, PipelineConfig], pool: StepPool, ended: Callable[[Key, BaseException | None], None]
) -> None:
    """Bring all runs up to date; `ended` is told of each as it ends, with its error if it has one."""
    tasks = {asyncio.ensure_future(pool.bring(config, LAST)): key for key, config in runs.items()}
    waiting = set(tasks)
    while waiting:
        done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            ended(tasks[task], task.exception())


def main(
    config: Annotated[Path, typer.Option(help="YAML of the ablation; shipped ones are ray_jobs/configs/ablation-*")],
    assignments: Annotated[list[str] | None, typer.Option("--set", help="change one key of it: seeds=[17]")] = None,
) -> None:
    """Run all variants and compare them with the base."""
    screen = Screen()
    with spoken_errors(screen, Path("the ablation's logs/ablation.log")):
        settings = load(AblationConfig, config, assignments or ())
        runs = plan(settings, config)
        log_to_file(settings.directory / "logs" / "ablation.log")
        compute = next(iter(runs.values())).compute
        connect(compute)

        def tell(line: str) -> None:
            screen.console.print(line, markup=False, soft_wrap=True)

        table = Table(settings, runs)
        reuse = [in_home(path) for path in settings.reuse]
        pool = StepPool(settings.directory, reuse, settings.at_once or runs_at_once(compute), tell)
        asyncio.run(run_all(runs, pool, lambda key, error: tell(table.add(key, error))))
        tell(f"table: {settings.directory / 'ablation.md'}")
        if table.failures:
            tell(f"{len(table.failures)} of {len(runs)} runs failed; run the same command again to try those again")
            raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)

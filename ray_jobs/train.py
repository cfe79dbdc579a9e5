"""The whole pipeline as one job: tables in, bundle out. A config with `baseline` trains and evaluates that instead.

    python ray_jobs/train.py --config ray_jobs/configs/demo.yaml --set data.kind=parquet --set data.path=DIR
    ray job submit --working-dir . -- python ray_jobs/train.py --config ray_jobs/configs/movielens-1m.yaml

Run again after a crash or a kill, it continues; run again after success, it does nothing.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from hymirec.config import PipelineConfig, load
from ray_jobs.cluster import connect, placed
from ray_jobs.console import Screen, log_to_file, spoken_errors
from ray_jobs.pipeline import run_pipeline
from ray_jobs.summary import print_summary


def main(
    config: Annotated[Path, typer.Option(help="YAML of the run; shipped ones are in ray_jobs/configs")],
    assignments: Annotated[list[str] | None, typer.Option("--set", help="change one key: a.b=value")] = None,
) -> None:
    """Train everything from item texts to the bundle, or the baseline that the config names."""
    screen = Screen()
    with spoken_errors(screen, Path("the run's logs/pipeline.log")):
        settings = placed(load(PipelineConfig, config, assignments or ()))
        log_to_file(settings.directory / "logs" / "pipeline.log")
        connect(settings.compute)
        last = run_pipeline(settings, screen)
    print_summary(screen.console, settings.directory)
    screen.console.print(f"{last.name}: {last}", markup=False, soft_wrap=True)


if __name__ == "__main__":
    typer.run(main)

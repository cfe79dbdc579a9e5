"""Run a config up to its evaluation and add what it reached to a file of results.

    python ray_jobs/compare.py --config ray_jobs/configs/movielens-1m/hstu.yaml \\
        --results docs/results/movielens-1m.json --set data.path=DIR --set seed=18

For HyMiRec and every baseline alike. The row's key is (model, config, seed): running it again replaces the row.
Popularity, which is evaluated beside every model, gets rows of its own. See docs/evaluation.md.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from hymirec.artifacts import read_json
from hymirec.config import PipelineConfig, load
from hymirec.evaluation.evaluate import open_ranks, training_costs
from hymirec.evaluation.results import PLAIN, add_row, commit
from ray_jobs.cluster import connect, placed
from ray_jobs.console import Screen, log_to_file, spoken_errors
from ray_jobs.pipeline import run_pipeline
from ray_jobs.summary import metrics_table


def main(
    config: Annotated[Path, typer.Option(help="YAML of the run, HyMiRec's or a baseline's")],
    results: Annotated[Path, typer.Option(help="file that the row goes into, docs/results/SET.json")],
    assignments: Annotated[list[str] | None, typer.Option("--set", help="change one key: a.b=value")] = None,
    against: Annotated[str | None, typer.Option(help="model that p-values are against from now on")] = None,
) -> None:
    """Train, evaluate, and put the row into the table."""
    screen = Screen()
    with spoken_errors(screen, Path("the run's logs/pipeline.log")):
        settings = placed(load(PipelineConfig, config, assignments or ()))
        log_to_file(settings.directory / "logs" / "pipeline.log")
        connect(settings.compute)
        run_pipeline(settings, screen, last="evaluation")
        metrics = add_rows(results, config, settings, against)
    screen.console.print(metrics_table(metrics))
    screen.console.print(f"results: {results} and {results.with_suffix('.md')}", markup=False, soft_wrap=True)


def add_rows(results: Path, source: Path, settings: PipelineConfig, against: str | None = None) -> dict[str, object]:
    """Add the rows of a run that is evaluated; `source` is the YAML that it came from. Returns the run's metrics."""
    run_dir = settings.directory
    metrics: dict[str, object] = read_json(run_dir / "evaluation" / "metrics.json")
    own = {"config": source.as_posix(), "seed": settings.seed, **training_costs(run_dir), "commit": commit()}
    for row in metrics["models"]:
        add_row(results, row | own, open_ranks(run_dir, row["model"]), against)
        own = {"config": PLAIN, "seed": 0}
    return metrics


if __name__ == "__main__":
    typer.run(main)

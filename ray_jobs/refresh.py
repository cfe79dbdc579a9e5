"""Refresh the codebook of a run on a cluster: go on from the last codebook with all items of the run, old and new.

    python ray_jobs/refresh.py --config RUN.yaml --last OLD_RUN/codebook --out runs/RUN/codebook-refreshed

The run's `embeddings` hold all items, those that the last codebook knows first. On one machine without Ray,
`hymirec codebook refresh` does the same, to the same bytes.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from hymirec.artifacts import hash_file, hash_json
from hymirec.codebook import PASSES, drift_markdown
from hymirec.config import PipelineConfig, load
from ray_jobs.cluster import connect, placed
from ray_jobs.codebook import refresh_step
from ray_jobs.console import Screen, log_to_file, spoken_errors


def main(
    config: Annotated[Path, typer.Option(help="YAML of the run whose embeddings hold all items")],
    last: Annotated[Path, typer.Option(help="directory of the last codebook")],
    out: Annotated[Path, typer.Option(help="where the refreshed codebook goes")],
    passes: Annotated[int, typer.Option(help="k-means passes a layer")] = PASSES,
    assignments: Annotated[list[str] | None, typer.Option("--set", help="change one key: a.b=value")] = None,
) -> None:
    """Refresh a codebook; prints the drift."""
    screen = Screen()
    with spoken_errors(screen, out / "logs" / "refresh.log"):
        settings = placed(load(PipelineConfig, config, assignments or ()))
        log_to_file(out / "logs" / "refresh.log")
        connect(settings.compute)
        inputs = hash_json([hash_file(last / "codebook.safetensors"), settings.model_dump(mode="json"), passes])
        report = refresh_step(settings, settings.directory, last, out, inputs, passes)
    screen.console.print(drift_markdown(report), markup=False)


if __name__ == "__main__":
    typer.run(main)

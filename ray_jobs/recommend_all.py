"""Recommendations for everyone, as Parquet: user, rank, item, score, interest, bundle.

    python ray_jobs/recommend_all.py --config runs/demo/config.yaml --k 100
    python ray_jobs/recommend_all.py --config runs/demo/config.yaml --histories EXPORT --bundle NEW --out DIR

For every user of the run, or of a Parquet file or directory of histories: interactions (user, item, ts), lists
(user, items, ts), or what `hymirec history export` wrote. Run again after a kill, it goes on; run again after success,
it does nothing.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from hymirec.batch import PART_USERS, Batch, BatchOptions, answered, recommend_part
from hymirec.config import ComputeConfig, PipelineConfig, load
from hymirec.inference import HyMiRec
from ray_jobs.cluster import connect, home, placed
from ray_jobs.console import OnProgress, Screen, log_to_file, spoken_errors
from ray_jobs.parts import map_parts

STEPS = ("gather the histories", "recommend")


class RecommendWorker:
    """Holds the bundle; one call answers one part."""

    def __init__(self, bundle: str, target: str, options: BatchOptions, threads: int, use_gpu: bool) -> None:
        torch.set_num_threads(threads)
        self._model = HyMiRec.for_batches(bundle, "cuda" if use_gpu else "cpu")
        self._target, self._options = Path(target), options

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Answer the parts of the batch."""
        paths = [Path(str(path)) for path in batch["part"]]
        counts = [recommend_part(self._model, path, self._target / path.name, self._options) for path in paths]
        return {"rows": np.array(counts)}


def answer(batch: Batch, options: BatchOptions, compute: ComputeConfig, on_progress: OnProgress | None = None) -> None:
    """Answer what is not answered yet, on the cluster that is connected."""
    arguments = {
        "bundle": str(batch.bundle),
        "target": str(batch.out),
        "options": options,
        "threads": compute.threads_per_worker,
        "use_gpu": compute.use_gpu,
    }
    map_parts(RecommendWorker, arguments, batch.requests_dir, batch.out, compute, on_progress, answered)


def recommend_all(batch: Batch, compute: ComputeConfig, screen: Screen) -> None:
    """Carry out what is planned, on the cluster that is connected."""
    with screen.step(1, len(STEPS), STEPS[0]):
        options = batch.cut()
    with screen.step(2, len(STEPS), STEPS[1]) as on_progress:
        answer(batch, options, compute, on_progress)
        batch.commit()


def main(
    config: Annotated[Path, typer.Option(help="YAML of the run, or the config.yaml in its directory")],
    histories: Annotated[Path | None, typer.Option(help="Parquet of histories [the users of the run]")] = None,
    bundle: Annotated[Path | None, typer.Option(help="the bundle that recommends [RUN/bundle]")] = None,
    out: Annotated[Path | None, typer.Option(help="where the answers go [RUN/recommendations]")] = None,
    k: Annotated[int, typer.Option(help="items a user", min=1)] = 100,
    now: Annotated[
        int | None, typer.Option(help="the time that they are for, in seconds [after the last event]")
    ] = None,
    filter_seen: Annotated[bool, typer.Option(help="leave out items of the user's history")] = True,
    per_interest: Annotated[int, typer.Option(help="items of the k that each interest chooses first", min=0)] = 0,
    part_users: Annotated[int, typer.Option(help="users of a part, what a worker takes at once", min=1)] = PART_USERS,
    assignments: Annotated[list[str] | None, typer.Option("--set", help="change one key: a.b=value")] = None,
) -> None:
    """Recommend for everyone."""
    screen = Screen()
    with spoken_errors(screen, Path("the run's logs/recommend_all.log")):
        settings = placed(load(PipelineConfig, config, assignments or ()))
        run_dir = settings.directory
        log_to_file(run_dir / "logs" / "recommend_all.log")
        batch = Batch.plan(
            home() / (bundle or run_dir / "bundle"),
            home() / (histories or run_dir / "data"),
            home() / (out or run_dir / "recommendations"),
            BatchOptions(k, now, filter_seen, per_interest=per_interest),
            part_users,
        )
        if not batch.step.done():
            connect(settings.compute)
            recommend_all(batch, settings.compute, screen)
    screen.console.print(batch.outcome(), markup=False, soft_wrap=True)


if __name__ == "__main__":
    typer.run(main)

"""Make new items recommendable without training: a new bundle beside the old one, to be swapped in.

    python ray_jobs/add_items.py --config runs/demo/config.yaml --items new-items.parquet
    curl -X POST localhost:8000/v1/admin/bundle -H 'content-type: application/json' -d '{"path": "NEW BUNDLE"}'

The items may be the whole catalogue of today: those that the bundle knows are left as they are. Run again after a kill,
it goes on. On one machine without Ray, `hymirec bundle add-items` does the same, to the same bytes.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from hymirec.additions import Addition
from hymirec.config import PipelineConfig, load
from ray_jobs.cluster import connect, home, placed
from ray_jobs.codebook import code_items
from ray_jobs.console import Screen, log_to_file, spoken_errors
from ray_jobs.encode import encode_items

STEPS = ("encode the new items", "code the new items", "write the bundle")


def add_items(addition: Addition, screen: Screen) -> None:
    """Carry out what is planned, on the cluster that is connected."""
    config = addition.config
    addition.cut()
    with screen.step(1, len(STEPS), STEPS[0]) as on_progress:
        encode_items(config, addition.encoder_dir, addition.items_dir, addition.embeddings_dir, on_progress)
    with screen.step(2, len(STEPS), STEPS[1]) as on_progress:
        code_items(config, addition.codebook_dir, addition.embeddings_dir, addition.codes_dir, on_progress)
    with screen.step(3, len(STEPS), STEPS[2]):
        addition.write()


def main(
    config: Annotated[Path, typer.Option(help="YAML of the run, or the config.yaml in its directory")],
    items: Annotated[str, typer.Option(help="Parquet or CSV of items, or a directory of them")],
    bundle: Annotated[Path | None, typer.Option(help="the bundle to start from [RUN/bundle]")] = None,
    out: Annotated[Path | None, typer.Option(help="where the new bundle goes [RUN/bundles/...]")] = None,
    assignments: Annotated[list[str] | None, typer.Option("--set", help="change one key: a.b=value")] = None,
) -> None:
    """Add items to a bundle."""
    screen = Screen()
    with spoken_errors(screen, Path("the run's logs/add_items.log")):
        settings = placed(load(PipelineConfig, config, assignments or ()))
        log_to_file(settings.directory / "logs" / "add_items.log")
        addition = Addition.plan(settings, items, bundle and home() / bundle, out and home() / out)
        if len(addition.items) and not addition.step.done():
            connect(settings.compute)
            add_items(addition, screen)
    screen.console.print(addition.outcome(), markup=False, soft_wrap=True)


if __name__ == "__main__":
    typer.run(main)

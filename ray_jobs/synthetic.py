"""Generated data of any size: shards as Ray Data tasks, written as the two tables.

    python ray_jobs/synthetic.py --out DIR --set data.synthetic.items=5000000 --set data.synthetic.users=200000

`DIR` then holds `items/part-*.parquet` and `interactions/part-*.parquet`, for `data.kind=parquet`. A shard that is
there is not generated again, so a run that was cut off goes on. DIR must be on storage that all nodes share.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import ray.data
import typer
from rich.console import Console

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from hymirec.artifacts import read_json, write_json
from hymirec.catalog.loaders.synthetic import generate_shard
from hymirec.catalog.parts import part_name, part_rows, write_table
from hymirec.config import PipelineConfig, SyntheticConfig, load, override, parse
from hymirec.errors import DataError, HyMiRecError
from ray_jobs.cluster import connect
from ray_jobs.console import log_to_file

MARKER = "synthetic.json"


def generate_on_ray(config: SyntheticConfig, seed: int, out: Path) -> dict[str, int]:
    """Write every shard of (config, seed) below `out`; returns the rows of each table.

    Raises DataError when `out` holds shards of another config or seed.
    """
    made_of = {"seed": seed, **config.model_dump()}
    if (out / MARKER).exists() and read_json(out / MARKER) != made_of:
        raise DataError(f"{out} holds shards of another config or seed; give an empty directory, or remove it first")
    write_json(out / MARKER, made_of)
    shards = ray.data.range(config.shards, override_num_blocks=config.shards)
    written = shards.map_batches(
        _write_shards,
        batch_size=1,
        fn_kwargs={"config": config.model_dump(), "seed": seed, "out": str(out)},
        num_cpus=1,
    )
    rows = written.take_all()
    return {table: sum(int(row[table]) for row in rows) for table in ("items", "interactions")}


def _write_shards(batch: dict[str, Any], config: dict[str, Any], seed: int, out: str) -> dict[str, Any]:
    """Runs in a task: the shards whose numbers are in the batch."""
    rows = [_write_shard(SyntheticConfig(**config), seed, int(shard), Path(out)) for shard in batch["id"]]
    return {"items": np.array([r[0] for r in rows]), "interactions": np.array([r[1] for r in rows])}


def _write_shard(config: SyntheticConfig, seed: int, shard: int, out: Path) -> tuple[int, int]:
    items, interactions = (out / table / part_name(shard) for table in ("items", "interactions"))
    if not (items.exists() and interactions.exists()):
        tables = generate_shard(config, seed, shard)
        write_table(items, tables.items)
        write_table(interactions, tables.interactions)
    return part_rows(items), part_rows(interactions)


def main(
    out: Annotated[Path, typer.Option(help="directory of the two tables; new or of the same config and seed")],
    config: Annotated[Path | None, typer.Option(help="YAML of a run; its seed and data.synthetic are used")] = None,
    assignments: Annotated[list[str] | None, typer.Option("--set", help="change one key: a.b=value")] = None,
) -> None:
    """Generate items and interactions."""
    console = Console()
    try:
        changes = assignments or []
        settings = (
            load(PipelineConfig, config, changes) if config else parse(PipelineConfig, override({}, changes), "--set")
        )
        target = out.expanduser().absolute()
        log_to_file(target.with_name(f"{target.name}.log"))  # not inside: it is no part of the data
        connect(settings.compute)
        rows = generate_on_ray(settings.data.synthetic, settings.seed, target)
    except HyMiRecError as e:
        console.print(f"error: {e}", style="red", markup=False, soft_wrap=True)
        raise typer.Exit(2) from e
    console.print(f"{rows['items']:,} items and {rows['interactions']:,} interactions in {out}", markup=False)


if __name__ == "__main__":
    typer.run(main)

"""The data step: load the two tables, check them, cut them into the prepared catalogue."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from hymirec.catalog.prepare import prepare
from hymirec.catalog.tables import Tables, load_tables
from hymirec.catalog.validation import check
from hymirec.config import DataConfig, PipelineConfig
from ray_jobs.synthetic import generate_on_ray

# Synthetic data beyond this many rows is generated in shards on the cluster; below, a cluster only costs time.
IN_PROCESS_ROWS = 3_000_000
# Beside the artifact and not part of it, see `hymirec.artifacts.UNLISTED_DIRS`.
_WORK = "work"


def prepare_step(config: PipelineConfig, out: Path) -> dict[str, Any]:
    """Write the prepared catalogue of the config's data into `out`; returns its stats.

    Raises DataError, or ValidationError with every problem of the tables.
    """
    shards = out / _WORK / "synthetic"
    tables = _load(config, shards)
    check(tables)
    stats = prepare(tables, config.data, out)
    shutil.rmtree(shards, ignore_errors=True)
    return stats


def _load(config: PipelineConfig, shards: Path) -> Tables:
    synthetic = config.data.synthetic
    rows = synthetic.items + synthetic.users * synthetic.events_per_user
    if config.data.kind != "synthetic" or synthetic.shards == 1 or rows <= IN_PROCESS_ROWS:
        return load_tables(config.data, config.seed)
    generate_on_ray(synthetic, config.seed, shards)
    return load_tables(DataConfig(kind="parquet", path=str(shards)), config.seed)

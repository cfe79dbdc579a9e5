"""Runs up to the codes that cost no cluster: what an ablation or a sweep may take over, tiny and real."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tiny_run import code, encode, tiny_config, train

from hymirec.artifacts import Manifest
from hymirec.catalog.prepare import prepare
from hymirec.catalog.tables import load_tables
from hymirec.config import PipelineConfig, override, parse
from hymirec.encoder.task import Stage1Task
from ray_jobs.pipeline import make_step, steps_until


def tiny(run_dir: Path, *assignments: str) -> PipelineConfig:
    """The tiny configuration, changed as by `--set`."""
    values = override(tiny_config().model_dump(mode="json"), [f"run_dir={run_dir}", *assignments])
    return parse(PipelineConfig, values)


def make_until_codes(config: PipelineConfig) -> None:
    """Bring the config's run up to its codes, through the library alone."""
    run_dir = config.directory
    makers: dict[str, Callable[[], object]] = {
        "data": lambda: prepare(load_tables(config.data, config.seed), config.data, run_dir / "data"),
        "encoder": lambda: train(Stage1Task(config, run_dir), config.encoder.optim, config, run_dir, "encoder"),
        "embeddings": lambda: encode(config, run_dir),
        "codebook": lambda: code(config, run_dir),
        # Made with the codebook.
        "codes": lambda: None,
    }
    manifests: dict[str, Manifest] = {}
    for spec in steps_until(config, "codes"):
        makers[spec.name]()
        manifests[spec.name] = make_step(spec, config, manifests).commit()

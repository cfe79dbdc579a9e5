"""A whole run, tiny and real, made through the library alone: no Ray, a few seconds.

Synthetic users with planted interests; an encoder with fresh weights; codebook, codes, and a recommender trained for
one epoch; evaluation and bundle. Histories are longer than what the LLM reads, so the light recommender has work.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import torch
from transformers.utils import logging

from hymirec.artifacts import write_json, write_manifest
from hymirec.bundle import write_bundle
from hymirec.catalog.parts import part_paths
from hymirec.catalog.prepare import prepare
from hymirec.catalog.prepared import Sequences
from hymirec.catalog.tables import load_tables
from hymirec.catalog.validation import check
from hymirec.catalog.vectors import count_rows, read_vectors
from hymirec.codebook import IdentityReducer, fit_codebook, fit_variant, open_codebook, sample_report
from hymirec.config import ComputeConfig, OptimConfig, PipelineConfig, dump, parse
from hymirec.encoder import ContentEncoder
from hymirec.encoder.encode import encode_part
from hymirec.encoder.task import Stage1Task
from hymirec.evaluation.evaluate import evaluate_run
from hymirec.recommender.neighbours import Neighbours, save_neighbours, similarity
from hymirec.recommender.task import HybridTask
from hymirec.recommender.trend import Trend, save_trend
from hymirec.training import LocalReporter, TrainTask, fit
from hymirec.training.loop import load_weights

logging.disable_progress_bar()
ITEMS = 150
RECENT = 6
PARTS = ("data", "encoder", "embeddings", "codebook", "codes", "recommender", "evaluation")


def tiny_config(seed: int = 0, string_ids: bool = True, kind: str = "cosine") -> PipelineConfig:
    """The configuration of the run. `compute` is what runs without Ray and without DeepSpeed."""
    values = {
        "name": "tiny",
        "seed": seed,
        "data": {
            "kind": "synthetic",
            "part_rows": 64,
            "synthetic": {
                "items": ITEMS,
                "users": 60,
                "events_per_user": 16,
                "topics": 8,
                "shards": 2,
                "string_ids": string_ids,
            },
        },
        "encoder": {
            "hidden_size": 16,
            "layers": 1,
            "heads": 2,
            "vocab_size": 400,
            "max_tokens": 12,
            "optim": {"epochs": 0},
        },
        "codebook": {"kind": kind, "layers": 2, "centroids": 16, "iterations": 3},
        "recommender": {
            "item": {"width": 16},
            "light": {"hidden_size": 16, "queries": 2, "max_history": 50},
            "llm": {"hidden_size": 16, "layers": 1, "recent": RECENT},
            "dmil": {"anchors": 2},
            "optim": {"epochs": 1, "batch_size": 32},
        },
        "evaluation": {"ks": [5, 10], "bootstrap": 20},
        "compute": {"engine": "torch"},
    }
    return parse(PipelineConfig, values)


def build_tiny_run(directory: Path, seed: int = 0, string_ids: bool = True, kind: str = "cosine") -> Path:
    """Build the run in `directory` and return it; `directory/bundle` is its release. Equal arguments, equal bytes."""
    return build_run(tiny_config(seed, string_ids, kind), directory)


def build_run(config: PipelineConfig, directory: Path) -> Path:
    """The same with a configuration of another size; `compute.engine` has to be torch."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.yaml").write_text(dump(config))
    tables = load_tables(config.data, config.seed)
    check(tables)
    prepare(tables, config.data, directory / "data")
    train(Stage1Task(config, directory), config.encoder.optim, config, directory, "encoder")
    encode(config, directory)
    code(config, directory)
    train(HybridTask(config, directory), config.recommender.optim, config, directory, "recommender")
    metrics = evaluate_run(directory, config)["metrics"]
    write_json(directory / "evaluation" / "metrics.json", metrics)
    for name in PARTS:
        write_manifest(directory / name, name)
    write_bundle(directory, config, directory / "bundle")
    return directory


def trending(run_dir: Path, target: Path, trend: Trend) -> Path:
    """The run's bundle, copied to `target`, with another trend and no bonus for neighbours."""
    shutil.copytree(run_dir / "bundle", target)
    save_neighbours(target / "recommender", {}, Neighbours())
    save_trend(target / "recommender", {}, trend, Sequences.open(run_dir / "data"), ITEMS)
    write_manifest(target, "bundle")
    return target


def neighboured(bundle: Path, run_dir: Path, target: Path, weight: float, keep: float) -> Path:
    """A bundle of the run, copied to `target`, with a bonus for neighbours."""
    shutil.copytree(bundle, target)
    found = Neighbours(weight, keep, similarity(Sequences.open(run_dir / "data"), ITEMS, 50))
    save_neighbours(target / "recommender", {}, found)
    write_manifest(target, "bundle")
    return target


def train(task: TrainTask, optim: OptimConfig, config: PipelineConfig, run_dir: Path, name: str) -> None:
    reporter = LocalReporter(run_dir / name / "checkpoints")
    result = fit(task, optim, ComputeConfig(engine="torch"), config.seed, reporter)
    model = task.build()
    load_weights(model, result.state)
    task.export(model, run_dir / name)


def encode(config: PipelineConfig, run_dir: Path) -> None:
    encoder = ContentEncoder.from_pretrained(run_dir / "encoder")
    for part in part_paths(run_dir / "data" / "items"):
        encode_part(encoder, part, run_dir / "embeddings" / part.name, config.encoder.encode_batch)


def code(config: PipelineConfig, run_dir: Path) -> None:
    embeddings = run_dir / "embeddings"
    rows, ids = torch.from_numpy(read_vectors(embeddings)), np.arange(count_rows(embeddings))
    fitter = fit_codebook if config.codebook.kind == "cosine" else fit_variant
    fitter(rows, ids, config.codebook, config.seed, IdentityReducer()).save_pretrained(run_dir / "codebook")
    codebook = open_codebook(run_dir / "codebook")
    for part in part_paths(embeddings):
        codebook.code_part(part, run_dir / "codes" / part.name)
    report = sample_report(codebook, embeddings, codebook.open_items(run_dir / "codes"))
    write_json(run_dir / "codebook" / "report.json", report)

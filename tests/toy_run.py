"""A run directory up to the codes, in a second and without Ray: what stage 2 needs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from hymirec.catalog.normalise import Tables
from hymirec.catalog.prepare import prepare
from hymirec.catalog.vectors import write_vectors
from hymirec.codebook import ResidualCodebook, code_part
from hymirec.config import PipelineConfig, override, parse

ITEMS, USERS, WIDTH, LAYERS, CENTROIDS = 48, 60, 12, 2, 8
TOPICS = 6

SMALL: dict[str, Any] = {
    "data": {"min_user_interactions": 5, "repeats": "keep"},
    "recommender": {
        "item": {"width": 16, "window": 4},
        "light": {"hidden_size": 16, "heads": 2, "queries": 2, "max_history": 20},
        "llm": {"hidden_size": 16, "layers": 2, "heads": 2, "recent": 6},
        "dmil": {"anchors": 3, "window": 3},
        "optim": {"epochs": 2, "batch_size": 16, "lr": 5e-3},
    },
    "evaluation": {"ks": [5, 10], "bootstrap": 50, "batch_users": 16},
}


def toy_config(*assignments: str) -> PipelineConfig:
    """The small configuration, changed as by `--set`."""
    return parse(PipelineConfig, override(SMALL, assignments))


def toy_tables(seed: int = 0, unsold: int = 0) -> Tables:
    """Users walk through the items of one topic in order, and now and then change the topic.

    `unsold` further items are in the catalogue, which nobody takes.
    """
    rng = np.random.default_rng(seed)
    user, item, ts = [], [], []
    for u in range(USERS):
        here, clock = int(rng.integers(ITEMS)), 1_600_000_000 + int(rng.integers(10_000))
        for _ in range(int(rng.integers(5, 25))):
            user.append(u)
            item.append(here)
            ts.append(clock)
            here = (here + TOPICS) % ITEMS if rng.random() < 0.8 else int(rng.integers(ITEMS))
            clock += int(rng.choice([0, 60, 86_400]))
    titles = [f"topic {i % TOPICS} thing {i}" for i in range(ITEMS + unsold)]
    return Tables(
        pa.table({"item": list(range(len(titles))), "title": titles}), pa.table({"user": user, "item": item, "ts": ts})
    )


def toy_run(run_dir: Path, config: PipelineConfig, part_rows: int = 20, unsold: int = 0) -> None:
    """Write data/, embeddings/, codebook/ and codes/."""
    items = ITEMS + unsold
    prepare(toy_tables(unsold=unsold), config.data.model_copy(update={"part_rows": part_rows}), run_dir / "data")
    rng = np.random.default_rng(1)
    topics = rng.standard_normal((TOPICS, WIDTH))
    vectors = topics[np.arange(items) % TOPICS] + 0.3 * rng.standard_normal((items, WIDTH))
    directions = torch.from_numpy(rng.standard_normal((LAYERS, CENTROIDS, WIDTH))).float()
    codebook = ResidualCodebook(torch.nn.functional.normalize(directions, dim=2))
    codebook.save_pretrained(run_dir / "codebook")
    for part, start in enumerate(range(0, items, part_rows)):
        index = np.arange(start, min(start + part_rows, items), dtype=np.int32)
        source = run_dir / "embeddings" / f"part-{part:05d}.parquet"
        write_vectors(source, index, vectors[index].astype(np.float32))
        code_part(codebook, source, run_dir / "codes" / source.name, "float16")

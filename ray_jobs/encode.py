"""Encode all items: Ray Data over part files, a pool of encoders on CPUs or GPUs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import torch

from hymirec.catalog.parts import part_paths, read_table
from hymirec.catalog.schemas import ITEMS_DIR, TEXT
from hymirec.catalog.vectors import vector_width
from hymirec.config import PipelineConfig
from hymirec.encoder import ContentEncoder, encode_part
from ray_jobs.console import OnProgress
from ray_jobs.parts import map_parts


class EncodeWorker:
    """Holds the encoder; one call encodes one part."""

    def __init__(self, encoder_dir: str, target: str, batch: int, threads: int, use_gpu: bool, bf16: bool) -> None:
        torch.set_num_threads(threads)
        dtype = torch.bfloat16 if bf16 else torch.float32
        self._encoder = ContentEncoder.from_pretrained(encoder_dir, dtype=dtype).to("cuda" if use_gpu else "cpu")
        self._target = Path(target)
        self._batch = batch

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Encode the parts of the batch."""
        paths = [Path(str(path)) for path in batch["part"]]
        stats = [encode_part(self._encoder, path, self._target / path.name, self._batch) for path in paths]
        return {"rows": np.array([s.rows for s in stats]), "fallbacks": np.array([s.fallbacks for s in stats])}


def encode_items(
    config: PipelineConfig, encoder: Path, items: Path, out: Path, on_progress: OnProgress | None = None
) -> None:
    """Write `out/part-*.parquet`, one for each part of `items`, with the encoder of a directory."""
    compute = config.compute
    arguments = {
        "encoder_dir": str(encoder),
        "target": str(out),
        "batch": config.encoder.encode_batch,
        "threads": compute.threads_per_worker,
        "use_gpu": compute.use_gpu,
        "bf16": compute.bf16,
    }
    map_parts(EncodeWorker, arguments, items, out, compute, on_progress)


def encode_step(
    config: PipelineConfig, run_dir: Path, out: Path, on_progress: OnProgress | None = None
) -> dict[str, Any]:
    """Write `out/part-*.parquet`, one for each part of `run_dir/data/items`, with the encoder of `run_dir/encoder`.

    Parts that are already in `out` stay as they are. `on_progress(done, total)` counts parts. Returns {"width": D,
    "without_text": items that have the fallback's embedding}, the same after a resume. Raises NonFiniteEmbeddingError.
    """
    items = run_dir / "data" / ITEMS_DIR
    encode_items(config, run_dir / "encoder", items, out, on_progress)
    texts = (read_table(path, [TEXT])[TEXT] for path in part_paths(items))
    without_text = sum(pc.sum(pc.equal(pc.utf8_trim_whitespace(column), "")).as_py() or 0 for column in texts)
    return {"width": vector_width(out), "without_text": without_text}

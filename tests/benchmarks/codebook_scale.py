"""Millions of items end to end on one machine: made, fitted and coded through Ray Data and Ray Train.

Prints rows a second of each step and the peak memory of every kind of process. Not part of `make bench` (minutes):

    python tests/benchmarks/codebook_scale.py --items 2000000 --out runs/scale --json docs/results/codebook-scale.json
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parent.parent.parent)]

import numpy as np
import psutil  # type: ignore[import-untyped]
import ray

from hymirec.artifacts import read_json, write_json
from hymirec.catalog.parts import part_name
from hymirec.catalog.vectors import write_vectors
from hymirec.codebook import ItemCodes
from hymirec.config import CodebookConfig, ComputeConfig, PipelineConfig
from ray_jobs.cluster import connect
from ray_jobs.codebook import codebook_step, codes_step

PART_ROWS = 50_000
CLUSTERS = 20_000
# Process titles of Ray, and what they are here.
KINDS = {"RayTrainWorker": "fit worker", "MapWorker": "code worker", "ReadParquet": "reader", "raylet": "raylet"}


class Parts:
    """Writes parts of synthetic unit vectors around many directions, some far more popular than others."""

    def __init__(self, out: str, items: int, width: int) -> None:
        self._out, self._items, self._width = Path(out), items, width
        self._centres = np.random.default_rng(0).standard_normal((CLUSTERS, width), dtype=np.float32)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """One part a row of the batch."""
        for number in batch["id"]:
            rng = np.random.default_rng([1, int(number)])
            start = int(number) * PART_ROWS
            rows = min(PART_ROWS, self._items - start)
            which = (CLUSTERS * rng.random(rows) ** 2).astype(np.int64)
            x = self._centres[which] + rng.standard_normal((rows, self._width), dtype=np.float32)
            x /= np.linalg.norm(x, axis=1, keepdims=True)
            index = np.arange(start, start + rows, dtype=np.int32)
            write_vectors(self._out / part_name(int(number)), index, x)
        return {"done": batch["id"]}


class Memory:
    """Peak resident megabytes of this process and of its descendants by kind, sampled twice a second.

    Shared pages (Ray's object store, mapped files) are told apart: `own` leaves them out.
    """

    def __init__(self) -> None:
        self.peaks: dict[str, dict[str, int]] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> dict[str, dict[str, int]]:
        """End, and tell."""
        self._stop.set()
        self._thread.join()
        return self.peaks

    def _watch(self) -> None:
        me = psutil.Process()
        while not self._stop.wait(0.5):
            for process in [me, *me.children(recursive=True)]:
                try:
                    title, memory = " ".join(process.cmdline()), process.memory_info()
                except psutil.Error:
                    continue
                kind = "driver" if process.pid == os.getpid() else None
                kind = kind or next((name for key, name in KINDS.items() if key in title), "other")
                found = {"rss_mb": memory.rss >> 20, "own_mb": (memory.rss - memory.shared) >> 20}
                seen = self.peaks.setdefault(kind, found)
                self.peaks[kind] = {key: max(seen[key], found[key]) for key in found}


def timed(work: Callable[[], object]) -> float:
    """Seconds of one call."""
    start = time.monotonic()
    work()
    return time.monotonic() - start


def main() -> None:
    """Run all three steps."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, default=2_000_000)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--centroids", type=int, default=4096)
    parser.add_argument("--iterations", type=int, default=6)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--memory-mb", type=int, default=192)
    parser.add_argument("--out", type=Path, default=Path("runs/scale"))
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    run = args.out.resolve()
    config = PipelineConfig(
        codebook=CodebookConfig(
            layers=3,
            centroids=args.centroids,
            iterations=args.iterations,
            magnitudes="lloyd4",
            memory_mb=args.memory_mb,
        ),
        compute=ComputeConfig(workers=args.workers, encode_actors=2),
    )
    connect(config.compute)
    memory = Memory()
    parts = -(-args.items // PART_ROWS)
    make = timed(
        lambda: (
            ray.data.range(parts, override_num_blocks=parts)
            .map_batches(
                Parts,
                fn_constructor_args=(str(run / "embeddings"), args.items, args.width),
                batch_size=1,
                concurrency=2,
                num_cpus=0.5,
            )
            .materialize()
        )
    )
    fit = timed(lambda: codebook_step(config, run, run / "codebook", "s" * 64))
    code = timed(lambda: codes_step(config, run, run / "codes"))
    facts, report = read_json(run / "codebook" / "timing.json"), read_json(run / "codebook" / "report.json")
    passes = args.items * args.iterations * 3
    row = {
        "items": args.items,
        "width": args.width,
        "layers": 3,
        "centroids": args.centroids,
        "iterations": args.iterations,
        "workers": args.workers,
        "memory_mb": args.memory_mb,
        "seconds": {"make": round(make, 1), "fit": round(fit, 1), "code": round(code, 1)},
        "rows_per_second": {
            "make": round(args.items / make),
            "fit_passes": round(passes / sum(facts["layer_seconds"])),
            "code": round(args.items / code),
        },
        "fit": facts,
        "peak": memory.stop(),
        "bytes_per_item": ItemCodes.open(run / "codes").bytes_per_item,
        "cosine": report["cosine_mean"],
        "usage": [
            {key: layer["usage_fitted"][key] for key in ("max_over_mean", "cv")} for layer in report["per_layer"]
        ],
    }
    sys.stdout.write(json.dumps(row, indent=2) + "\n")
    if args.json:
        write_json(args.json, row)


if __name__ == "__main__":
    main()

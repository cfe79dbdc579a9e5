"""One balanced iteration of our k-means, and a whole fit, against faiss.Kmeans (spherical, not balanced).

Rows are in memory on both sides, as each wants them: fp32 for faiss, rotated 8-bit directions for ours. The whole fit
includes what ours needs to make them, and both sides' seeding.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import faiss
import numpy as np
import torch
from bench_kit import Figure, compare, main
from numpy.typing import NDArray

from hymirec.codebook import IdentityReducer, fit_codebook
from hymirec.codebook.balanced import run_pass
from hymirec.codebook.exact import mix
from hymirec.codebook.kernels import choose
from hymirec.codebook.rotation import Rotation, quantised
from hymirec.codebook.shard import build_shard
from hymirec.config import CodebookConfig

SHAPES = [(500_000, 256, 1024, 3.5), (100_000, 2048, 4096, 6.0)]
THREADS = 2
CPU = torch.device("cpu")


def clustered(rows: int, width: int) -> NDArray[np.float32]:
    """Unit rows around 2,000 directions."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((2000, width), dtype=np.float32)
    x = centres[rng.integers(0, len(centres), rows)]
    x += rng.standard_normal((rows, width), dtype=np.float32)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    return x


def iteration(rows: int, width: int, count: int, goal: float) -> Figure:
    """One pass and the centroids that it gives."""
    x = clustered(rows, width)
    rotation = Rotation(width)
    kernel = choose("auto", CPU)
    hashes = mix(np.arange(rows, dtype=np.uint64), 0)
    shard = build_shard([(torch.from_numpy(x), hashes)], rotation, 32, 1 << 20, CPU)
    start = x[np.random.default_rng(1).choice(rows, count, replace=False)].copy()
    units, price = rotation.directions(torch.from_numpy(start)), torch.zeros(count, dtype=torch.float64)

    def ours() -> None:
        done = run_pass(shard, units, price, 0.1, IdentityReducer(), kernel, rotation.length)
        quantised(done.sums_KP.double(), rotation.length)

    def peer() -> None:
        kmeans = faiss.Kmeans(width, count, niter=1, spherical=True, max_points_per_centroid=rows)
        kmeans.train(x, init_centroids=start)

    return compare(f"one balanced iteration, {rows} x {width}, k {count} ({kernel.name})", ours, peer, goal)


def whole(rows: int, width: int, count: int) -> Figure:
    """Ten passes from raw rows to centroids."""
    x, ids = clustered(rows, width), np.arange(rows)

    def ours() -> None:
        fit_codebook(x, ids, CodebookConfig(layers=1, centroids=count, iterations=10), 0, IdentityReducer())

    def peer() -> None:
        faiss.Kmeans(width, count, niter=10, spherical=True, max_points_per_centroid=rows).train(x)

    return compare(f"10 passes with seeding, {rows} x {width}, k {count}", ours, peer, 1.0, rounds=3)


def figures() -> list[Figure]:
    """Equal threads on both sides."""
    torch.set_num_threads(THREADS)
    faiss.omp_set_num_threads(THREADS)
    return [iteration(*shape) for shape in SHAPES] + [whole(500_000, 256, 1024)]


if __name__ == "__main__":
    main(figures)

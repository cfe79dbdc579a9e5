"""One pass of our balanced cosine k-means against one iteration of faiss.Kmeans (spherical, not balanced)."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import faiss
import numpy as np
import torch
from bench_kit import compare, main

from hymirec.codebook import IdentityReducer, fit_codebook
from hymirec.config import CodebookConfig

ROWS, WIDTH, CENTROIDS, GOAL = 50_000, 256, 1024, 3.5


def figures() -> list[dict[str, object]]:
    """Clustered rows, one thread each, seeding included on both sides."""
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    rng = np.random.default_rng(0)
    centers = rng.standard_normal((500, WIDTH))
    x = (centers[rng.integers(0, 500, ROWS)] + 0.7 * rng.standard_normal((ROWS, WIDTH))).astype(np.float32)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    ids = np.arange(ROWS)

    def ours() -> None:
        config = CodebookConfig(layers=1, centroids=CENTROIDS, iterations=4)
        fit_codebook(x, ids, config, 0, IdentityReducer())

    def peer() -> None:
        kmeans = faiss.Kmeans(WIDTH, CENTROIDS, niter=4, spherical=True, seed=0, max_points_per_centroid=ROWS)
        kmeans.train(x)

    return [compare(f"4 balanced passes with seeding, {ROWS} x {WIDTH}, k {CENTROIDS}", ours, peer, GOAL)]


if __name__ == "__main__":
    main(figures)

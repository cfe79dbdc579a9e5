"""Coding rows, greedy, against faiss.ResidualQuantizer with a beam of 1: time, and cosine of what is decoded."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import faiss
import numpy as np
import torch
from bench_kit import Figure, compare, main, value
from numpy.typing import NDArray

from hymirec.codebook import IdentityReducer, fit_codebook
from hymirec.config import CodebookConfig

ROWS, WIDTHS, LAYERS, BITS, GOAL = 50_000, (256, 384), 3, 10, 3.0
THREADS = 1


def clustered(width: int) -> NDArray[np.float32]:
    """Unit rows around 500 directions."""
    rng = np.random.default_rng(0)
    centers = rng.standard_normal((500, width))
    x = (centers[rng.integers(0, 500, ROWS)] + 0.7 * rng.standard_normal((ROWS, width))).astype(np.float32)
    unit: NDArray[np.float32] = x / np.linalg.norm(x, axis=1, keepdims=True)
    return unit


def mean_cosine(x: NDArray[np.float32], decoded: NDArray[np.float32]) -> float:
    """Mean of the cosines of rows."""
    return float(torch.cosine_similarity(torch.from_numpy(x), torch.from_numpy(decoded)).mean())


def figures() -> list[Figure]:
    """The same number of threads on both sides."""
    torch.set_num_threads(THREADS)
    faiss.omp_set_num_threads(THREADS)
    return [figure for width in WIDTHS for figure in figures_of(width)]


def figures_of(width: int) -> list[Figure]:
    """Both fitted on all rows beforehand, which is not timed."""
    x = clustered(width)
    config = CodebookConfig(layers=LAYERS, centroids=1 << BITS, iterations=5, balance="none", refit=False)
    codebook = fit_codebook(x, np.arange(ROWS), config, 0, IdentityReducer())
    peer = faiss.ResidualQuantizer(width, LAYERS, BITS)
    peer.max_beam_size = 1
    peer.train(x)
    rows = torch.from_numpy(x)
    shape = f"{ROWS} x {width}, L {LAYERS}, K {1 << BITS}"
    found = [
        compare(
            f"encode {shape}, {name}", partial(codebook.encode, rows, 1, refit), lambda: peer.compute_codes(x), GOAL
        )
        for name, refit in (("greedy", False), ("greedy, least-squares magnitudes", True))
    ]
    mine = mean_cosine(x, codebook.decode(*codebook.encode(rows, 1, False)).numpy())
    theirs = mean_cosine(x, peer.decode(peer.compute_codes(x)))
    return [*found, value(f"mean cosine {shape}, greedy", mine, theirs, 0.0, "cosine")]


if __name__ == "__main__":
    main(figures)

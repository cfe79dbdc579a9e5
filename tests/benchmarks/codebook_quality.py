"""What balance costs and gives: loads while fitting, cosine against plain k-means and OneRec's greedy, small sets.

On real title vectors where they are there (see titles.py), and on clustered rows.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
from bench_kit import Figure, main, value
from numpy.typing import NDArray
from titles import CACHE, title_vectors

from hymirec.codebook import IdentityReducer, ResidualCodebook, fit_codebook
from hymirec.codebook.strict import equal_codes
from hymirec.config import CodebookConfig

LAYERS, CENTROIDS, PASSES = 3, 1024, 12
SMALL_ROWS, SMALL_WIDTH, SMALL_CENTROIDS, SMALL_PASSES = 5000, 64, 50, 15


# k-means-constrained asks for older libraries than ours, so it runs in an environment of its own.
PEER = """
import sys, time, numpy as np
from k_means_constrained import KMeansConstrained
x, count, passes, size, seeds = np.load(sys.argv[1]), *map(int, sys.argv[3:])
codes, seconds = [], []
for seed in range(seeds):
    start = time.process_time()
    kmeans = KMeansConstrained(count, size_min=size, size_max=size, n_init=1, max_iter=passes, random_state=seed)
    codes.append(kmeans.fit_predict(x))
    seconds.append(time.process_time() - start)
np.savez(sys.argv[2], codes=codes, seconds=seconds)
"""


def constrained(x: NDArray[np.float32], size: int, seeds: int) -> tuple[NDArray[np.int64], list[float]]:
    """Codes (seeds, n) of k-means-constrained, and the CPU seconds of each fit."""
    env = CACHE / "k-means-constrained"
    if not (env / "done").is_file():
        subprocess.run([sys.executable, "-m", "uv", "venv", "--quiet", "--clear", str(env)], check=True)
        install = [sys.executable, "-m", "uv", "pip", "install", "--quiet", "--python", str(env / "bin" / "python")]
        subprocess.run([*install, "k-means-constrained>=0.9,<1"], check=True)
        (env / "done").touch()
    with tempfile.TemporaryDirectory() as directory:
        source, target = Path(directory) / "x.npy", Path(directory) / "codes.npz"
        np.save(source, x)
        numbers = [str(n) for n in (SMALL_CENTROIDS, SMALL_PASSES, size, seeds)]
        subprocess.run([str(env / "bin" / "python"), "-c", PEER, str(source), str(target), *numbers], check=True)
        found = np.load(target)
        return found["codes"], found["seconds"].tolist()


def fitted(x: NDArray[np.float32], balance: str, layers: int = LAYERS) -> ResidualCodebook:
    """A codebook of these rows."""
    config = CodebookConfig(layers=layers, centroids=CENTROIDS, iterations=PASSES, balance=balance, refit=False)
    return fit_codebook(x, np.arange(len(x)), config, 0, IdentityReducer())


def mean_cosine(codebook: ResidualCodebook, x: NDArray[np.float32]) -> float:
    """Mean cosine of rows and what their codes decode to."""
    return float(torch.cosine_similarity(codebook.decode(*codebook.encode(x)), torch.from_numpy(x)).mean())


def greedy_equal(x: NDArray[np.float32]) -> ResidualCodebook:
    """OneRec's balanced k-means (2502.18965, Algorithm 1): each centroid in turn takes its n / K nearest free rows."""
    rest = torch.from_numpy(x / np.linalg.norm(x, axis=1, keepdims=True))
    rows, found = len(x), []
    for _ in range(LAYERS):
        unit = torch.nn.functional.normalize(rest, dim=1)
        centroids = unit[torch.from_numpy(np.random.default_rng(0).choice(rows, CENTROIDS, replace=False))].clone()
        share = rows // CENTROIDS
        for _ in range(PASSES):
            scores_KN = centroids @ unit.T
            taken_N = torch.zeros(rows)
            code = torch.full((rows,), CENTROIDS - 1)
            for k in range(CENTROIDS - 1):
                nearest = (scores_KN[k] + taken_N).topk(share)[1]
                code[nearest], taken_N[nearest] = k, -torch.inf
            sums = torch.zeros_like(centroids).index_add_(0, code, unit)
            centroids = torch.nn.functional.normalize(sums, dim=1)
        found.append(centroids)
        nearest = torch.cat([(chunk @ centroids.T).argmax(1) for chunk in unit.split(4096)])
        chosen = centroids[nearest]
        rest = rest - (rest * chosen).sum(1, keepdim=True) * chosen
    return ResidualCodebook(torch.stack(found))


def balance_of(x: NDArray[np.float32], name: str) -> list[Figure]:
    """Loads of the last pass of every layer, and what they cost."""
    balanced, plain = fitted(x, "prices"), fitted(x, "none")
    usage = balanced.info["usage"]
    shape = f"{name}, L {LAYERS}, K {CENTROIDS}"
    cosine, without, greedy = (mean_cosine(codebook, x) for codebook in (balanced, plain, greedy_equal(x)))
    return [
        value(f"largest load over mean, {shape}", max(u["max_over_mean"] for u in usage), 0, 1.3, "x", at_least=False),
        value(f"CV of loads, worst layer, {shape}", max(u["cv"] for u in usage), 0, 0.05, "", at_least=False),
        value(f"cosine lost to balance, {shape}", without, cosine, 0.004, "cosine", at_least=False),
        value(f"cosine above equal-capacity greedy, {shape}", cosine, greedy, 0.015, "cosine"),
    ]


def small_set() -> list[Figure]:
    """Strict balance against k-means-constrained, one start each: mean cosine to one's own centroid, and CPU."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((SMALL_CENTROIDS, SMALL_WIDTH))
    which = (SMALL_CENTROIDS * rng.random(SMALL_ROWS) ** 1.5).astype(int)
    x = (centres[which] + rng.standard_normal((SMALL_ROWS, SMALL_WIDTH))).astype(np.float32)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    capacity = SMALL_ROWS // SMALL_CENTROIDS
    ids = np.arange(SMALL_ROWS)
    config = CodebookConfig(layers=1, centroids=SMALL_CENTROIDS, iterations=SMALL_PASSES, balance="strict")
    fit_codebook(x[:500], ids[:500], config, 0, IdentityReducer())

    def objective(code: NDArray[np.int64]) -> float:
        assert np.bincount(code).max() <= capacity
        sums = np.zeros((SMALL_CENTROIDS, SMALL_WIDTH))
        np.add.at(sums, code, x)
        return float(np.linalg.norm(sums, axis=1).sum() / SMALL_ROWS)

    ours, mine = [], []
    for seed in range(5):
        start = time.process_time()
        codebook = fit_codebook(x, ids, config, seed, IdentityReducer())
        mine.append(time.process_time() - start)
        ours.append(objective(strict_codes(codebook, x, capacity)))
    codes, peer = constrained(x, capacity, 5)
    theirs = [objective(code) for code in codes]
    shape = f"{SMALL_ROWS} x {SMALL_WIDTH}, k {SMALL_CENTROIDS}, strict"
    ratio = float(np.median(peer) / np.median(mine))
    return [
        value(f"mean cosine to own centroid, {shape}", float(np.median(ours)), float(np.median(theirs)), 0, "cosine"),
        value(f"CPU of k-means-constrained over ours, {shape}", ratio, 0, 3.0, "x"),
    ]


def strict_codes(codebook: ResidualCodebook, x: NDArray[np.float32], capacity: int) -> NDArray[np.int64]:
    """The best assignment of equal loads to fitted centroids."""
    scores = x @ codebook.centroids_LKD[0].numpy().T
    return equal_codes((scores * 2**20).astype(np.int64), capacity)


def figures() -> Iterator[Figure]:
    """A small set, clustered rows, then real titles."""
    torch.set_num_threads(2)
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((3000, 256))
    which = rng.integers(0, len(centres), 100_000)
    x = (centres[which] + rng.standard_normal((100_000, 256))).astype(np.float32)
    yield from small_set()
    yield from balance_of(x, "100,000 clustered rows x 256")
    yield from balance_of(title_vectors()[:100_000].astype(np.float32), "100,000 titles x 384")


if __name__ == "__main__":
    main(figures)

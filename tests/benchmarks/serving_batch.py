"""Exact search for many users at once against torch: products in fp32, the largest over the interests, `topk`.

CPU time of one thread, on random unit vectors: 128 dimensions, 4 interests a user, the 200 best items. Random vectors
are hard for a bound on rounding: no item stands out. The peer takes its users in parts, so that its scores fit a cache
where they can. Beside the figures: the share of its results that both find.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
from bench_kit import Figure, compare_timed, main, value
from numpy.typing import NDArray

from hymirec.config import RetrievalConfig
from hymirec.retrieval import ItemIndex, for_batches

WIDTH, INTERESTS, K, GOAL, RECALL = 128, 4, 200, 3.5, 0.995
# Items and users.
SIZES = ((4_000, 256), (50_000, 256), (500_000, 64))
# Scores that the peer holds at once.
SCORES = 1 << 23


def unit(rng: np.random.Generator, *shape: int) -> NDArray[np.float32]:
    """Random unit vectors."""
    x = rng.standard_normal(shape).astype(np.float32)
    found: NDArray[np.float32] = x / np.linalg.norm(x, axis=-1, keepdims=True)
    return found


def torch_flat(interests_BSW: torch.Tensor, vectors_NW: torch.Tensor) -> torch.Tensor:
    """The items (B, K) of each user."""
    rows = max(1, SCORES // (INTERESTS * len(vectors_NW)))
    found = []
    for part in interests_BSW.split(rows):
        scores = (part.reshape(-1, WIDTH) @ vectors_NW.T).view(len(part), INTERESTS, -1)
        found.append(scores.amax(dim=1).topk(K).indices)
    return torch.cat(found)


def cpu_seconds(run: Callable[[], object]) -> float:
    """CPU seconds of this thread in one call."""
    before = time.thread_time()
    run()
    return time.thread_time() - before


def figures() -> Iterator[Figure]:
    """One thread on both sides."""
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    for items, users in SIZES:
        vectors, interests = unit(rng, items, WIDTH), unit(rng, users, INTERESTS, WIDTH)
        index = for_batches(ItemIndex.build(vectors, RetrievalConfig(index="flat")))
        peer_vectors, peer_interests = torch.from_numpy(vectors), torch.from_numpy(interests)

        def ours(index: ItemIndex = index, interests: NDArray[np.float32] = interests) -> float:
            return cpu_seconds(lambda: index.search(interests, K))

        def peer(interests: torch.Tensor = peer_interests, vectors: torch.Tensor = peer_vectors) -> float:
            return cpu_seconds(lambda: torch_flat(interests, vectors))

        name = f"{users} users, {INTERESTS} interests, {items} items of {WIDTH}, K {K}"
        yield compare_timed(f"CPU of a search, {name}", ours, peer, GOAL)
        theirs = torch_flat(peer_interests, peer_vectors).numpy()
        shared = [np.isin(own.items, row).mean() for own, row in zip(index.search(interests, K), theirs, strict=True)]
        yield value(f"recall against torch, {name}", float(np.mean(shared)), 0.0, RECALL, "share")


if __name__ == "__main__":
    main(figures)

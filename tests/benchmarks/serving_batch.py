"""Exact search for many users at once against torch: products in fp32, the largest over the interests, `topk`.

CPU time of one thread, 4 interests a user, the 200 best items: on random unit vectors of 128 dimensions, which are hard
for a bound on rounding, as no item stands out, and on real ones, the titles of `titles.py` (384 dimensions), of which
some are items and others are interests. Once more with bonuses as `recommender.neighbours` gives them, for 1,000 items
of each user. The peer takes its users in parts, so that its scores fit a cache where they can. Beside the figures: the
share of its results that both find.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
from bench_kit import Figure, compare_timed, main, value
from numpy.typing import NDArray
from titles import title_vectors

from hymirec.config import RetrievalConfig
from hymirec.retrieval import Bonus, ItemIndex, for_batches

WIDTH, INTERESTS, K, GOAL, RECALL = 128, 4, 200, 3.5, 0.995
# Items and users.
SIZES = ((4_000, 256), (50_000, 256), (500_000, 64))
# Titles that are items; others are interests of so many users.
TITLES, TITLE_USERS = (4_000, 50_000, 100_000), 256
# Items with a bonus, of each user.
OWN = 1_000
# Scores that the peer holds at once.
SCORES = 1 << 23


def unit(rng: np.random.Generator, *shape: int) -> NDArray[np.float32]:
    """Random unit vectors."""
    x = rng.standard_normal(shape).astype(np.float32)
    found: NDArray[np.float32] = x / np.linalg.norm(x, axis=-1, keepdims=True)
    return found


def torch_flat(
    interests_BSW: torch.Tensor, vectors_NW: torch.Tensor, items_BH: torch.Tensor, values_BH: torch.Tensor
) -> torch.Tensor:
    """The items (B, K) of each user, with bonuses for H items of each."""
    rows = max(1, SCORES // (INTERESTS * len(vectors_NW)))
    found = []
    for part, items, values in zip(*(x.split(rows) for x in (interests_BSW, items_BH, values_BH)), strict=True):
        scores = (part.flatten(0, 1) @ vectors_NW.T).view(len(part), INTERESTS, -1).amax(dim=1)
        if items.shape[1]:
            scores.scatter_add_(1, items, values)
        found.append(scores.topk(K).indices)
    return torch.cat(found)


def cpu_seconds(run: Callable[[], object]) -> float:
    """CPU seconds of this thread in one call."""
    before = time.thread_time()
    run()
    return time.thread_time() - before


def compared(
    vectors: NDArray[np.float32], interests: NDArray[np.float32], what: str, own_items: int
) -> Iterator[Figure]:
    """A search for all users of `interests` (B, S, W), each with bonuses for so many items."""
    rng, users, items = np.random.default_rng(1), len(interests), len(vectors)
    index = for_batches(ItemIndex.build(vectors, RetrievalConfig(index="flat")))
    lifted = np.stack([np.sort(rng.choice(items, own_items, replace=False)) for _ in range(users)])
    values = rng.gamma(0.3, 0.05, lifted.shape).astype(np.float32)
    own = [Bonus(*row) for row in zip(lifted, values, strict=True)] if own_items else None
    asked = tuple(torch.from_numpy(x) for x in (interests, vectors, lifted, values))

    ours = partial(index.search, interests, K, own=own)
    peer = partial(torch_flat, *asked)
    bonuses = f", {own_items} bonuses each" if own_items else ""
    name = f"{users} users, {INTERESTS} interests, {items} {what} of {vectors.shape[1]}, K {K}{bonuses}"
    yield compare_timed(f"CPU of a search, {name}", partial(cpu_seconds, ours), partial(cpu_seconds, peer), GOAL)
    shared = [np.isin(hits.items, row).mean() for hits, row in zip(ours(), peer().numpy(), strict=True)]
    yield value(f"recall against torch, {name}", float(np.mean(shared)), 0.0, RECALL, "share")


def figures() -> Iterator[Figure]:
    """One thread on both sides."""
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    for items, users in SIZES:
        vectors, interests = unit(rng, items, WIDTH), unit(rng, users, INTERESTS, WIDTH)
        for own_items in (0, OWN):
            yield from compared(vectors, interests, "random vectors", own_items)
    titles = title_vectors().astype(np.float32)
    interests = titles[-TITLE_USERS * INTERESTS :].reshape(TITLE_USERS, INTERESTS, -1)
    for items in TITLES:
        for own_items in (0, OWN):
            yield from compared(titles[:items], interests, "titles", own_items)


if __name__ == "__main__":
    main(figures)

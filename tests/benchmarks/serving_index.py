"""Approximate indexes against the exact one on real vectors: 100,000 titles of 384 dimensions as items.

Other titles are the interests, three a user. `choose_index` raises each kind's effort until its recall@100 reaches the
target on half of the interests it is given; the recall here is that of interests which it never saw. Then the time of a
search of one user, one thread, the 100 best, against `flat` in the same run. Needs the titles of `titles.py`.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import faiss
import numpy as np
from bench_kit import Figure, compare, main, value
from titles import title_vectors

from hymirec.config import RetrievalConfig
from hymirec.retrieval import ItemIndex
from hymirec.retrieval.choice import choose_index, recall_at
from hymirec.retrieval.kinds import FaissIndex, Kind

ITEMS, GIVEN, USERS, INTERESTS, K = 100_000, 1_000, 100, 3, 100
KINDS: tuple[Kind, ...] = ("ivf_sq8", "hnsw")


def search_all(index: ItemIndex, interests: np.ndarray) -> None:
    """One user at a time."""
    for user in interests:
        index.search(user[None], K)


def figures() -> Iterator[Figure]:
    """Recall, the seconds that building takes, and times of both."""
    faiss.omp_set_num_threads(1)
    vectors = title_vectors().astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    items, given, asked = np.split(vectors, [ITEMS, ITEMS + GIVEN])
    asked = asked[: USERS * INTERESTS]
    interests = asked.reshape(USERS, INTERESTS, -1)
    exact = ItemIndex.build(items, RetrievalConfig(index="flat"))
    for kind in KINDS:
        config, begun = RetrievalConfig(index=kind), time.perf_counter()
        index, report = choose_index(items, config, given, f"{GIVEN} titles")
        built, searcher = time.perf_counter() - begun, index.searcher
        assert isinstance(searcher, FaissIndex)
        name = f"{kind} got {report.kind} {report.parameters}, {ITEMS} titles"
        yield value(f"recall@100 on titles it never saw, {name}", recall_at(searcher, asked), 0.0, 0.98, "share")
        yield value(f"seconds to build and choose, {name}", built, 0.0, 600.0, "s", at_least=False)
        yield compare(
            f"{USERS} users, {name}", partial(search_all, index, interests), partial(search_all, exact, interests), 1.0
        )


if __name__ == "__main__":
    main(figures)

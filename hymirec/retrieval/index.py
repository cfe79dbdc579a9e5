"""The index over item vectors: an item's score is its largest cosine over a user's interests.

Each interest is searched for the same K with the inner product of unit vectors, and the lists are merged by score: an
item among the top K of the maximum is among the top K of the interest that attains it, so the merge is exact whenever
the search of one interest is. Never a sum over interests.

Where scores are equal across the end of a list (items with one text and no learned part have one vector), the list is
searched again twice as far, so that the items of a tie are always those with the lowest index.

A request may bring a bonus for some items, which is added to their scores. An item can only enter the list over one
that the search found if its bonus makes up for being below the search's last score: those few are scored one by one
(the threshold algorithm of Fagin, Lotem and Naor, 2003, with one list sorted), so the list is as exact as the search.

B requests  S interests  W width  N items  K results in total  H items with a bonus
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from hymirec.config import RetrievalConfig
from hymirec.errors import ArtifactDamagedError, ArtifactMissingError, RequestError

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]
# With a bonus, this many times K are searched for: the lower the last score, the fewer items are scored one by one.
BONUS_FETCH = 4


@dataclass(frozen=True)
class Hits:
    """One request's results, best first; ties in ascending order of item index. Fewer than K when no more are left.

    `interests` names the interest that gives the score, the first of equal ones.
    """

    items: Ints
    scores: Floats
    interests: Ints

    def __len__(self) -> int:
        return len(self.items)


@dataclass(frozen=True)
class Bonus:
    """What is added to the scores of some items: `items` (H,) ascending, `values` (H,), none below 0."""

    items: Ints
    values: Floats

    def of(self, items: Ints) -> Floats:
        """The bonus of each item (n,), 0 for one that has none."""
        if not len(self.items):
            return np.zeros(len(items), np.float32)
        place = np.minimum(np.searchsorted(self.items, items), len(self.items) - 1)
        return np.where(self.items[place] == items, self.values[place], np.float32(0))


class ItemIndex:
    """A faiss index of unit item vectors (N, W); row = item index. Safe to search from several threads."""

    def __init__(self, index: faiss.Index) -> None:
        self._index = index
        self._approximate = isinstance(index, faiss.IndexHNSW)
        # HNSW keeps the vectors in a flat index of its own.
        inner: Any = index
        self._flat = faiss.downcast_index(inner.storage) if self._approximate else index

    @classmethod
    def build(cls, vectors_NW: Floats, config: RetrievalConfig) -> ItemIndex:
        """`flat` is exact; `hnsw` is approximate and faster from some 10^5 items on.

        Links of an HNSW graph depend on the order of insertion: it is built by one thread, so that equal vectors give
        equal bytes.
        """
        width = vectors_NW.shape[1]
        if config.index == "flat":
            index: faiss.Index = faiss.IndexFlatIP(width)
        else:
            index = faiss.IndexHNSWFlat(width, config.hnsw_links, faiss.METRIC_INNER_PRODUCT)
            index.hnsw.efConstruction = config.hnsw_search
            index.hnsw.efSearch = config.hnsw_search
        built = cls(index)
        built.add(vectors_NW)
        return built

    def add(self, vectors_MW: Floats) -> None:
        """Append the vectors (M, W) of new items. Not while others search."""
        with _one_thread():
            self._index.add(np.ascontiguousarray(vectors_MW, np.float32))

    def __len__(self) -> int:
        return int(self._index.ntotal)

    @property
    def width(self) -> int:
        """W."""
        return int(self._index.d)

    def save(self, path: Path) -> None:
        """Write faiss's own format."""
        faiss.write_index(self._index, str(path))

    @classmethod
    def open(cls, path: Path) -> ItemIndex:
        """Read an index whose bytes were verified. Raises ArtifactMissingError or ArtifactDamagedError."""
        if not path.is_file():
            raise ArtifactMissingError(f"{path} is not there; write the bundle again")
        try:
            return cls(faiss.read_index(str(path)))
        except RuntimeError as e:
            raise ArtifactDamagedError(f"{path} is no faiss index ({e}); write the bundle again") from e

    def search(
        self,
        interests_BSW: Floats,
        k: int,
        exclude: Sequence[NDArray[np.integer]] | None = None,
        bonus: Sequence[Bonus] | None = None,
    ) -> list[Hits]:
        """The K best items of each request that are not among its excluded ones, by score and bonus if there is one.

        Over-fetches as many as are excluded and filters exactly, so excluded items never make a list shorter than the
        catalogue allows. Raises RequestError for k < 1.
        """
        if k < 1:
            raise RequestError(f"k must be at least 1, got {k}")
        batch, interests, width = interests_BSW.shape
        excluded = [np.unique(row) for row in exclude] if exclude is not None else [np.empty(0, np.int64)] * batch
        if bonus is not None:
            found = self.search(interests_BSW, BONUS_FETCH * k, excluded)
            return [self._with_bonus(*row, k) for row in zip(interests_BSW, found, excluded, bonus, strict=True)]
        wanted = min(len(self), k + max((len(row) for row in excluded), default=0))
        if not batch or not wanted:
            return [Hits(np.empty(0, np.int64), np.empty(0, np.float32), np.empty(0, np.int64))] * batch
        queries = np.ascontiguousarray(interests_BSW.reshape(batch * interests, width), np.float32)
        scores, items = self._index.search(queries, wanted)
        scores, items = scores.reshape(batch, interests, wanted), items.reshape(batch, interests, wanted)
        # What a request gets, and what it costs to merge, does not depend on how much others exclude.
        own = [min(wanted, k + len(row)) for row in excluded]
        return [
            self._row(
                interests_BSW[row],
                items[row, :, : own[row]],
                scores[row, :, : own[row]],
                excluded[row],
                k,
                self._approximate,
            )
            for row in range(batch)
        ]

    def _with_bonus(
        self, interests_SW: Floats, found: Hits, excluded: NDArray[np.integer], bonus: Bonus, k: int
    ) -> Hits:
        """The best of what was found and of what a bonus lifts above it."""
        own = found.scores + bonus.of(found.items)
        everything = len(found) < BONUS_FETCH * k
        gap = np.inf if everything else np.partition(own, -k)[-k] - found.scores[-1]
        lifted = bonus.items[bonus.values >= gap]
        lifted = lifted[~np.isin(lifted, excluded) & ~np.isin(lifted, found.items)]
        scores_HS = self._vectors()[lifted] @ interests_SW.T
        scores = np.concatenate([own, scores_HS.max(axis=1, initial=-np.inf) + bonus.of(lifted)])
        items = np.concatenate([found.items, lifted])
        interests = np.concatenate([found.interests, scores_HS.argmax(axis=1)])
        order = np.lexsort((items, -scores))[:k]
        return Hits(items[order], scores[order], interests[order])

    def vectors(self, items: Ints) -> Floats:
        """Unit vectors (n, W) of items (n,)."""
        return self._vectors()[items]

    def _vectors(self) -> Floats:
        """All vectors (N, W), without a copy."""
        flat: Any = self._flat
        vectors: Floats = faiss.rev_swig_ptr(flat.get_xb(), flat.ntotal * flat.d).reshape(flat.ntotal, flat.d)
        return vectors

    def _row(
        self,
        interests_SW: Floats,
        items_SF: Ints,
        scores_SF: Floats,
        excluded: NDArray[np.integer],
        k: int,
        approximate: bool,
    ) -> Hits:
        """Merge one request's lists; search further while they are too short or end inside a tie."""
        fetched = items_SF.shape[1]
        hits = merge(items_SF, scores_SF, excluded, k)
        if approximate:
            # A graph may not reach all items that were asked for; few requests ask for so many.
            if (items_SF >= 0).all():
                return hits
        elif fetched == len(self) or hits.scores[-1] > scores_SF[:, -1].max():
            return hits
        else:
            fetched = min(len(self), 2 * fetched)
        scores_SF, items_SF = self._flat.search(np.ascontiguousarray(interests_SW, np.float32), fetched)
        return self._row(interests_SW, items_SF, scores_SF, excluded, k, approximate=False)


def merge(items_SF: Ints, scores_SF: Floats, excluded: NDArray[np.integer], k: int) -> Hits:
    """Best score of each item over S lists of F, without the excluded ones; -1 is no item.

    By falling score, then by item, then by interest.
    """
    items, scores = items_SF.reshape(-1), scores_SF.reshape(-1)
    interests = np.repeat(np.arange(items_SF.shape[0]), items_SF.shape[1])
    kept = (items >= 0) & ~np.isin(items, excluded)
    items, scores, interests = items[kept], scores[kept], interests[kept]
    order = np.lexsort((interests, items, -scores))
    items, scores, interests = items[order], scores[order], interests[order]
    first = np.sort(np.unique(items, return_index=True)[1])[:k]
    return Hits(items[first], scores[first], interests[first])


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(threads)

"""The index over item vectors: an item's score is its largest cosine over a user's interests.

Each interest is searched for the same K with the inner product of unit vectors, and the lists are merged by score: an
item among the top K of the maximum is among the top K of the interest that attains it, so the merge is exact whenever
the search of one interest is. Never a sum over interests.

B requests  S interests  W width  N items  K results in total
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import faiss
import numpy as np
from numpy.typing import NDArray

from hymirec.config import RetrievalConfig
from hymirec.errors import ArtifactDamagedError, ArtifactMissingError, RequestError


@dataclass(frozen=True)
class Hits:
    """One request's results, best first; ties in ascending order of item index. Fewer than K when no more are left."""

    items: NDArray[np.int64]
    scores: NDArray[np.float32]
    interests: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.items)


class ItemIndex:
    """A faiss index of unit item vectors (N, W); row = item index."""

    def __init__(self, index: faiss.Index) -> None:
        self._index = index

    @classmethod
    def build(cls, vectors_NW: NDArray[np.float32], config: RetrievalConfig) -> ItemIndex:
        """`flat` is exact; `hnsw` is approximate and faster from some 10^5 items on."""
        width = vectors_NW.shape[1]
        if config.index == "flat":
            index: faiss.Index = faiss.IndexFlatIP(width)
        else:
            index = faiss.IndexHNSWFlat(width, config.hnsw_links, faiss.METRIC_INNER_PRODUCT)
            index.hnsw.efConstruction = 2 * config.hnsw_search
            index.hnsw.efSearch = config.hnsw_search
        index.add(np.ascontiguousarray(vectors_NW, np.float32))
        return cls(index)

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
        self, interests_BSW: NDArray[np.float32], k: int, exclude: Sequence[NDArray[np.integer]] | None = None
    ) -> list[Hits]:
        """The K best items of each request that are not among its excluded ones.

        Over-fetches as many as are excluded and filters exactly, so excluded items never make a list shorter than the
        catalogue allows. Raises RequestError for k < 1.
        """
        if k < 1:
            raise RequestError(f"k must be at least 1, got {k}")
        batch, interests, width = interests_BSW.shape
        excluded = exclude if exclude is not None else [np.empty(0, np.int64)] * batch
        queries = np.ascontiguousarray(interests_BSW.reshape(batch * interests, width), np.float32)
        wanted = min(len(self), k + max((len(np.unique(row)) for row in excluded), default=0))
        if wanted == 0:
            empty = Hits(np.empty(0, np.int64), np.empty(0, np.float32), np.empty(0, np.int64))
            return [empty] * batch
        scores, items = self._index.search(queries, wanted)
        scores, items = scores.reshape(batch, -1), items.reshape(batch, -1)
        interest = np.repeat(np.arange(interests), wanted)
        return [_merge(items[row], scores[row], interest, excluded[row], k) for row in range(batch)]


def _merge(
    items: NDArray[np.int64],
    scores: NDArray[np.float32],
    interests: NDArray[np.int64],
    excluded: NDArray[np.integer],
    k: int,
) -> Hits:
    """Best score of each item, without the excluded ones; by falling score, then by item, then by interest."""
    kept = (items >= 0) & ~np.isin(items, excluded)
    items, scores, interests = items[kept], scores[kept], interests[kept]
    order = np.lexsort((interests, items, -scores))
    items, scores, interests = items[order], scores[order], interests[order]
    first = np.sort(np.unique(items, return_index=True)[1])[:k]
    return Hits(items[first], scores[first], interests[first])

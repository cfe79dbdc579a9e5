"""The index over item vectors: an item's score is its largest cosine over a user's interests.

Each interest is searched for the same K with the inner product of unit vectors, and the lists are merged by score: an
item among the top K of the maximum is among the top K of the interest that attains it, so the merge is exact whenever
the search of one interest is. Never a sum over interests.

Where scores are equal across the end of a list (items with one text and no learned part have one vector), the list is
searched again twice as far, in all products, so that the items of a tie are always those with the lowest index.

A request may bring a bonus for some items, which is added to their scores. An item can only enter the list over one
that the search found if its bonus makes up for being below the search's last score: those few are scored one by one
(the threshold algorithm of Fagin, Lotem and Naor, 2003, with one list sorted), so the list is as exact as the search.

B requests  S interests  W width  N items  K results in total  H items with a bonus
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
from hymirec.retrieval.kinds import KINDS, FaissIndex, Floats, Ints, Searcher, kind_for, open_faiss

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

    def __add__(self, other: Bonus) -> Bonus:
        """Both."""
        if not len(self.items) or not len(other.items):
            return self if len(self.items) else other
        items = np.union1d(self.items, other.items)
        return Bonus(items, self.of(items) + other.of(items))


class ItemIndex:
    """An index of unit item vectors (N, W); row = item index. Safe to search from several threads."""

    def __init__(self, searcher: Searcher) -> None:
        self.searcher = searcher

    @classmethod
    def build(cls, vectors_NW: Floats, config: RetrievalConfig) -> ItemIndex:
        """An index of the configured kind, with the effort that it starts from; `choose_index` raises that."""
        return cls(KINDS[kind_for(len(vectors_NW), config)].build(vectors_NW, config))

    def __len__(self) -> int:
        return len(self.searcher)

    @property
    def width(self) -> int:
        """W."""
        return self.searcher.width

    def save(self, path: Path) -> None:
        """Write faiss's own format."""
        assert isinstance(self.searcher, FaissIndex)
        self.searcher.save(str(path))

    @classmethod
    def open(cls, path: Path) -> ItemIndex:
        """Read an index whose bytes were verified. Raises ArtifactMissingError or ArtifactDamagedError."""
        if not path.is_file():
            raise ArtifactMissingError(f"{path} is not there; write the bundle again")
        try:
            return cls(open_faiss(faiss.read_index(str(path))))
        except RuntimeError as e:
            raise ArtifactDamagedError(f"{path} is no faiss index ({e}); write the bundle again") from e

    def search(
        self,
        interests_BSW: Floats,
        k: int,
        exclude: Sequence[NDArray[np.integer]] | None = None,
        bonus: Sequence[Bonus] | None = None,
        own: Sequence[Bonus] | None = None,
    ) -> list[Hits]:
        """The K best items of each request that are not among its excluded ones, by score and bonuses if there are any.

        `bonus` is what requests may share, such as what is popular at a time, and `own` what no two have in common.

        Over-fetches as many as are excluded and filters exactly, so excluded items never make a list shorter than the
        catalogue allows. Raises RequestError for k < 1.
        """
        if k < 1:
            raise RequestError(f"k must be at least 1, got {k}")
        batch, interests, width = interests_BSW.shape
        excluded = [np.unique(row) for row in exclude] if exclude is not None else [np.empty(0, np.int64)] * batch
        if bonus is not None and own is not None:
            bonus = [shared + alone for shared, alone in zip(bonus, own, strict=True)]
        bonus = own if bonus is None else bonus
        if bonus is not None:
            found = self.search(interests_BSW, BONUS_FETCH * k, excluded)
            return [self._with_bonus(*row, k) for row in zip(interests_BSW, found, excluded, bonus, strict=True)]
        # One more than can be needed: it shows whether a list ends inside a tie.
        wanted = min(len(self), k + 1 + max((len(row) for row in excluded), default=0))
        if not batch or not wanted:
            return [Hits(np.empty(0, np.int64), np.empty(0, np.float32), np.empty(0, np.int64))] * batch
        queries = np.ascontiguousarray(interests_BSW.reshape(batch * interests, width), np.float32)
        # Half of the catalogue is found by going through all of it.
        exact = self.searcher.exact or 2 * wanted >= len(self)
        scores, items = (self.searcher.search_exactly if exact else self.searcher.search)(queries, wanted)
        scores, items = scores.reshape(batch, interests, wanted), items.reshape(batch, interests, wanted)
        # What a request gets, and what it costs to merge, does not depend on how much others exclude.
        lengths = [min(wanted, k + 1 + len(row)) for row in excluded]
        return [
            self._row(
                interests_BSW[row],
                items[row, :, : lengths[row]],
                scores[row, :, : lengths[row]],
                excluded[row],
                k,
                exact,
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
        scores_HS = self.searcher.vectors[lifted] @ interests_SW.T
        scores = np.concatenate([own, scores_HS.max(axis=1, initial=-np.inf) + bonus.of(lifted)])
        items = np.concatenate([found.items, lifted])
        interests = np.concatenate([found.interests, scores_HS.argmax(axis=1)])
        order = np.lexsort((items, -scores))[:k]
        return Hits(items[order], scores[order], interests[order])

    def vectors(self, items: Ints) -> Floats:
        """Unit vectors (n, W) of items (n,)."""
        return self.searcher.vectors[items]

    def _row(
        self,
        interests_SW: Floats,
        items_SF: Ints,
        scores_SF: Floats,
        excluded: NDArray[np.integer],
        k: int,
        exact: bool,
    ) -> Hits:
        """Merge one request's lists; search further while they are too short or end inside a tie."""
        fetched = items_SF.shape[1]
        hits = merge(items_SF, scores_SF, excluded, k)
        if not exact and (items_SF < 0).any():
            # A graph may not reach all items that were asked for, nor do a few lists hold them; few requests ask so.
            further = fetched
        elif fetched == len(self) or not len(hits) or hits.scores[-1] > scores_SF[:, -1].max():
            return hits
        else:
            further = min(len(self), 2 * fetched)
        queries = np.ascontiguousarray(interests_SW, np.float32)
        scores_SF, items_SF = self.searcher.search_exactly(queries, further)
        return self._row(interests_SW, items_SF, scores_SF, excluded, k, exact=True)


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

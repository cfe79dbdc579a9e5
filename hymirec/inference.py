"""Recommendations from a bundle, without a server and without Ray.

    model = HyMiRec.from_pretrained("runs/demo/bundle")
    model.recommend(history=[(1997, 1291733820), (3231, 1291733820)], k=20)

A history is a list of item ids, or of (item id, time in seconds). Its newest `llm.recent` known items are read by the
LLM, everything before them by the light recommender. Ids that the bundle does not know are skipped and counted.

Q coarse interests  H width of the light tower  S interests  W item width
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hymirec.bundle import Bundle
from hymirec.catalog.keys import item_keys
from hymirec.errors import BundleMismatchError, RequestError

ItemId = str | int
HistoryItem = ItemId | tuple[ItemId, int] | list[Any]


@dataclass(frozen=True)
class Recommendation:
    """One item. `interest` is the number of the interest that found it; None for a popular item."""

    item_id: ItemId
    score: float
    interest: int | None
    title: str


@dataclass(frozen=True)
class Recommendations:
    """A list, best first. `reason` is "full", "cached_coarse", "cold_start" or "popular"."""

    items: list[Recommendation]
    bundle: str
    reason: str
    degraded: bool = False
    unknown_items: int = 0


@dataclass(frozen=True)
class Coarse:
    """Coarse interests (Q, H) of the first `events` known events, for a first recent event at time `boundary`."""

    vectors: NDArray[np.float32]
    bundle: str
    events: int
    boundary: int


@dataclass(frozen=True)
class _Known:
    """A history that the bundle knows: item indices and times, oldest first, cut into long and recent."""

    items: NDArray[np.int64]
    ts: NDArray[np.int64]
    split: int
    unknown: int = 0
    seen: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))


class HyMiRec:
    """A bundle that answers. Safe to call from several threads."""

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle
        settings = bundle.model.settings
        self._recent = settings.llm.recent
        self._long = settings.light.max_history if settings.light.enabled else 0

    @classmethod
    def from_pretrained(cls, path: str | Path) -> HyMiRec:
        """Open a bundle; every file is verified first. Raises ArtifactMissingError or ArtifactDamagedError."""
        return cls(Bundle.open(path))

    @property
    def bundle_id(self) -> str:
        """The id that every answer carries."""
        return self.bundle.id

    def recommend(
        self,
        history: Sequence[HistoryItem],
        k: int = 20,
        *,
        now: int | None = None,
        exclude: Sequence[ItemId] = (),
        filter_seen: bool = True,
    ) -> Recommendations:
        """The `k` best items for a user with this history at the time `now` (seconds; default: the clock).

        Items without a time count as happening now. An empty history, or one of unknown items only, gets popular items
        (reason "cold_start"). Fewer than `k` items come back when the catalogue has no more.
        Raises RequestError for k < 1 or a history that is not a list of ids or pairs.
        """
        at = int(time.time()) if now is None else now
        ids, ts = _split_pairs(history, at)
        return self.recommend_keys(item_keys(ids), ts, k, now=at, exclude=item_keys(exclude), filter_seen=filter_seen)

    def recommend_keys(
        self,
        keys: NDArray[np.uint64],
        ts: NDArray[np.int64],
        k: int,
        *,
        now: int,
        exclude: NDArray[np.uint64] | None = None,
        filter_seen: bool = True,
        coarse: Coarse | None = None,
        stale_ok: bool = False,
    ) -> Recommendations:
        """Like `recommend`, for a history of item keys.

        `coarse` from `coarse_keys` is used when it is what would be computed now; when it is not, it is computed again,
        or with `stale_ok` used all the same (reason "cached_coarse", degraded).
        Raises BundleMismatchError when `coarse` is of another bundle.
        """
        if k < 1:
            raise RequestError(f"k must be at least 1, got {k}")
        known = self._known(keys, ts)
        excluded = self.bundle.catalog.indices_of_keys(exclude) if exclude is not None else np.empty(0, np.int64)
        excluded = np.concatenate([excluded[excluded >= 0], known.items if filter_seen else known.items[:0]])
        if not len(known.items):
            return self.popular(k, excluded, "cold_start", unknown=known.unknown)
        if coarse is not None and coarse.bundle != self.bundle_id:
            raise BundleMismatchError(
                f"coarse interests are of bundle {coarse.bundle[:12]}, this one is {self.bundle_id[:12]}; "
                "compute them again"
            )
        fresh = coarse is not None and (coarse.events, coarse.boundary) == (known.split, self._boundary(known, now))
        usable = coarse if fresh or stale_ok else None
        interests = self._interests(known, now, usable)
        (hits,) = self.bundle.index.search(interests, min(k, self.bundle.catalog.size), [excluded])
        items = [
            self._item(int(i), float(score), int(interest))
            for i, score, interest in zip(hits.items, hits.scores, hits.interests, strict=True)
        ]
        stale = usable is not None and not fresh
        reason = "cached_coarse" if stale else "full"
        return Recommendations(items, self.bundle_id, reason, degraded=stale, unknown_items=known.unknown)

    def popular(
        self, k: int, excluded: NDArray[np.int64], reason: str, degraded: bool = False, unknown: int = 0
    ) -> Recommendations:
        """The most popular items of the training data; a score is the item's share of the most popular one's events."""
        order = self.bundle.popular[~np.isin(self.bundle.popular, excluded)][:k]
        counts = self.bundle.catalog.popularity
        top = max(1, int(counts.max(initial=0)))
        items = [self._item(int(i), float(counts[i] / top), None) for i in order]
        return Recommendations(items, self.bundle_id, reason, degraded, unknown)

    def coarse_keys(self, keys: NDArray[np.uint64], ts: NDArray[np.int64], now: int) -> Coarse:
        """Coarse interests of a history, to be kept until it changes and given back to `recommend_keys`."""
        known = self._known(keys, ts)
        boundary = self._boundary(known, now)
        with torch.inference_mode():
            vectors = self._coarse(known, boundary)[0].float().cpu().numpy()
        return Coarse(vectors, self.bundle_id, known.split, boundary)

    def interests(self, history: Sequence[HistoryItem], *, now: int | None = None) -> NDArray[np.float32]:
        """The user's interests (S, W), unit vectors of item space; (0, W) when no item of the history is known."""
        at = int(time.time()) if now is None else now
        ids, ts = _split_pairs(history, at)
        known = self._known(item_keys(ids), ts)
        if not len(known.items):
            return np.empty((0, self.bundle.index.width), np.float32)
        return self._interests(known, at, None)[0]

    def _known(self, keys: NDArray[np.uint64], ts: NDArray[np.int64]) -> _Known:
        """Known items in order of time (ties as given), and where the recent ones begin."""
        order = np.argsort(ts, kind="stable")
        items = self.bundle.catalog.indices_of_keys(np.asarray(keys, np.uint64)[order])
        known = items >= 0
        return _Known(
            items[known],
            np.asarray(ts, np.int64)[order][known],
            max(0, int(known.sum()) - self._recent),
            int((~known).sum()),
        )

    @staticmethod
    def _boundary(known: _Known, now: int) -> int:
        """Time of the first recent event: what the light tower takes for the present."""
        return int(known.ts[known.split]) if known.split < len(known.ts) else now

    def _coarse(self, known: _Known, boundary: int) -> torch.Tensor:
        start = max(0, known.split - self._long)
        items, ts = known.items[start : known.split], known.ts[start : known.split]
        return self.bundle.model.coarse(
            torch.from_numpy(items)[None],
            torch.from_numpy(ts)[None],
            torch.ones(1, len(items), dtype=torch.bool),
            torch.tensor([boundary]),
        )

    def _interests(self, known: _Known, now: int, coarse: Coarse | None) -> NDArray[np.float32]:
        with torch.inference_mode():
            if coarse is None:
                vectors = self._coarse(known, self._boundary(known, now))
            else:
                vectors = torch.from_numpy(coarse.vectors)[None]
            items, ts = known.items[known.split :], known.ts[known.split :]
            found = self.bundle.model.interests(
                vectors,
                torch.from_numpy(items)[None],
                torch.from_numpy(ts)[None],
                torch.ones(1, len(items), dtype=torch.bool),
                torch.tensor([now]),
            )
        numbers: NDArray[np.float32] = found.float().cpu().numpy()
        return numbers

    def _item(self, index: int, score: float, interest: int | None) -> Recommendation:
        catalog = self.bundle.catalog
        return Recommendation(catalog.item_id(index), score, interest, catalog.titles[index].as_py())


def _split_pairs(history: Sequence[HistoryItem], now: int) -> tuple[list[ItemId], NDArray[np.int64]]:
    ids: list[ItemId] = []
    ts: list[int] = []
    for entry in history:
        if isinstance(entry, (str, int)) and not isinstance(entry, bool):
            ids.append(entry)
            ts.append(now)
        elif isinstance(entry, (tuple, list)) and len(entry) == 2 and isinstance(entry[1], int):
            ids.append(entry[0])
            ts.append(entry[1])
        else:
            raise RequestError(f"a history is a list of item ids or of (item id, seconds) pairs; got {entry!r}")
    return ids, np.array(ts, np.int64)

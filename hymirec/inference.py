"""Recommendations from a bundle, without a server and without Ray.

    model = HyMiRec.from_pretrained("runs/demo/bundle")
    model.recommend(history=[(1997, 1291733820), (3231, 1291733820)], k=20)

A history is a list of item ids, or of (item id, time in seconds). Its newest `llm.recent` known items are read by the
LLM, everything before them (up to `light.max_history`) by the light recommender. Ids that the bundle does not know are
skipped and counted. Nothing is random: equal requests get equal answers.

B requests  E long events  T recent items  Q coarse interests  H width of the light tower  S interests  W item width
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash
from numpy.typing import NDArray
from torch import Tensor

from hymirec.answers import Coarse, ItemId, Keys, Query, Recommendation, Recommendations
from hymirec.bundle import Bundle
from hymirec.catalog.keys import item_keys
from hymirec.catalog.schemas import MAX_TS
from hymirec.errors import BundleMismatchError, RequestError
from hymirec.retrieval import Bonus, Hits, for_batches, share_out
from hymirec.telemetry import COARSE_CACHE, INTEREST_OVERLAP, STAGE_SECONDS, Observe, timed, unobserved

HistoryItem = ItemId | tuple[ItemId, int] | list[Any]
Ints = NDArray[np.int64]
NONE: Ints = np.empty(0, np.int64)
NO_KEYS: Keys = np.empty(0, np.uint64)


@dataclass(frozen=True)
class _Known:
    """What the bundle knows of a history, oldest first: all its items, and the long and the recent part.

    `boundary` is the time of the first recent event: what the light recommender takes for the present.
    """

    items: Ints
    long: Ints
    long_ts: Ints
    recent: Ints
    recent_ts: Ints
    boundary: int
    unknown: int

    @cached_property
    def source(self) -> int:
        """Hash of all that coarse interests depend on, beside the bundle."""
        numbers = np.concatenate([self.long, self.long_ts, [self.boundary]]).astype("<i8")
        return xxhash.xxh3_64_intdigest(numbers.tobytes())


class HyMiRec:
    """A bundle that answers. Safe to call from several threads. `meter` hears how long the parts of an answer took."""

    meter: Observe = staticmethod(unobserved)

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle
        settings = bundle.model.settings
        self._recent = settings.llm.recent
        self._long = settings.light.max_history if settings.light.enabled else 0
        self._device = next(bundle.model.parameters()).device
        self._trend = bundle.model.trend_counts
        self._observing = threading.Lock()

    @classmethod
    def from_pretrained(cls, path: str | Path, device: str = "cpu") -> HyMiRec:
        """Open a bundle; every file is verified first. Raises ArtifactMissingError or ArtifactDamagedError."""
        return cls(Bundle.open(path, device))

    @classmethod
    def for_batches(cls, path: str | Path, device: str = "cpu") -> HyMiRec:
        """The same for many users at a time: whatever kind the index is, lists are exact; on a CPU it takes a byte a
        component of the item vectors more."""
        bundle = Bundle.open(path, device)
        return cls(replace(bundle, index=for_batches(bundle.index)))

    @property
    def bundle_id(self) -> str:
        """The id that every answer carries."""
        return self.bundle.id

    @property
    def reach(self) -> int:
        """Events of a history that an answer reads, at most."""
        return self._recent + self._long

    def recommend(
        self,
        history: Sequence[HistoryItem],
        k: int = 20,
        *,
        now: int | None = None,
        exclude: Sequence[ItemId] = (),
        filter_seen: bool = True,
        coarse: Coarse | None = None,
        per_interest: int = 0,
    ) -> Recommendations:
        """The `k` best items for a user with this history at the time `now` (seconds; default: the clock).

        Items without a time count as happening now. An empty history, or one of unknown items only, gets popular items
        (reason "cold_start"). Fewer than `k` items come back when the catalogue has no more. `coarse`: see
        `recommend_keys`. With `per_interest` each interest first chooses so many items (at most its part of `k`), where
        otherwise the best of a list may all be one interest's.
        Raises RequestError for k < 1, per_interest < 0 or a history that is not a list of ids or pairs.
        """
        at = _clock(now)
        keys, ts = _split_pairs(history, at)
        excluded = _keys(exclude)
        query = Query(keys, ts, k, at, excluded, filter_seen, coarse, per_interest=per_interest)
        return self.recommend_batch([query])[0]

    def recommend_many(
        self,
        histories: Sequence[Sequence[HistoryItem]],
        k: int = 20,
        *,
        now: int | Sequence[int] | None = None,
        exclude: Sequence[ItemId] = (),
        filter_seen: bool = True,
        per_interest: int = 0,
    ) -> list[Recommendations]:
        """`recommend` for many users in one pass, for batch work; `now` is one time, or one a history.

        Scores equal those of single requests up to rounding (1e-5). A few hundred histories a call are a good size.
        """
        _check_k(k)
        if isinstance(now, (Sequence, np.ndarray)):
            times = [_clock(at) for at in now]
        else:
            times = [_clock(now)] * len(histories)
        if len(times) != len(histories):
            raise RequestError(f"expected one `now`, or one for each of {len(histories)} histories; got {len(times)}")
        excluded = _keys(exclude)
        pairs = [_split_pairs(own, at) for own, at in zip(histories, times, strict=True)]
        return self.recommend_batch(
            [
                Query(keys, ts, k, at, excluded, filter_seen, per_interest=per_interest)
                for (keys, ts), at in zip(pairs, times, strict=True)
            ]
        )

    def recommend_keys(
        self,
        keys: Keys,
        ts: Ints,
        k: int,
        *,
        now: int,
        exclude: Keys | None = None,
        filter_seen: bool = True,
        coarse: Coarse | None = None,
        stale_ok: bool = False,
    ) -> Recommendations:
        """Like `recommend`, for a history of item keys (n,) uint64 with times (n,) in seconds, in any order.

        `coarse` from `coarse_keys` is used when it is what would be computed now; when it is not, it is computed again,
        or with `stale_ok` used all the same (reason "cached_coarse", degraded).
        Raises RequestError for k < 1, BundleMismatchError when `coarse` is of another bundle.
        """
        query = Query(keys, ts, k, now, NO_KEYS if exclude is None else exclude, filter_seen, coarse, stale_ok)
        return self.recommend_batch([query])[0]

    def recommend_batch(self, queries: Sequence[Query]) -> list[Recommendations]:
        """`recommend_keys` for many requests in one pass of the model and one search, each with its own options.

        Scores equal those of single requests up to rounding (1e-5). Raises what any of them would raise alone.
        """
        for query in queries:
            self._check(query)
        found = [self._known(query.keys, query.ts, query.now) for query in queries]
        excluded = [
            np.concatenate([self._indices(query.exclude), known.items if query.filter_seen else NONE])
            for query, known in zip(queries, found, strict=True)
        ]
        usable = [self._usable(query, known) for query, known in zip(queries, found, strict=True)]
        rows = [row for row, known in enumerate(found) if len(known.items)]
        times = [queries[row].now for row in rows]
        interests = self._interests([found[row] for row in rows], times, [usable[row] for row in rows])
        for overlap in mean_cosines(interests).tolist():
            self.meter(INTEREST_OVERLAP, overlap)
        most = max((queries[row].k for row in rows), default=1)
        beside = self._beside([found[row].recent for row in rows])
        wanted = [(queries[row].k, queries[row].per_interest) for row in rows]
        left_out = [excluded[row] for row in rows]
        ranked = self._search(interests, most, wanted, left_out, self._popular_now(times), beside)
        hits = dict(zip(rows, ranked, strict=True))
        return [
            self._answer(hits[row], query.k, known, usable[row])
            if row in hits
            else self.popular(query.k, excluded[row], "cold_start", now=query.now, unknown=known.unknown)
            for row, (query, known) in enumerate(zip(queries, found, strict=True))
        ]

    def _check(self, query: Query) -> None:
        _check_k(query.k)
        if query.per_interest < 0:
            raise RequestError(f"per_interest must be at least 0, got {query.per_interest}")
        if query.coarse is not None and query.coarse.bundle != self.bundle_id:
            raise BundleMismatchError(
                f"coarse interests are of bundle {query.coarse.bundle[:12]}, this one is {self.bundle_id[:12]}; "
                "compute them again"
            )

    def _usable(self, query: Query, known: _Known) -> Coarse | None:
        """The coarse interests that a query brings, unless they are stale and the query wants none such."""
        if query.coarse is None or not len(known.items):
            return None
        stale = query.coarse.source != known.source
        self.meter(COARSE_CACHE, 1, result="stale" if stale else "hit")
        return query.coarse if query.stale_ok or not stale else None

    def observe(self, keys: Keys, ts: Ints) -> None:
        """Events of anyone, item keys (n,) and times (n,) in seconds: they count for what is popular now.

        In whatever order, from the next request on; nothing is kept of them but counts. Skipped are keys that the
        bundle does not know and events from before the bundle's last one, which it has counted; all of them where the
        bundle has no trend.
        """
        counted = self.bundle.model.trend_counts
        if counted is None:
            return
        items, times = self.bundle.catalog.indices_of_keys(keys), np.asarray(ts, np.int64)
        new = (items >= 0) & (times >= counted.at)
        with self._observing:
            if self._trend is not None and new.any():
                self._trend = self._trend.add(items[new], times[new])

    def popular(
        self, k: int, excluded: Ints, reason: str, *, now: int | None = None, degraded: bool = False, unknown: int = 0
    ) -> Recommendations:
        """What is popular at a time (default: the clock), then what was in the training data.

        A score is a share of the first item's: of the count of now, with the share of the training events below 1.
        """
        catalog = self.bundle.catalog
        hot, counts = NONE, np.empty(0, np.float32)
        if self._trend is not None:
            hot, counts = self._trend.before(_clock(now))
        ever = self.bundle.popular[: k + len(excluded) + len(hot)]
        candidates = np.union1d(hot, ever)
        value = catalog.popularity[candidates] / max(1, int(catalog.popularity.max(initial=0)))
        value[np.searchsorted(candidates, hot)] += counts
        kept = ~np.isin(candidates, excluded)
        candidates, value = candidates[kept], value[kept]
        order = np.lexsort((candidates, -value))[:k]
        top = value.max(initial=0) or 1.0
        items = [self._item(int(candidates[i]), float(value[i] / top), None) for i in order]
        return Recommendations(items, self.bundle_id, reason, degraded, unknown)

    def coarse(self, history: Sequence[HistoryItem], *, now: int | None = None) -> Coarse:
        """Coarse interests of a history, to be kept until it changes and given back to `recommend`."""
        at = _clock(now)
        return self.coarse_keys(*_split_pairs(history, at), at)

    def coarse_keys(self, keys: Keys, ts: Ints, now: int) -> Coarse:
        """Like `coarse`, for a history of item keys."""
        known = self._known(keys, ts, now)
        with torch.inference_mode():
            vectors = self._coarse([known])[0].float().cpu().numpy()
        return Coarse(vectors, self.bundle_id, known.source)

    def interests(self, history: Sequence[HistoryItem], *, now: int | None = None) -> NDArray[np.float32]:
        """The user's interests (S, W), unit vectors of item space; (0, W) when no item of the history is known."""
        at = _clock(now)
        return self.interests_keys(*_split_pairs(history, at), at)

    def interests_keys(self, keys: Keys, ts: Ints, now: int) -> NDArray[np.float32]:
        """Like `interests`, for a history of item keys (n,) uint64 with times (n,) in seconds, in any order."""
        known = self._known(keys, ts, now)
        if not len(known.items):
            return np.empty((0, self.bundle.index.width), np.float32)
        found: NDArray[np.float32] = self._interests([known], [now], [None])[0]
        return found

    def _indices(self, keys: Keys | None) -> Ints:
        """Indices of the known ones among item keys."""
        if keys is None:
            return NONE
        indices = self.bundle.catalog.indices_of_keys(keys)
        return indices[indices >= 0]

    def _known(self, keys: Keys, ts: Ints, now: int) -> _Known:
        """Known items in order of time (ties as given), cut into long and recent."""
        times = np.asarray(ts, np.int64)
        order = np.argsort(times, kind="stable")
        items = self.bundle.catalog.indices_of_keys(np.asarray(keys, np.uint64)[order])
        known = items >= 0
        items, times = items[known], times[order][known]
        split = max(0, len(items) - self._recent)
        long = slice(max(0, split - self._long), split)
        return _Known(
            items=items,
            long=items[long],
            long_ts=times[long],
            recent=items[split:],
            recent_ts=times[split:],
            boundary=int(times[split]) if len(items) else now,
            unknown=int((~known).sum()),
        )

    def _coarse(self, known: Sequence[_Known]) -> Tensor:
        """Coarse interests (B, Q, H) of the long histories."""
        items, ts, mask = self._padded([(row.long, row.long_ts) for row in known])
        boundary = torch.tensor([row.boundary for row in known], device=self._device)
        return self.bundle.model.coarse(items, ts, mask, boundary)

    def _interests(
        self, known: Sequence[_Known], now: Sequence[int], coarse: Sequence[Coarse | None]
    ) -> NDArray[np.float32]:
        """Interests (B, S, W); coarse ones are computed for the rows that bring none."""
        missing = [row for row, given in enumerate(coarse) if given is None]
        computed: dict[int, Tensor] = {}
        with torch.inference_mode():
            if missing:
                with timed(self.meter, STAGE_SECONDS, stage="coarse"):
                    computed = dict(zip(missing, self._coarse([known[row] for row in missing]), strict=True))
            vectors = [
                computed[row] if given is None else torch.from_numpy(given.vectors).to(self._device)
                for row, given in enumerate(coarse)
            ]
            if not vectors:
                return np.empty((0, 1, self.bundle.index.width), np.float32)
            with timed(self.meter, STAGE_SECONDS, stage="model"):
                items, ts, mask = self._padded([(row.recent, row.recent_ts) for row in known])
                at = torch.tensor(now, device=self._device)
                found = self.bundle.model.interests(torch.stack(vectors), items, ts, mask, at)
                numbers: NDArray[np.float32] = found.float().cpu().numpy()
        return numbers

    def _popular_now(self, now: list[int]) -> list[Bonus] | None:
        """What is added to each request's scores for being popular at its time."""
        counts = self._trend
        if counts is None:
            return None
        hot = {at: counts.before(at) for at in set(now)}
        values = {at: Bonus(items, self.bundle.model.trend.bonus(count)) for at, (items, count) in hot.items()}
        return [values[at] for at in now]

    def _beside(self, recent: list[Ints]) -> list[Bonus] | None:
        """What is added to each request's scores for standing beside its last items."""
        neighbours = self.bundle.model.neighbours
        if not recent or not neighbours.weight:
            return None
        table = neighbours.bonus(recent)
        rows = zip(table.indptr[:-1], table.indptr[1:], strict=True)
        return [Bonus(table.indices[start:end].astype(np.int64), table.data[start:end]) for start, end in rows]

    def _search(
        self,
        interests_BSW: NDArray[np.float32],
        k: int,
        wanted: list[tuple[int, int]],
        excluded: list[Ints],
        shared: list[Bonus] | None,
        own: list[Bonus] | None,
    ) -> list[Hits]:
        """The best items by interests and bonuses, and shares of interests where they are wanted."""
        index = self.bundle.index
        with timed(self.meter, STAGE_SECONDS, stage="index"):
            best = index.search(interests_BSW, min(k, self.bundle.catalog.size), excluded, shared, own)
            return share_out(index, interests_BSW, best, wanted, excluded, shared, own)

    def _padded(self, rows: Sequence[tuple[Ints, Ints]]) -> tuple[Tensor, Tensor, Tensor]:
        """Items, times and mask, all (B, longest), padded on the right."""
        longest = max((len(items) for items, _ in rows), default=0)
        items_BT = np.zeros((len(rows), longest), np.int64)
        ts_BT, mask_BT = np.zeros_like(items_BT), np.zeros(items_BT.shape, bool)
        for row, (items, ts) in enumerate(rows):
            items_BT[row, : len(items)], ts_BT[row, : len(items)], mask_BT[row, : len(items)] = items, ts, True
        padded = [torch.from_numpy(array).to(self._device) for array in (items_BT, ts_BT, mask_BT)]
        return padded[0], padded[1], padded[2]

    def _answer(self, hits: Hits, k: int, known: _Known, coarse: Coarse | None) -> Recommendations:
        """The first `k` hits, and whether the coarse interests that led to them were stale."""
        items = [
            self._item(int(i), float(score), int(interest))
            for i, score, interest in zip(hits.items[:k], hits.scores[:k], hits.interests[:k], strict=True)
        ]
        stale = coarse is not None and coarse.source != known.source
        reason = "cached_coarse" if stale else "full"
        return Recommendations(items, self.bundle_id, reason, degraded=stale, unknown_items=known.unknown)

    def _item(self, index: int, score: float, interest: int | None) -> Recommendation:
        catalog = self.bundle.catalog
        return Recommendation(catalog.item_id(index), score, interest, catalog.titles[index].as_py())


def mean_cosines(vectors_BSW: NDArray[np.float32]) -> NDArray[np.float32]:
    """The mean cosine (B,) between two different ones of each row's S vectors; empty when there are no two."""
    _, count, _ = vectors_BSW.shape
    if count < 2:
        return np.empty(0, np.float32)
    # |sum of unit vectors|^2 = S + the sum of all cosines.
    sums_BW = (vectors_BSW / np.maximum(np.linalg.norm(vectors_BSW, axis=2, keepdims=True), 1e-12)).sum(axis=1)
    means: NDArray[np.float32] = (np.square(sums_BW).sum(axis=1) - count) / (count * (count - 1))
    return means


def _check_k(k: int) -> None:
    if not _whole(k) or k < 1:
        raise RequestError(f"k must be a whole number of at least 1, got {k!r}")


def _whole(value: object) -> bool:
    """Whether a value is an integer, numpy's included; True and False are none."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def _clock(now: int | None) -> int:
    if now is None:
        return int(time.time())
    if not _whole(now) or not 0 <= now <= MAX_TS:
        raise RequestError(f"now: expected seconds since 1970 as a whole number, got {now!r}")
    return int(now)


def _keys(ids: Sequence[ItemId]) -> Keys:
    wrong = [entry for entry in ids if not (isinstance(entry, str) or _whole(entry))]
    if wrong or isinstance(ids, str):
        raise RequestError(f"expected a list of item ids (strings or integers), got {wrong[0] if wrong else ids!r}")
    return item_keys(ids)


def _split_pairs(history: Sequence[HistoryItem], now: int) -> tuple[Keys, Ints]:
    """Keys (n,) and times (n,) of a history as users write it."""
    if isinstance(history, str):
        raise RequestError(f"a history is a list of item ids, not one string: {history!r}")
    ids: list[ItemId] = []
    ts: list[int] = []
    for entry in history:
        item: Any
        item, at = entry if isinstance(entry, (tuple, list)) and len(entry) == 2 else (entry, now)
        if not (isinstance(item, str) or _whole(item)) or not _whole(at) or not 0 <= at <= MAX_TS:
            raise RequestError(f"a history is a list of item ids or of (item id, seconds) pairs; got {entry!r}")
        ids.append(item)
        ts.append(int(at))
    return item_keys(ids), np.array(ts, np.int64)

"""The ranker: a bundle in memory, swapped by moving one reference.

Every method uses the bundle it finds when it begins, to its end, so no answer mixes two. The model runs on one thread
of its own, with as many torch and faiss threads as the config gives: requests wait in line for it (`Line`) instead of
fighting over the cores, and those that wait together are answered together.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from hymirec.answers import Coarse, Keys, Query, Recommendations, Times
from hymirec.artifacts import MANIFEST
from hymirec.catalog.events import action_name
from hymirec.config import ServiceConfig
from hymirec.errors import BundleError, HyMiRecError, UnknownItemError
from hymirec.inference import HyMiRec
from hymirec.service.explain import explain
from hymirec.service.line import Line
from hymirec.service.models import ExplainReply, HistoryEvent, ItemReply, ItemsReply
from hymirec.service.pulse import Pulse
from hymirec.service.release import swapped_in
from hymirec.service.scaling import BUSY, Pace
from hymirec.service.spans import traced
from hymirec.streaming import open_log
from hymirec.telemetry import (
    BUNDLE_AGE,
    BUNDLE_INFO,
    BUNDLE_ITEMS,
    COARSE_CACHE,
    Observe,
    unobserved,
)

log = logging.getLogger(__name__)
SMOKE_ITEMS = 3


class Ranker:
    """See `RankerStage`."""

    def __init__(self, config: ServiceConfig, observe: Observe = unobserved) -> None:
        torch.set_num_threads(config.threads)
        self._configured, self._config, self._observe = config.bundle, config, observe
        self._reported = ""
        self._line = Line(config.limits.max_batch_events, config.threads, observe)
        self._pace = Pace(time.monotonic())
        self._loading = threading.Lock()
        self._staged: HyMiRec | None = None
        self._refused = ""
        self._model = _open_active(config.bundle)
        # The first answer costs a hundred times the next: no user waits for it, or gets popular items instead.
        self._line.first(lambda: _ask(self._model))
        self._meter = traced(observe)
        self._model.meter = self._meter
        self._pulse = self._listen(self._model)

    @property
    def listens(self) -> bool:
        """Whether events of the log count for what is popular now."""
        return self._pulse is not None

    def _listen(self, model: HyMiRec) -> Pulse | None:
        """Let a model count the events of the log, if it cares for what is popular now."""
        backlog = self._config.trend_backlog
        if model.bundle.model.trend_counts is None or not backlog:
            return None
        return Pulse(open_log(self._config.stream), backlog, model.observe)

    def _listen_anew(self, model: HyMiRec) -> None:
        """After the reference has moved: the new model counts, the old one no longer."""
        before, self._pulse = self._pulse, self._listen(model)
        if before is not None:
            before.close()

    def close(self) -> None:
        """End the threads."""
        if self._pulse is not None:
            self._pulse.close()
        self._line.close()

    def stats(self) -> dict[str, float]:
        """What the autoscaler is told every few seconds: the share of the time since then that requests took."""
        return {BUSY: min(1.0, self._pace.of(self._line.busy_seconds, time.monotonic()))}

    def report(self) -> None:
        """Say which bundle serves, and how old it is; to be called every few seconds."""
        bundle = self._model.bundle
        if self._reported not in ("", bundle.id):
            self._observe(BUNDLE_INFO, 0, bundle=self._reported)
        self._reported = bundle.id
        self._observe(BUNDLE_INFO, 1, bundle=bundle.id)
        self._observe(BUNDLE_ITEMS, bundle.catalog.size)
        try:
            written = (bundle.path / MANIFEST).stat().st_mtime
        except OSError:
            # Deleted or out of reach: it serves from memory.
            return
        self._observe(BUNDLE_AGE, max(0.0, time.time() - written))

    async def recommend(self, query: Query) -> Recommendations:
        """See `HyMiRec.recommend_keys`. Coarse interests of another bundle are not used.

        Raises StageLateError when the query's seconds have passed before the model was free.
        """
        model = self._model
        if query.coarse is not None and query.coarse.bundle != model.bundle_id:
            query = replace(query, coarse=None)
            self._observe(COARSE_CACHE, 1, result="stale")
        return await self._line.recommend(model, query)

    async def explain(self, query: Query, nearest: int, finds: int) -> ExplainReply:
        """See `explain`. Costs two recommendations."""
        model = self._model
        return await self._line.run(lambda: explain(model, query, nearest, finds), query.seconds)

    async def coarse(self, keys: Keys, ts: Times, now: int) -> Coarse:
        """See `HyMiRec.coarse_keys`. Near-line: requests go first."""
        model = self._model
        seconds = self._config.limits.stage_timeout_seconds
        return await self._line.run(lambda: model.coarse_keys(keys, ts, now), seconds, nearline=True)

    async def popular(self, k: int) -> Recommendations:
        """The `k` most popular items."""
        return self._model.popular(k, np.empty(0, np.int64), "popular", degraded=True)

    async def describe(self, keys: Keys, ts: Times, actions: NDArray[np.uint8]) -> list[HistoryEvent]:
        """Records of a history with ids and titles, where the bundle knows them."""
        catalog = self._model.bundle.catalog
        events = []
        for index, at, action in zip(catalog.indices_of_keys(keys).tolist(), ts, actions, strict=True):
            events.append(
                HistoryEvent(
                    item_id=str(catalog.item_id(index)) if index >= 0 else None,
                    title=catalog.titles[index].as_py() if index >= 0 else None,
                    ts=int(at),
                    action=action_name(int(action)),
                )
            )
        return events

    async def item(self, item_id: str) -> ItemReply:
        """One item. Raises UnknownItemError."""
        model = self._model
        index = model.bundle.catalog.index_of(item_id)
        if index is None:
            raise UnknownItemError(
                f"item {item_id!r} is not in bundle {model.bundle_id[:12]}; a new item appears with the next bundle"
            )
        return _item(model, index)

    async def find(self, query: str, limit: int) -> ItemsReply:
        """Items whose title holds every word of the query, most popular first."""
        return await asyncio.to_thread(self._find, query, limit)

    def _find(self, query: str, limit: int) -> ItemsReply:
        model = self._model
        words = query.casefold().split()
        found: list[ItemReply] = []
        for index in model.bundle.popular.tolist():
            title = (model.bundle.catalog.titles[index].as_py() or "").casefold()
            if all(word in title for word in words):
                found.append(_item(model, index))
                if len(found) == limit:
                    break
        return ItemsReply(items=found, bundle=model.bundle_id)

    async def bundle_id(self) -> str:
        """Id of the bundle that serves."""
        return self._model.bundle_id

    async def stage(self, path: str) -> list[str]:
        """Load a bundle beside the one that serves: verify every file, open it, probe its index, ask it something."""
        await asyncio.to_thread(self._stage, path)
        assert self._staged is not None
        return [self._staged.bundle_id]

    def _stage(self, path: str) -> None:
        with self._loading:
            try:
                model = HyMiRec.from_pretrained(path)
            except OSError as e:
                # Permission denied, a name too long, a disk that fails.
                raise BundleError(f"{path} cannot be read: {e.strerror}") from e
            model.bundle.check_index()
            if not _ask(model):
                raise BundleError(f"{path} is whole but recommends nothing to readers of its most popular items")
            model.meter = self._meter
            self._staged = model

    async def activate(self, bundle_id: str) -> None:
        """Serve the staged bundle. Raises BundleError when that is another one."""
        staged, self._staged = self._staged, None
        if staged is None or staged.bundle_id != bundle_id:
            if self._model.bundle_id == bundle_id:
                return
            raise BundleError(f"bundle {bundle_id[:12]} is not loaded in this replica; swap again")
        self._model = staged
        await asyncio.to_thread(self._listen_anew, staged)

    def follow(self) -> None:
        """Serve what the others serve, if this replica missed a swap. Blocks while loading: not for the event loop."""
        release = swapped_in(self._configured)
        if release is None or release.id in (self._model.bundle_id, self._refused):
            return
        try:
            self._stage(release.path)
            assert self._staged is not None
            self._model, self._staged, self._refused = self._staged, None, ""
            self._listen_anew(self._model)
        except HyMiRecError as e:
            self._refused = release.id
            log.error("the bundle that was swapped in cannot be opened here, the old one keeps serving: %s", e)


def _open_active(configured: str) -> HyMiRec:
    """Open what serves; when a swapped-in bundle is damaged by now, the configured one."""
    release = swapped_in(configured)
    if release is not None:
        try:
            return HyMiRec.from_pretrained(release.path)
        except HyMiRecError as e:
            log.error("the bundle that was swapped in cannot be opened, %s serves instead: %s", configured, e)
    return HyMiRec.from_pretrained(configured)


def _ask(model: HyMiRec) -> bool:
    """Ask for a recommendation as a user would; returns whether there is one, where there can be one.

    Raises BundleError for a model whose interests are no numbers.
    """
    known = [model.bundle.catalog.item_id(int(index)) for index in model.bundle.popular[:SMOKE_ITEMS]]
    if not np.isfinite(model.interests(known)).all():
        raise BundleError(f"{model.bundle.path} is whole, but its model answers with what is no number; train it again")
    return bool(model.recommend(known, k=1).items) or model.bundle.catalog.size <= len(known)


def _item(model: HyMiRec, index: int) -> ItemReply:
    catalog = model.bundle.catalog
    return ItemReply(
        item_id=str(catalog.item_id(index)),
        title=catalog.titles[index].as_py() or "",
        popularity=int(catalog.popularity[index]),
    )

"""The front end: what each HTTP request means, over the two stages behind it. It holds no state that matters."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from hymirec.answers import Query, Recommendations
from hymirec.catalog.events import Event
from hymirec.catalog.keys import item_keys
from hymirec.config import ServiceConfig
from hymirec.errors import (
    BundleError,
    BundleMismatchError,
    HyMiRecError,
    RequestError,
    SourceUnavailableError,
    StageUnavailableError,
    StoreUnavailableError,
)
from hymirec.history import History
from hymirec.service.calls import Deadline, ask
from hymirec.service.ladder import BEHIND, Ladder, PopularList
from hymirec.service.limit import Limit
from hymirec.service.models import (
    Accepted,
    AsOf,
    BundleReply,
    EventIn,
    ExplainReply,
    ExplainRequest,
    Health,
    HistoryReply,
    ItemReply,
    ItemsReply,
    RecommendReply,
    RecommendRequest,
)
from hymirec.service.release import Release, remember
from hymirec.service.spans import annotate, span
from hymirec.service.stages import RankerStage, Snapshot, WriterStage
from hymirec.streaming import erase_message, event_message, open_log
from hymirec.streaming.source import EventProducer
from hymirec.telemetry import (
    COARSE_CACHE,
    DEGRADED,
    EVENTS_ACCEPTED,
    RECOMMEND_SECONDS,
    STAGE_SECONDS,
    UNKNOWN_ITEMS,
    Observe,
    timed,
    unobserved,
)

log = logging.getLogger(__name__)
MAX_EVENTS = 10_000
WAIT_STEP_SECONDS = 0.05
RANKER, WRITER = "recommender", "history writer"
# Loading and verifying a bundle takes as long as reading it from disk twice.
STAGE_BUNDLE_SECONDS = 1_800.0
NOTHING = Snapshot(History(np.empty(0, np.uint64), np.empty(0, np.int64), np.empty(0, np.uint8), 0), None, {})


class Frontend:
    """One for each ingress process."""

    def __init__(
        self,
        config: ServiceConfig,
        ranker: RankerStage,
        writer: WriterStage,
        base: Path,
        observe: Observe = unobserved,
    ) -> None:
        self._config, self._limits, self._base = config, config.limits, base
        self._ranker, self._writer, self._observe = ranker, writer, observe
        stage_seconds = self._limits.stage_timeout_seconds
        self._popular = PopularList(ranker, self._limits.max_k, stage_seconds)
        # What takes half of the stage's time is still answered in time when twice as many come.
        most = self._limits.max_ongoing_requests + self._limits.max_queued_requests
        self.limit = Limit(most, stage_seconds / 2)
        self._ladder = Ladder(ranker, self._popular, stage_seconds, self.limit)
        self._opening = asyncio.Lock()
        self._producer: EventProducer | None = None
        self._swap: asyncio.Task[BundleReply] | None = None
        self._fresh: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to keep the list of popular items."""
        self._fresh = asyncio.create_task(self._popular.keep_fresh())

    async def stop(self) -> None:
        """Close the producer, end the task."""
        if self._fresh is not None:
            self._fresh.cancel()
        if self._producer is not None:
            await asyncio.to_thread(self._producer.close)

    # --- recommend ---------------------------------------------------------------------------------------------------

    async def recommend(self, body: RecommendRequest) -> RecommendReply:
        """The best items that can be had in time. Raises RequestError and OverloadedError."""
        begun = time.monotonic()
        self._check(body)
        deadline = Deadline(self._limits.request_timeout_seconds)
        now = int(time.time()) if body.now is None else body.now
        try:
            snapshot = _given(body, now) or await self._history(body, deadline)
        except (StageUnavailableError, StoreUnavailableError) as e:
            log.warning("no history: %s", e)
            reply = RecommendReply.of(self._ladder.popular(_query(body, now, NOTHING)), AsOf())
        else:
            found = await self._answer(_query(body, now, snapshot), deadline)
            reply = RecommendReply.of(_behind(found, snapshot.history, body), _as_of(snapshot))
        self._told(reply, time.monotonic() - begun)
        return reply

    def _told(self, reply: RecommendReply, seconds: float) -> None:
        """Count a reply, log it, with what it was made from, and name it in its trace."""
        self._observe(RECOMMEND_SECONDS, seconds, reason=reply.reason)
        annotate(bundle=reply.bundle, reason=reply.reason, degraded=reply.degraded)
        if reply.degraded:
            self._observe(DEGRADED, 1, reason=reply.reason)
        if reply.unknown_items:
            self._observe(UNKNOWN_ITEMS, reply.unknown_items)
        log.info(
            "recommended",
            extra={"bundle": reply.bundle, "position": reply.as_of.offsets, "reason": reply.reason, "seconds": seconds},
        )

    async def explain(self, body: ExplainRequest) -> ExplainReply:
        """The best items and what stands behind them; for people, so there is no lesser answer.

        Raises RequestError, OverloadedError and StageUnavailableError.
        """
        self._check(body)
        deadline = Deadline(self._limits.request_timeout_seconds)
        now = int(time.time()) if body.now is None else body.now
        snapshot = _given(body, now) or await self._history(body, deadline)
        seconds = deadline.left(self._limits.stage_timeout_seconds)
        query = replace(_query(body, now, snapshot), seconds=seconds)
        found = await ask(RANKER, lambda: self._ranker.explain(query, body.nearest, body.finds), seconds)
        behind = {"degraded": True, "reason": BEHIND} if _is_behind(snapshot.history, body) else {}
        reply = found.model_copy(update={"as_of": _as_of(snapshot), **behind})
        annotate(bundle=reply.bundle, reason=reply.reason, degraded=reply.degraded)
        return reply

    async def _answer(self, query: Query, deadline: Deadline) -> Recommendations:
        with timed(self._observe, STAGE_SECONDS, stage="recommender"), span("recommender"):
            try:
                return await self._ladder.answer(query, deadline)
            except BundleMismatchError:
                # The bundle was swapped between two stages; without what the first one gave, all is of the new bundle.
                return await self._ladder.answer(replace(query, coarse=None), deadline)

    def _check(self, body: RecommendRequest) -> None:
        annotate(k=body.k)
        if body.k > self._limits.max_k:
            raise RequestError(f"k may be at most {self._limits.max_k}, got {body.k}")
        for name, given in (("history", body.history or ()), ("exclude", body.exclude)):
            if len(given) > self._limits.max_history:
                raise RequestError(f"{name} may have at most {self._limits.max_history} items, got {len(given)}")

    async def _history(self, body: RecommendRequest, deadline: Deadline) -> Snapshot:
        """The user's history; waits up to half of the request's time for `min_ts`."""
        waiting = Deadline(self._limits.request_timeout_seconds / 2)
        while True:
            seconds = deadline.left(self._limits.stage_timeout_seconds)
            with timed(self._observe, STAGE_SECONDS, stage="history"), span("history"):
                found = await ask(WRITER, lambda: self._writer.snapshot(str(body.user_id)), seconds)
            if not _is_behind(found.history, body) or not waiting.left():
                if found.coarse is None and len(found.history):
                    self._observe(COARSE_CACHE, 1, result="miss")
                return found
            await asyncio.sleep(WAIT_STEP_SECONDS)

    # --- histories and events ----------------------------------------------------------------------------------------

    async def history(self, user_id: str, limit: int) -> HistoryReply:
        """A user's newest events, oldest first."""
        seconds = self._limits.stage_timeout_seconds
        found = await ask(WRITER, lambda: self._writer.snapshot(user_id, limit), seconds)
        h = found.history
        events = await ask(RANKER, lambda: self._ranker.describe(h.keys, h.ts, h.actions), seconds) if len(h) else []
        return HistoryReply(user_id=user_id, count=h.count, events=events, as_of=_as_of(found))

    async def events(self, given: Sequence[EventIn]) -> Accepted:
        """Put events into the log; they are stored there when this returns."""
        if len(given) > MAX_EVENTS:
            raise RequestError(f"at most {MAX_EVENTS} events at once, got {len(given)}")
        events = [
            Event(
                event_id=str(event.event_id),
                user_id=str(event.user_id),
                item_id=str(event.item_id),
                ts=event.ts,
                action=event.action,
            )
            for event in given
        ]
        await self._send([event_message(event) for event in events])
        self._observe(EVENTS_ACCEPTED, len(events))
        return Accepted(accepted=len(events))

    async def erase(self, user_id: str) -> Accepted:
        """Erase a user: an event of the log, so that replay erases again; reads show nothing from now on."""
        seconds = self._limits.stage_timeout_seconds
        first = await ask(WRITER, lambda: self._writer.first(user_id), seconds)
        await self._send([erase_message(user_id)])
        await ask(WRITER, lambda: self._writer.hide(user_id, first), seconds)
        return Accepted(accepted=1)

    async def _send(self, messages: list[tuple[str, bytes]]) -> None:
        async with self._opening:
            if self._producer is None:
                self._producer = await asyncio.to_thread(lambda: open_log(self._config.stream).producer())
        seconds = self._limits.request_timeout_seconds
        try:
            async with asyncio.timeout(seconds):
                await asyncio.to_thread(self._producer.send, messages)
        except TimeoutError as e:
            raise SourceUnavailableError(
                f"the log did not confirm the events within {seconds:.1f} s and may or may not hold them; send them "
                "again: an event id counts once"
            ) from e

    # --- items -------------------------------------------------------------------------------------------------------

    async def item(self, item_id: str) -> ItemReply:
        """One item. Raises UnknownItemError."""
        return await ask(RANKER, lambda: self._ranker.item(item_id), self._limits.stage_timeout_seconds)

    async def find(self, query: str, limit: int) -> ItemsReply:
        """Items by words of their title."""
        return await ask(RANKER, lambda: self._ranker.find(query, limit), self._limits.stage_timeout_seconds)

    # --- operation ---------------------------------------------------------------------------------------------------

    async def ready(self) -> Health:
        """What serves and how far behind it is. Raises StageUnavailableError that names every cause."""
        seconds = self._limits.stage_timeout_seconds
        bundle = await ask(RANKER, self._ranker.bundle_id, seconds)
        writers = await ask(WRITER, self._writer.status, seconds)
        causes = sorted({f"{name}: {cause}" for writer in writers for name, cause in writer.problems.items()})
        if causes:
            raise StageUnavailableError("; ".join(causes))
        # One that was added for a backlog may still be starting.
        ready, least = sum(writer.ready for writer in writers), self._config.writer_replicas
        if ready < least:
            raise StageUnavailableError(f"{ready} of {least} history writers run; the others are starting")
        lag = {str(partition): value for writer in writers for partition, value in sorted(writer.lag.items())}
        counts: dict[str, int] = {}
        for writer in writers:
            for name, value in writer.counts.items():
                counts[name] = counts.get(name, 0) + value
        return Health(status="ok", bundle=bundle, lag=lag, counts=counts)

    async def swap(self, path: str) -> BundleReply:
        """Load a bundle beside the one that serves, on every replica; when all have it, serve it.

        Goes on when the caller does not wait: the same call again waits for the same swap.
        Raises ArtifactError or BundleError when it is refused; the old one keeps serving.
        """
        # `Path.expanduser` raises for a user whom nobody knows; the bundle is then simply not there.
        place = str(self._base / os.path.expanduser(path))
        if self._swap is None or self._swap.done():
            self._swap = asyncio.create_task(self._swap_to(place), name=place)
        elif self._swap.get_name() != place:
            raise BundleError(f"{self._swap.get_name()} is being loaded now; try again when that has ended")
        return await asyncio.shield(self._swap)

    async def _swap_to(self, path: str) -> BundleReply:
        previous = await ask(RANKER, self._ranker.bundle_id, self._limits.stage_timeout_seconds)
        try:
            async with asyncio.timeout(STAGE_BUNDLE_SECONDS):
                staged = set(await self._ranker.stage(path))
        except HyMiRecError as e:
            log.error("bundle refused, %s keeps serving: %s", previous[:12], e)
            raise
        if len(staged) != 1:
            raise BundleError(f"replicas read {len(staged)} different bundles at {path}; {previous[:12]} keeps serving")
        (bundle,) = staged
        # Remembered first: a replica that starts or dies in between serves the new one.
        await asyncio.to_thread(remember, self._config.bundle, Release(path, bundle))
        await self._ranker.activate(bundle)
        await self._popular.refresh()
        return BundleReply(bundle=bundle, previous=previous)


def _given(body: RecommendRequest, now: int) -> Snapshot | None:
    """The history of the request's body, if it has one; without times, all of it happens now."""
    if body.history is None:
        return None
    pairs = [entry if isinstance(entry, tuple) else (entry, now) for entry in body.history]
    keys, ts = item_keys(item for item, _ in pairs), np.array([at for _, at in pairs], np.int64)
    return Snapshot(History(keys, ts, np.zeros(len(ts), np.uint8), len(ts)), None, {})


def _query(body: RecommendRequest, now: int, snapshot: Snapshot) -> Query:
    history = snapshot.history
    excluded = item_keys(body.exclude)
    return Query(
        history.keys,
        history.ts,
        body.k,
        now,
        excluded,
        body.filter_seen,
        snapshot.coarse,
        per_interest=body.per_interest,
    )


def _as_of(snapshot: Snapshot) -> AsOf:
    ts = snapshot.history.ts
    return AsOf(ts=int(ts.max()) if len(ts) else None, offsets=snapshot.offsets)


def _is_behind(history: History, body: RecommendRequest) -> bool:
    if body.min_ts is None or body.user_id is None:
        return False
    return int(history.ts.max(initial=-1)) < body.min_ts


def _behind(found: Recommendations, history: History, body: RecommendRequest) -> Recommendations:
    """Say so when the history does not reach `min_ts`, unless there is worse to be said."""
    if _is_behind(history, body) and not found.degraded:
        return replace(found, degraded=True, reason=BEHIND)
    return found

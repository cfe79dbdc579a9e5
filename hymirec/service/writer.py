"""The writer: store, consumer thread and near-line coarse interests in one process.

After a batch is applied, the users it touched wait (bounded, the newest first) for their coarse interests to be
computed again by the ranker and cached. A request reads history and cached value in one call; the ranker takes the
cached value only when it is what it would compute now: a cache that is behind costs time and never changes an answer.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence

from hymirec.config import HistoryConfig, ServiceConfig
from hymirec.errors import HyMiRecError, OverloadedError, StoreUnavailableError, StreamError
from hymirec.history import RawStore, open_store
from hymirec.service.calls import ask
from hymirec.service.erasures import ErasingStore
from hymirec.service.nearline import CoarseCache, Pending
from hymirec.service.reports import WriterReport
from hymirec.service.scaling import WriterStats
from hymirec.service.stages import RankerStage, Snapshot
from hymirec.streaming import ConsumerStatus, HistoryConsumer, open_log
from hymirec.telemetry import COARSE_REFRESH_SECONDS, STORE_BYTES, STORE_USERS, Observe, timed, unobserved

log = logging.getLogger(__name__)
CACHED_USERS = 50_000
PENDING_USERS = 10_000
OPEN_SECONDS = 20.0
STALE_HEARTBEAT_SECONDS = 60.0
# How long an erasure is waited for; reads show nothing from the beginning.
ERASED_SECONDS = 1.0
STEP_SECONDS = 0.01
# How often the store is measured, and its users are counted, which reads all their heads.
MEASURE_SECONDS, COUNT_SECONDS = 60.0, 3_600.0


class Writer:
    """See `WriterStage`. Construct it inside a running event loop; `close` ends its thread and its task."""

    def __init__(self, config: ServiceConfig, ranker: RankerStage, observe: Observe = unobserved) -> None:
        self._ranker, self._observe = ranker, observe
        self._stage_seconds = config.limits.stage_timeout_seconds
        self._cache = CoarseCache(CACHED_USERS)
        self._pending = Pending(PENDING_USERS)
        self._reports = WriterReport(observe)
        self._stats = WriterStats(time.monotonic())
        self._wake = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._bundle = ""
        self._raw = _open_when_free(config.history)
        self._store = ErasingStore(self._raw, self._cache.drop)
        # Several writers share the partitions, and the store, as members of a group.
        self._consumer = HistoryConsumer(
            open_log(config.stream),
            self._store,
            config.stream,
            self._touched,
            group=config.most_writers > 1,
            observe=observe,
        )
        self._started = time.time()
        self._consumer.start()
        self._refresher = self._loop.create_task(self._refresh())
        self._measurer = self._loop.create_task(self._measure())

    def _touched(self, users: Sequence[str]) -> None:
        """On the consumer's thread."""
        self._pending.add(users)
        self._loop.call_soon_threadsafe(self._wake.set)

    async def _refresh(self) -> None:
        while True:
            user = self._pending.take()
            if user is None:
                self._wake.clear()
                await self._wake.wait()
                continue
            try:
                await self._refresh_user(user)
            except HyMiRecError as e:
                # Mostly a ranker that restarts or has more urgent work: the value is computed in the request instead.
                log.info("coarse interests of a user were not refreshed: %s", e)
                await asyncio.sleep(1.0 if isinstance(e, OverloadedError) else 0.2)

    async def _measure(self) -> None:
        """Tell the metrics how large the store is."""
        counted = float("-inf")
        while True:
            try:
                self._observe(STORE_BYTES, await asyncio.to_thread(self._raw.stored_bytes))
                if time.monotonic() - counted > COUNT_SECONDS:
                    self._observe(STORE_USERS, await asyncio.to_thread(lambda: sum(1 for _ in self._raw.users())))
                    counted = time.monotonic()
            except (HyMiRecError, OSError) as e:
                log.warning("the store was not measured: %s", e)
            await asyncio.sleep(MEASURE_SECONDS)

    async def _refresh_user(self, user: str) -> None:
        ticket = self._cache.ticket()
        history = await asyncio.to_thread(self._store.read, user)
        if not len(history):
            return
        with timed(self._observe, COARSE_REFRESH_SECONDS):
            coarse = await ask(
                "recommender",
                lambda: self._ranker.coarse(history.keys, history.ts, int(time.time())),
                self._stage_seconds,
            )
        self._cache.put(user, coarse, ticket)
        if coarse.bundle != self._bundle:
            if self._bundle:
                # Another bundle serves: everything that is cached has to be computed again.
                self._pending.add(self._cache.users())
            self._bundle = coarse.bundle

    async def snapshot(self, user_id: str, limit: int | None = None) -> Snapshot:
        """A user's history with what is cached for the user."""
        # The order matters: offsets that are read first are never ahead of the history.
        positions = self._consumer.status().positions
        history = await asyncio.to_thread(self._store.read, user_id, limit)
        offsets = {str(partition): offset for partition, offset in sorted(positions.items())}
        return Snapshot(history, self._cache.get(user_id) if len(history) else None, offsets)

    async def first(self, user_id: str) -> tuple[int, int] | None:
        """See `ErasingStore.first`."""
        return await asyncio.to_thread(self._store.first, user_id)

    async def hide(self, user_id: str, first: tuple[int, int] | None) -> None:
        """Show nothing of the user from now on; returns when the erasure is applied, or after a second."""
        self._store.hide(user_id, first)
        end = time.monotonic() + ERASED_SECONDS
        while await asyncio.to_thread(self._store.hidden, user_id) and time.monotonic() < end:
            await asyncio.sleep(STEP_SECONDS)

    async def status(self) -> Sequence[ConsumerStatus]:
        """The consumer's own account."""
        return [self._consumer.status()]

    def report(self) -> None:
        """Tell the metrics how things stand; to be called every few seconds."""
        self._reports.consumer(self._consumer.status())
        self._reports.coarse(len(self._cache), len(self._pending), self._pending.forgotten)

    def stats(self) -> dict[str, float]:
        """What the autoscaler is told every few seconds; see `WriterStats`."""
        return self._stats.of(self._consumer.status(), time.monotonic())

    def check(self) -> None:
        """Raise StreamError when the consumer's thread has ended or is stuck, so that this replica is replaced."""
        if self._refresher.done():
            raise StreamError("the near-line task has ended; this replica is replaced")
        status = self._consumer.status()
        if not status.alive:
            raise StreamError("the consumer's thread has ended; this replica is replaced")
        silent = time.time() - (status.heartbeat or self._started)
        if silent > STALE_HEARTBEAT_SECONDS:
            raise StreamError(f"the consumer has not moved for {silent:.0f} s; this replica is replaced")

    def close(self) -> None:
        """Finish the batch in progress, end the thread, close the store."""
        self._refresher.cancel()
        self._measurer.cancel()
        self._consumer.stop()
        self._store.close()


def _open_when_free(config: HistoryConfig) -> RawStore:
    """Open the store; the replica before this one may still be closing it."""
    end = time.monotonic() + OPEN_SECONDS
    while True:
        try:
            return open_store(config)
        except StoreUnavailableError:
            if time.monotonic() > end:
                raise
            time.sleep(0.2)

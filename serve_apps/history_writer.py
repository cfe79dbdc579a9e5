"""The history writer deployment: consumer thread, store, and near-line coarse interests."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from dataclasses import dataclass
from typing import Any

from ray import serve
from ray.serve.handle import DeploymentHandle

from hymirec.config import ServiceConfig
from hymirec.errors import HyMiRecError, StreamError
from hymirec.history import History, open_store
from hymirec.inference import Coarse
from hymirec.service.nearline import CoarseCache, Pending
from hymirec.streaming import ConsumerStatus, HistoryConsumer, open_log

log = logging.getLogger(__name__)
CACHED_USERS = 100_000
PENDING_USERS = 10_000
REFRESH_SECONDS = 5.0
STALE_HEARTBEAT_SECONDS = 60.0
HIDDEN_SECONDS = 60.0


@dataclass(frozen=True)
class Snapshot:
    """What a request reads in one call: history, coarse interests if any, and how far the log was applied."""

    history: History
    coarse: Coarse | None
    offsets: dict[str, int]


@serve.deployment
class HistoryWriter:
    """Owns the store of its partitions. Starts where the store says it is."""

    def __init__(self, config: ServiceConfig, recommender: DeploymentHandle) -> None:
        self._config = config
        self._recommender = recommender
        self._store = open_store(config.history)
        self._cache = CoarseCache(CACHED_USERS)
        self._pending = Pending(PENDING_USERS)
        self._hidden: dict[str, float] = {}
        self._stop = threading.Event()
        group = config.writer_replicas > 1
        self._consumer = HistoryConsumer(
            open_log(config.stream), self._store, config.stream, on_applied=self._pending.add, group=group
        )
        self._refresher = threading.Thread(target=self._refresh, name="near-line", daemon=True)
        self._consumer.start()
        self._refresher.start()

    def _refresh(self) -> None:
        """Coarse interests of users that just acted: the newest first; a failure costs nothing but the head start."""
        while not self._stop.is_set():
            user = self._pending.take(timeout=0.5)
            if user is None:
                continue
            try:
                history = self._store.read(user)
                if not len(history):
                    self._cache.drop(user)
                    continue
                asked = self._recommender.coarse.remote(history.keys, history.ts, int(time.time()))
                self._cache.put(user, asked.result(timeout_s=REFRESH_SECONDS))
            except Exception as e:  # noqa: BLE001 - the recommender may be anything from restarting to overloaded
                log.warning("coarse interests of a user were not refreshed: %s", e)
                self._stop.wait(0.2)

    async def snapshot(self, user_id: str, limit: int | None = None) -> Snapshot:
        """A user's history with what is cached for it."""
        history = await asyncio.to_thread(self._read, user_id, limit)
        status = self._consumer.status()
        offsets = {str(partition): offset for partition, offset in sorted(status.positions.items())}
        return Snapshot(history, self._cache.get(user_id) if len(history) else None, offsets)

    def _read(self, user_id: str, limit: int | None) -> History:
        history = self._store.read(user_id, limit)
        until = self._hidden.get(user_id)
        if until is None:
            return history
        if not history.count or time.monotonic() > until:
            self._hidden.pop(user_id, None)
            return history
        return self._store.read("\0hidden", 0)

    async def hide(self, user_id: str) -> None:
        """A user's erasure is in the log: nothing is shown from now on, until it is applied."""
        self._hidden[user_id] = time.monotonic() + HIDDEN_SECONDS
        self._cache.drop(user_id)

    async def status(self) -> ConsumerStatus:
        """The consumer's own account."""
        return self._consumer.status()

    def check_health(self) -> Any:
        """A dead or stuck thread: Serve replaces this replica, and the new one starts at the stored position."""
        status = self._consumer.status()
        if not status.alive:
            raise StreamError("the consumer's thread has ended; this replica is replaced")
        if status.heartbeat and time.time() - status.heartbeat > STALE_HEARTBEAT_SECONDS:
            raise StreamError(
                f"the consumer has not moved for {STALE_HEARTBEAT_SECONDS:.0f} s; this replica is replaced"
            )

    def __del__(self) -> None:
        self._stop.set()
        try:
            self._consumer.stop()
            self._store.close()
        except (HyMiRecError, AttributeError) as e:
            log.warning("closing the history writer: %s", e)

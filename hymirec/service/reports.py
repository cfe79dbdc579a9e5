"""How a history writer stands, told to the metrics every few seconds."""

from __future__ import annotations

import time

from hymirec.streaming import ConsumerStatus
from hymirec.telemetry import (
    COARSE_CACHED,
    COARSE_FORGOTTEN,
    COARSE_PENDING,
    CONSUMER_PROBLEMS,
    CONSUMER_READY,
    EVENTS,
    HEARTBEAT_AGE,
    LAG_EVENTS,
    LAG_SECONDS,
    Observe,
)

CAUSES = ("partition", "store", "log", "consumer")


class WriterReport:
    """Remembers what it told: counters get what has come since, and what is no longer there is told to be 0."""

    def __init__(self, observe: Observe) -> None:
        self._observe = observe
        self._counts: dict[str, int] = {}
        self._partitions: set[int] = set()
        self._forgotten = 0

    def consumer(self, status: ConsumerStatus) -> None:
        """Readiness, problems, lag, and events since the last report."""
        self._observe(CONSUMER_READY, float(status.ready))
        self._observe(HEARTBEAT_AGE, max(0.0, status.heartbeat_age))
        causes = ["partition" if name.isdigit() else name for name in status.problems]
        for cause in CAUSES:
            self._observe(CONSUMER_PROBLEMS, causes.count(cause), cause=cause)
        # A partition that another writer has now is that one's to tell of.
        for partition in sorted(self._partitions | set(status.lag)):
            behind = status.lag.get(partition, 0)
            taken = status.taken.get(partition)
            seconds = max(0.0, time.time() - taken / 1000) if behind and taken else 0.0
            self._observe(LAG_EVENTS, behind, partition=str(partition))
            self._observe(LAG_SECONDS, seconds, partition=str(partition))
        self._partitions = set(status.lag)
        for result, count in status.counts.items():
            if count > self._counts.get(result, 0):
                self._observe(EVENTS, count - self._counts.get(result, 0), result=result)
        self._counts = dict(status.counts)

    def coarse(self, cached: int, pending: int, forgotten: int) -> None:
        """Users whose coarse interests are cached, wait, and were dropped from the queue since the process began."""
        self._observe(COARSE_CACHED, cached)
        self._observe(COARSE_PENDING, pending)
        if forgotten > self._forgotten:
            self._observe(COARSE_FORGOTTEN, forgotten - self._forgotten)
        self._forgotten = forgotten

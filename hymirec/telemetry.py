"""Every metric of the service, once. Whoever measures is given an `Observe`; what keeps the numbers comes from outside.

`serve_apps/meters.py` keeps them in Ray Serve's metrics. There every series also has the labels application, deployment
and replica, and Prometheus sees each name with the prefix `ray_`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, NamedTuple, Protocol

# From a cached answer on a fast machine to a request's deadline.
SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)


class Metric(NamedTuple):
    """Its name ends with its unit; `labels` are to be given with every value, in any order.

    `boundaries` are the upper ends of a histogram's buckets.
    """

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...] = ()
    boundaries: tuple[float, ...] = SECONDS


class Observe(Protocol):
    """Adds to a counter, sets a gauge, or puts a value into a histogram. Cheap, and safe to call from any thread."""

    def __call__(self, metric: Metric, value: float, **labels: str) -> None: ...


def unobserved(metric: Metric, value: float, **labels: str) -> None:
    """An `Observe` that keeps nothing."""


@contextmanager
def timed(observe: Observe, metric: Metric, **labels: str) -> Iterator[None]:
    """Observe the seconds that a block took; nothing when it raises."""
    begun = time.perf_counter()
    yield
    observe(metric, time.perf_counter() - begun, **labels)


RESPONSES = Metric("hymirec_responses_total", "counter", "HTTP responses by status.", ("status",))
SHED = Metric(
    "hymirec_shed_total", "counter", "Requests turned away because the door or a stage had no room.", ("where",)
)
RATE_LIMITED = Metric(
    "hymirec_rate_limited_total",
    "counter",
    "Requests turned away because their token had used up its requests a second, by the scope that they needed.",
    ("scope",),
)
EVENTS_ACCEPTED = Metric("hymirec_events_accepted_total", "counter", "Events that the ingress put into the log.")
RECOMMEND_SECONDS = Metric(
    "hymirec_recommend_seconds", "histogram", "A recommendation, from body to reply, by its reason.", ("reason",)
)
DEGRADED = Metric("hymirec_degraded_total", "counter", "Recommendations below the full answer, by reason.", ("reason",))
UNKNOWN_ITEMS = Metric(
    "hymirec_unknown_items_total", "counter", "Items of histories that the bundle does not know, seen by requests."
)
STAGE_SECONDS = Metric(
    "hymirec_stage_seconds",
    "histogram",
    "Parts of a recommendation. Asked by the ingress: history, recommender. Inside the recommender: wait (in line); "
    "once a pass, for all its requests together: coarse, model, index.",
    ("stage",),
)
BATCH_REQUESTS = Metric(
    "hymirec_batch_requests",
    "histogram",
    "Requests answered in one pass of the model.",
    boundaries=(1, 2, 4, 8, 16, 32, 64, 128),
)
INTEREST_OVERLAP = Metric(
    "hymirec_interest_overlap_ratio",
    "histogram",
    "Mean cosine between the interests of a reply: near 1 they are one interest.",
    boundaries=(0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0),
)
DROPPED = Metric(
    "hymirec_dropped_total",
    "counter",
    "Requests taken out of the model's line unanswered: their caller had gone, or their time had passed.",
)
COARSE_CACHE = Metric(
    "hymirec_coarse_cache_total",
    "counter",
    "Requests by what became of the cached coarse interests: hit, stale (computed again), miss.",
    ("result",),
)
BUNDLE_INFO = Metric("hymirec_bundle_info", "gauge", "1 for the bundle that a replica serves.", ("bundle",))
BUNDLE_AGE = Metric("hymirec_bundle_age_seconds", "gauge", "Since the manifest of the bundle that serves was written.")
BUNDLE_ITEMS = Metric("hymirec_bundle_items", "gauge", "Items of the bundle that serves.")
EVENTS = Metric(
    "hymirec_events_total",
    "counter",
    "Events of the log by what became of them: applied, duplicates, erased, suppressed, conflicts, unknown_action, "
    "future_ts, rejected_REASON (a dead letter).",
    ("result",),
)
LAG_EVENTS = Metric("hymirec_lag_events", "gauge", "Messages of a partition that are not applied yet.", ("partition",))
LAG_SECONDS = Metric(
    "hymirec_lag_seconds",
    "gauge",
    "How long ago the log took the newest applied message of a partition that has more; 0 when it has none.",
    ("partition",),
)
APPLY_EVENTS = Metric(
    "hymirec_apply_events",
    "histogram",
    "Messages of one partition that were decoded and applied at once.",
    boundaries=(1, 10, 100, 500, 1_000, 2_000, 5_000, 10_000),
)
APPLY_SECONDS = Metric("hymirec_apply_seconds", "histogram", "One batch applied by the store, with its position.")
EVENT_VISIBLE_SECONDS = Metric(
    "hymirec_event_visible_seconds",
    "histogram",
    "From the log's taking of a batch's oldest message to the batch being readable.",
    boundaries=(0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 60.0, 600.0, 3_600.0),
)
STORE_BYTES = Metric(
    "hymirec_store_bytes", "gauge", "The history store: files of RocksDB, or all memory that the Redis server uses."
)
STORE_USERS = Metric("hymirec_store_users", "gauge", "Users who have a history, counted every hour.")
CONSUMER_READY = Metric("hymirec_consumer_ready", "gauge", "1 while nothing hinders a history writer, else 0.")
CONSUMER_PROBLEMS = Metric(
    "hymirec_consumer_problems", "gauge", "What hinders a history writer: partition, store, log, consumer.", ("cause",)
)
HEARTBEAT_AGE = Metric(
    "hymirec_consumer_heartbeat_age_seconds", "gauge", "Since the consumer last finished a round or told a problem."
)
COARSE_CACHED = Metric("hymirec_coarse_cached_users", "gauge", "Users whose coarse interests are cached.")
COARSE_PENDING = Metric("hymirec_coarse_pending_users", "gauge", "Users who wait for their coarse interests.")
COARSE_FORGOTTEN = Metric(
    "hymirec_coarse_forgotten_total", "counter", "Users dropped from a full queue; a request computes for them."
)
COARSE_REFRESH_SECONDS = Metric(
    "hymirec_coarse_refresh_seconds", "histogram", "Coarse interests of one user refreshed near-line."
)

METRICS = (
    RESPONSES,
    SHED,
    RATE_LIMITED,
    EVENTS_ACCEPTED,
    RECOMMEND_SECONDS,
    DEGRADED,
    UNKNOWN_ITEMS,
    STAGE_SECONDS,
    BATCH_REQUESTS,
    DROPPED,
    INTEREST_OVERLAP,
    COARSE_CACHE,
    BUNDLE_INFO,
    BUNDLE_AGE,
    BUNDLE_ITEMS,
    EVENTS,
    LAG_EVENTS,
    LAG_SECONDS,
    APPLY_EVENTS,
    APPLY_SECONDS,
    EVENT_VISIBLE_SECONDS,
    STORE_BYTES,
    STORE_USERS,
    CONSUMER_READY,
    CONSUMER_PROBLEMS,
    HEARTBEAT_AGE,
    COARSE_CACHED,
    COARSE_PENDING,
    COARSE_FORGOTTEN,
    COARSE_REFRESH_SECONDS,
)

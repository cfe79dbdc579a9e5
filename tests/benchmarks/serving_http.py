"""The service over HTTP on Ray Serve: answers a second, and how long each part of an answer takes.

A closed loop of clients, service and clients on this machine, one recommender with one thread. The peer is the model's
forward pass and the search alone, in batches as large as the service's were on average, in this process. Beside the
figures: p50, p95 and p99 that clients see, and those of each stage, read from the metrics that Prometheus would read.

`HYMIREC_BUNDLE` names a bundle; without it, one of the size of the demo's with fresh weights.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
import time
import urllib.request
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "faults"))
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import numpy as np
import ray
from bench_kit import Figure, main
from prometheus_client.parser import text_string_to_metric_families
from service_kit import BASE_TS
from serving_bundle import HISTORY, serving_bundle
from serving_kit import running, small_ray, traffic
from serving_overhead import USERS, PlainLoop, one_thread

from hymirec import HyMiRec
from hymirec.load import Load, LoadPlan, report
from hymirec.telemetry import BATCH_REQUESTS, STAGE_SECONDS

CLIENTS, SECONDS, ROUNDS, K, NOW = (1, 4, 16), 20.0, 3, 20, BASE_TS + 1_000_000
PLAIN_REQUESTS = 160
# The service may cost half as much again as the model and the search.
GOAL = 1 / 1.5
# Ray hands metrics over every ten seconds.
SETTLED_SECONDS = 12.0
QUANTILES = (0.5, 0.95, 0.99)
Buckets = dict[float, float]


class Told(NamedTuple):
    """Counters of the service: stages by name, each with how many took at most so long; requests and passes."""

    stages: dict[str, Buckets]
    requests: float
    passes: float


def told() -> Told:
    """What the service has told until now."""
    time.sleep(SETTLED_SECONDS)
    port = ray.nodes()[0]["MetricsExportPort"]
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as reply:
        text = reply.read().decode()
    stages: dict[str, Buckets] = defaultdict(lambda: defaultdict(float))
    sums: dict[str, float] = defaultdict(float)
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == f"ray_{STAGE_SECONDS.name}_bucket":
                stages[sample.labels["stage"]][float(sample.labels["le"])] += sample.value
            else:
                sums[sample.name] += sample.value
    batches = f"ray_{BATCH_REQUESTS.name}"
    return Told(stages, sums[f"{batches}_sum"], sums[f"{batches}_count"])


def quantiles(before: Buckets, after: Buckets) -> list[float]:
    """Milliseconds, as Prometheus' `histogram_quantile` has them: evenly inside a bucket."""
    ends = sorted(after)
    counts = np.array([after[end] - before.get(end, 0.0) for end in ends])
    if not len(counts) or counts[-1] <= 0:
        return [float("nan")] * len(QUANTILES)
    # What took longer than the last bucket's end is put at that end.
    finite = [end if np.isfinite(end) else ends[-2] for end in ends]
    return [1e3 * float(np.interp(q * counts[-1], [0.0, *counts], [0.0, *finite])) for q in QUANTILES]


def figures() -> Iterator[Figure]:
    """Rounds of 1, 4 and 16 clients, and the plain loop after each."""
    one_thread()
    with tempfile.TemporaryDirectory() as directory, small_ray():
        place = Path(directory)
        bundle = serving_bundle(place)
        model = HyMiRec.from_pretrained(bundle)
        catalog, rng = model.bundle.catalog, np.random.default_rng(0)
        items = [str(catalog.item_id(index)) for index in range(catalog.size)]
        chosen = [rng.choice(len(items), min(HISTORY, len(items) // 2), replace=False) for _ in range(USERS)]
        histories = [[(items[int(i)], BASE_TS + at * 3_600) for at, i in enumerate(ids)] for ids in chosen]
        visits = traffic({f"u{user}": history for user, history in enumerate(histories)}, items)
        plain = PlainLoop(model, histories, with_coarse=False)
        # What is popular now stays that of the bundle, as in the plain loop.
        settings = {"recommender_replicas": 1, "max_recommender_replicas": 1, "trend_backlog": 0}
        with running(bundle, place, **settings) as application:
            plan = LoadPlan(application.url, seconds=3.0, clients=1, k=K, event_share=0, timeout=30, now=NOW)
            asyncio.run(Load(plan, visits).run(past=True))
            rates: dict[int, list[tuple[float, float]]] = {clients: [] for clients in CLIENTS}
            for turn in range(ROUNDS):
                for clients in CLIENTS if turn % 2 == 0 else reversed(CLIENTS):
                    before = told()
                    plan = LoadPlan(
                        application.url, SECONDS, clients=clients, k=K, event_share=0, timeout=30, seed=turn, now=NOW
                    )
                    found = report(asyncio.run(Load(plan, visits).run()), 1.0)
                    after = told()
                    assert not found["failed"], found
                    assert not found["wrong"], found
                    # A pass that ends while Ray hands metrics over may be told before its requests are.
                    size = max(1.0, (after.requests - before.requests) / (after.passes - before.passes))
                    rates[clients].append((found["answered_per_second"], _plain_rate(plain, size)))
                    sys.stdout.write(_line(clients, found, before, after, size))
                    sys.stdout.flush()
        for clients, pairs in rates.items():
            yield _figure(clients, pairs)


def _plain_rate(plain: PlainLoop, size: float) -> float:
    """Answers a second of forward passes and searches alone, of so many requests each on average."""
    small = int(size)
    passes = round(PLAIN_REQUESTS / size)
    larger = round((size - small) * passes)
    sizes = [small + 1] * larger + [small] * (passes - larger)
    begun = time.perf_counter()
    plain.run(sizes)
    return sum(sizes) / (time.perf_counter() - begun)


def _line(clients: int, found: dict[str, object], before: Told, after: Told, size: float) -> str:
    parts = []
    for stage, buckets in sorted(after.stages.items()):
        three = quantiles(before.stages.get(stage, {}), buckets)
        parts.append(f"{stage} " + "/".join(f"{ms:.1f}" for ms in three))
    return (
        f"  {clients} clients: {found['answered_per_second']} / s, seen {found['latency']}, mean batch {size:.1f}; "
        f"ms p50/p95/p99 by stage: {'; '.join(parts)}; degraded {found['degraded']}\n"
    )


def _figure(clients: int, pairs: list[tuple[float, float]]) -> Figure:
    ours, peer = (float(np.median(column)) for column in zip(*pairs, strict=True))
    ratios = sorted(mine / theirs for mine, theirs in pairs)
    return {
        "figure": f"answers a second over HTTP against forward and search alone, {clients} clients",
        "ours": round(ours, 2),
        "peer": round(peer, 2),
        "ratio": round(ours / peer, 3),
        "goal": round(GOAL, 3),
        "ok": ours / peer >= GOAL,
        "unit": "1/s",
        "spread": [round(ratios[0], 3), round(ratios[-1], 3)],
    }


if __name__ == "__main__":
    main(figures)

"""Replicas killed under load: no request fails, no event is lost or counts twice."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
from fault_part import Part
from patience import until
from ray import serve
from serve_kit import Application
from serving_kit import Loading, Poster, histories, item_ids, judged, running, traffic

from hymirec.load import LoadPlan, Samples
from serve_apps.local import NAME

CLIENTS = 3
LONG = 100_000.0
REPLICAS = 2
# A new replica imports torch and verifies its bundle, on a machine that may be busy.
REPLACED_SECONDS = 300.0


def recommender_kills(bundle: Path, directory: Path, kills: int, seed: int = 1, clients: int = CLIENTS) -> Part:
    """One of two recommenders is killed, again and again, each time as soon as both are there."""
    begun, rng = time.monotonic(), random.Random(seed)
    items = item_ids(bundle)
    past = histories(items)
    replaced: list[float] = []
    with running(bundle, directory) as application:
        plan = LoadPlan(application.url, seconds=LONG, clients=clients, k=10, event_share=0.1, probe_share=0)
        loading = Loading(plan, traffic(past, items), past=True)
        with loading:
            until(lambda: loading.alive() and len(loading.samples.asked) > 20, 300)
            for number in range(1, kills + 1):
                time.sleep(rng.random())
                victim = rng.choice(application.processes("Recommender"))
                killed = time.monotonic()
                os.kill(victim, signal.SIGKILL)
                until(partial(_replaced, application, victim), REPLACED_SECONDS)
                replaced.append(time.monotonic() - killed)
                sys.stderr.write(f"{number} recommenders killed: {_answers(loading.samples)}\n")
            asked = len(loading.samples.asked)
            until(lambda: len(loading.samples.asked) > asked + 20, 60)
    samples = loading.samples
    details = _answers(samples) | {"seconds until both run again, median": round(float(np.median(replaced)), 1)}
    return Part(
        "SIGKILL of a recommender under load",
        kills,
        judged(samples) + _lost_posts(samples),
        time.monotonic() - begun,
        details,
        [f"{count} x {what}" for what, count in samples.notes.items()],
    )


def writer_kills(bundle: Path, directory: Path, kills: int, seed: int = 1, clients: int = 1) -> Part:
    """The only history writer is killed while events arrive, each of them twice; it has to catch up before the next."""
    begun, rng = time.monotonic(), random.Random(seed)
    items = item_ids(bundle)
    past = histories(items)
    faults: Counter[str] = Counter()
    caught_up: list[float] = []
    with running(bundle, directory) as application:
        plan = LoadPlan(application.url, seconds=LONG, clients=clients, k=10, event_share=0)
        loading = Loading(plan, traffic(past, items), past=True)
        with loading, Poster(application, items, pause=0.05) as poster:
            until(lambda: loading.alive() and len(loading.samples.asked) > 20, 300)
            for number in range(1, kills + 1):
                time.sleep(1 + rng.random())
                (victim,) = application.processes("HistoryWriter")
                killed = time.monotonic()
                os.kill(victim, signal.SIGKILL)
                until(partial(_is_gone, application, victim), 60)
                until(lambda: _caught_up(application), REPLACED_SECONDS)
                caught_up.append(time.monotonic() - killed)
                sys.stderr.write(f"{number} writers killed: {_answers(loading.samples)}\n")
        for user, sent in poster.sent.items():
            found = application.history(user, len(sent))
            if found != sent:
                faults["events lost, doubled or reordered"] += 1
    samples = loading.samples
    details = _answers(samples) | {
        "events accepted (each sent twice)": sum(len(sent) for sent in poster.sent.values()),
        "events refused and sent again": sum(poster.refused.values()),
        "seconds until caught up, median": round(float(np.median(caught_up)), 1),
        "seconds until caught up, longest": round(max(caught_up), 1),
    }
    notes = [f"{count} x {what}" for what, count in samples.notes.items()]
    return Part(
        "SIGKILL of the writer under load", kills, faults + judged(samples), time.monotonic() - begun, details, notes
    )


def _replaced(application: Application, victim: int) -> bool:
    processes = application.processes("Recommender")
    states = serve.status().applications[NAME].deployments["Recommender"].replica_states
    running = sum(count for state, count in states.items() if str(getattr(state, "value", state)) == "RUNNING")
    return victim not in processes and len(processes) == REPLICAS and running == REPLICAS


def _is_gone(application: Application, victim: int) -> bool:
    return victim not in application.processes("HistoryWriter")


def _caught_up(application: Application) -> bool:
    reply = application.call("GET", "/readyz")
    return reply.status == 200 and not any(reply.body["lag"].values())


def _answers(samples: Samples) -> dict[str, float]:
    asked = samples.asked
    degraded = Counter(f"degraded: {s.reason}" for s in asked if s.outcome == "degraded")
    share = degraded.total() / max(1, len(asked))
    longest = max((s.seconds for s in asked), default=0.0)
    return {
        "requests": len(asked),
        "failed, shed or wrong": judged(samples).total(),
        "degraded, percent": round(100 * share, 3),
        "longest answer, seconds": round(longest, 2),
        **degraded,
    }


def _lost_posts(samples: Samples) -> Counter[str]:
    return Counter({"event not accepted": sum(s.outcome != "full" for s in samples.posted)})

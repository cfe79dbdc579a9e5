"""Hours in miniature: half of what the service can do, for a long time; nothing may grow, nothing may fail."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
from fault_part import Part
from patience import until
from serving_kit import Loading, histories, item_ids, judged, running, traffic

from hymirec.load import LoadPlan
from hymirec.load.report import percentiles

SAMPLE_SECONDS = 5.0
# Caches and allocators fill first.
WARM_SHARE = 1 / 3


def soak(bundle: Path, directory: Path, seconds: float, rate: float) -> Part:
    """`rate` visits a second, half of them with an event; memory and lag are looked at all the while."""
    begun = time.monotonic()
    items = item_ids(bundle)
    past = histories(items, users=500)
    memory: list[tuple[float, dict[str, float]]] = []
    lags: list[int] = []
    with running(bundle, directory) as application:
        plan = LoadPlan(application.url, seconds=10 * seconds, rate=rate, k=10, event_share=0.5)
        loading = Loading(plan, traffic(past, items), past=True)
        with loading:
            until(lambda: loading.alive() and len(loading.samples.asked) > 20, 300)
            start = time.monotonic()
            while (now := time.monotonic() - start) < seconds:
                memory.append((now, application.memory()))
                ready = application.call("GET", "/readyz")
                lags.append(sum(ready.body["lag"].values()) if ready.status == 200 else -1)
                time.sleep(SAMPLE_SECONDS)
        until(lambda: not any(application.call("GET", "/readyz").body.get("lag", {"": 1}).values()), 120)
    samples = loading.samples
    faults = judged(samples)
    faults["event not accepted"] += sum(s.outcome == "failed" for s in samples.posted)
    faults["event never visible"] += samples.never_visible
    faults["not ready"] += sum(lag < 0 for lag in lags)
    seen = percentiles(samples.visible)
    answers = percentiles([s.seconds for s in samples.asked if s.outcome in ("full", "degraded")])
    details = {
        "requests": len(samples.asked),
        "degraded": sum(s.outcome == "degraded" for s in samples.asked),
        "events": len(samples.posted),
        "lag in events, median": float(np.median(lags)),
        "lag in events, most": max(lags),
        **{f"answer, {name}": value for name, value in answers.items()},
        **{f"event to visible, {name}": value for name, value in seen.items()},
        **_slopes(memory),
    }
    notes = [f"{count} x {what}" for what, count in samples.notes.items()]
    return Part(
        f"soak, {seconds / 60:.0f} minutes", len(samples.asked), +faults, time.monotonic() - begun, details, notes
    )


def _slopes(memory: list[tuple[float, dict[str, float]]]) -> dict[str, float]:
    """Of each deployment: memory at the end, and by how much it grows in an hour, in MB: in each half of what is kept.

    A leak goes on as it began; caches and allocators fill.
    """
    kept = memory[int(len(memory) * WARM_SHARE) :]
    found = {}
    for name in kept[0][1]:
        found[f"{name}, MB at the end"] = round(kept[-1][1][name] / 1e6, 1)
        for half, samples in (("first", kept[: len(kept) // 2]), ("second", kept[len(kept) // 2 :])):
            at, values = [seconds for seconds, _ in samples], [then[name] / 1e6 for _, then in samples]
            found[f"{name}, MB an hour, {half} half"] = round(float(np.polyfit(at, values, 1)[0] * 3600), 1)
    return found

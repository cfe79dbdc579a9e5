"""Bundles swapped under load, damaged ones among them: every reply is that of the bundle that it names."""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from fault_part import Part
from patience import until
from serve_kit import Application, Reply
from serving_kit import NOW, Loading, Poster, histories, item_ids, judged, running, traffic
from serving_releases import Truth, damages, release

from hymirec.load import LoadPlan, Sample

RELEASES = 6
CLIENTS = 4
K = 10
LONG = 100_000.0
# Serve gives a request up after a while; the same call again waits for the same swap.
PATIENCE_SECONDS = 300.0


class SwapRun:
    """One running service whose bundle is swapped again and again."""

    def __init__(self, bundle: Path, directory: Path, corrupt: int, clients: int = CLIENTS) -> None:
        self._directory, self._clients = directory, clients
        self._releases = [release(bundle, directory / f"release-{number}", number) for number in range(RELEASES)]
        self._items = item_ids(bundle)
        self._histories = histories(self._items)
        self._truth = Truth(self._releases, self._histories, NOW)
        self._damaged = _damaged(self._releases[0], directory, corrupt)
        self._serving = 0
        self.swapped: list[tuple[float, float]] = []
        self.refused: list[tuple[float, float]] = []
        self.faults: Counter[str] = Counter()
        self.notes: list[str] = []

    def run(self, swaps: int, requests: int) -> Part:
        """So many swaps, spread over at least so many requests, the damaged bundles in between."""
        begun = time.monotonic()
        with running(self._releases[0], self._directory) as application:
            plan = LoadPlan(
                application.url,
                seconds=LONG,
                clients=self._clients,
                k=K,
                event_share=0,
                bundles=frozenset(self._truth.ids),
                now=NOW,
            )
            loading = Loading(plan, traffic(self._histories, self._items), self._truth, past=True)
            with loading, Poster(application, self._items):
                until(lambda: loading.alive() and len(loading.samples.asked) > 20, 300)
                self._swap_all(application, loading, swaps, requests)
                until(lambda: len(loading.samples.asked) >= requests, 7_200)
        asked = loading.samples.asked
        self.faults += judged(loading.samples)
        self.notes += [f"{count} x {what}" for what, count in loading.samples.notes.items()]
        trials = swaps + len(self._damaged)
        seconds = time.monotonic() - begun
        return Part("bundle swaps under load", trials, self.faults, seconds, self._figures(asked), self.notes)

    def _swap_all(self, application: Application, loading: Loading, swaps: int, requests: int) -> None:
        damaged = list(self._damaged.items())
        for number in range(swaps):
            self._swap(application, loading)
            # As long again without a swap, and an equal share of the requests.
            begun, ended = self.swapped[-1]
            while loading.elapsed() < 2 * ended - begun or len(loading.samples.asked) < requests * (number + 1) / swaps:
                time.sleep(0.05)
            for name, (path, named) in damaged[number * len(damaged) // swaps : (number + 1) * len(damaged) // swaps]:
                self._refuse(application, loading, name, path, named)

    def _swap(self, application: Application, loading: Loading) -> None:
        self._serving = (self._serving + 1) % RELEASES
        begun = loading.elapsed()
        reply = _patiently(application, self._releases[self._serving])
        self.swapped.append((begun, loading.elapsed()))
        if (reply.status, reply.body.get("bundle")) != (200, self._truth.ids[self._serving]):
            self.faults["not swapped"] += 1
            self.notes.append(f"a swap: {reply}")

    def _refuse(self, application: Application, loading: Loading, name: str, path: Path, named: str) -> None:
        begun = loading.elapsed()
        reply = _patiently(application, path)
        self.refused.append((begun, loading.elapsed()))
        if reply.status != 409:
            self.faults["damaged bundle not refused"] += 1
            self.notes.append(f"{name}: {reply}")
        elif named not in reply.body["detail"]:
            self.faults["refused without its cause"] += 1
            self.notes.append(f"{name}: {reply.body['detail']}")
        # Replies of the load that name the damaged bundle are found by it: nobody knows that id.
        if application.call("GET", "/readyz").body.get("bundle") != self._truth.ids[self._serving]:
            self.faults["the old bundle does not serve"] += 1

    def _figures(self, asked: Sequence[Sample]) -> dict[str, float]:
        within = {name: _during(asked, spans) for name, spans in (("swap", self.swapped), ("refusal", self.refused))}
        busy = [*self.swapped, *self.refused]
        calm = [s.seconds for s in asked if not _overlaps(s, busy)]
        found = {
            "requests": len(asked),
            "requests during a swap": len(within["swap"]),
            "full answers": sum(s.outcome == "full" for s in asked),
            "degraded": sum(s.outcome == "degraded" for s in asked),
            "seconds of a swap, median": _median([end - begin for begin, end in self.swapped]),
            "p50 ms, no swap": _p(calm, 50),
            "p50 ms, during a swap": _p(within["swap"], 50),
            "p99 ms, no swap": _p(calm, 99),
            "p99 ms, during a swap": _p(within["swap"], 99),
            "p99 ms, during a refusal": _p(within["refusal"], 99),
        }
        return {name: round(value, 2) for name, value in found.items()}


def _damaged(bundle: Path, directory: Path, most: int) -> dict[str, tuple[Path, str]]:
    """Copies of a bundle, each damaged in another way; `most` of the ways, evenly taken."""
    ways = list(damages(bundle).items())
    taken = [ways[number * len(ways) // most] for number in range(min(most, len(ways)))]
    found = {}
    for number, (name, (damage, named)) in enumerate(taken):
        path = directory / f"damaged-{number}"
        shutil.copytree(bundle, path)
        damage(path)
        found[name] = (path, named)
    return found


def _patiently(application: Application, path: Path) -> Reply:
    end = time.monotonic() + PATIENCE_SECONDS
    while True:
        reply = application.call("POST", "/v1/admin/bundle", {"path": str(path)})
        if reply.status not in (408, 503) or time.monotonic() > end:
            return reply


def _overlaps(sample: Sample, spans: Sequence[tuple[float, float]]) -> bool:
    return any(sample.at < end and sample.at + sample.seconds > begin for begin, end in spans)


def _during(asked: Sequence[Sample], spans: Sequence[tuple[float, float]]) -> list[float]:
    return [sample.seconds for sample in asked if _overlaps(sample, spans)]


def _median(values: Sequence[float]) -> float:
    return float(np.median(values)) if values else 0.0


def _p(seconds: Sequence[float], percentile: int) -> float:
    """Milliseconds."""
    return 1000 * float(np.percentile(seconds, percentile)) if seconds else 0.0

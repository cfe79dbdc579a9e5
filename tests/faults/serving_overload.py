"""More than the service can do: what it can do it still does, the rest is turned away at once, and memory stays.

The recommender is the bottleneck, as it is where a language model ranks: its model is made large enough that an answer
costs it many times what HTTP costs. Load and service share this machine, so rounds of all loads alternate.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from fault_part import Part
from patience import until
from serve_kit import Application
from serving_kit import histories, item_ids, running, traffic
from tiny_run import build_run, tiny_config

from hymirec.config import PipelineConfig, parse
from hymirec.load import Load, LoadPlan, Traffic, report

FACTORS = (1, 2, 5, 10)
CLIENTS = 8
# A user has given up by then.
GOOD_SECONDS = 2.0
GOODPUT_GOAL, SHED_GOAL_MS = 0.9, 100.0
CALM_SECONDS = 3.0


class OverloadRun:
    """One running service: its capacity, then multiples of it."""

    def __init__(self, bundle: Path, directory: Path) -> None:
        self._bundle, self._directory = bundle, directory
        self.faults: Counter[str] = Counter()
        self.notes: list[str] = []

    def run(self, seconds: float, rounds: int, factors: Sequence[int] = FACTORS) -> Part:
        """Each multiple for so long, in so many rounds."""
        begun = time.monotonic()
        items = item_ids(self._bundle)
        users = traffic(histories(items), items)
        with running(self._bundle, self._directory) as application:
            plan = LoadPlan(application.url, seconds=seconds, k=10, event_share=0)
            self._measure(replace(plan, clients=1, seconds=3.0), users, past=True)
            capacity = self._measure(replace(plan, clients=CLIENTS), users)["answered_per_second"]
            memory = [sum(application.memory().values())]
            found: dict[int, list[dict[str, Any]]] = {factor: [] for factor in factors}
            for turn in range(rounds):
                for factor in factors if turn % 2 == 0 else reversed(factors):
                    load = self._measure(replace(plan, rate=factor * capacity, seed=turn), users)
                    found[factor].append(load)
                    sys.stderr.write(f"{factor} x {capacity} / s: {load}\n")
                    self._calm(application)
                memory.append(sum(application.memory().values()))
        details = self._figures(capacity, found, memory)
        return Part("overload", rounds * len(factors), self.faults, time.monotonic() - begun, details, self.notes)

    def _measure(self, plan: LoadPlan, users: Traffic, past: bool = False) -> dict[str, Any]:
        found = report(asyncio.run(Load(plan, users).run(past)), GOOD_SECONDS)
        for name in ("failed", "wrong"):
            self.faults[name] += found[name]
        self.notes += [f"{count} x {what}" for what, count in found["notes"].items()]
        return found

    def _calm(self, application: Application) -> None:
        """Afterwards all is well again, soon."""
        time.sleep(CALM_SECONDS)

        def full() -> bool:
            reply = application.call("POST", "/v1/recommend", {"user_id": "u1"})
            return reply.status == 200 and reply.body["reason"] == "full"

        until(full, 60)

    def _figures(
        self, capacity: float, found: dict[int, list[dict[str, Any]]], memory: Sequence[float]
    ) -> dict[str, float]:
        good = {factor: _median([load["good_per_second"] for load in loads]) for factor, loads in found.items()}
        peak = max(good.values())
        details = {"capacity, answers a second": capacity}
        for factor, loads in found.items():
            shed = [load["shed_latency"]["p99_ms"] for load in loads if load["shed"]]
            total = sum(load["requests"] for load in loads)
            at = f"{factor} x: "
            details |= {
                f"{at}requests": total,
                f"{at}offered a second": _median([load["offered_per_second"] for load in loads]),
                f"{at}good a second": good[factor],
                f"{at}good, share of the peak": good[factor] / peak if peak else 0.0,
                f"{at}shed, share": sum(load["shed"] for load in loads) / total,
                f"{at}degraded, share": sum(sum(load["degraded"].values()) for load in loads) / total,
                f"{at}p99 ms of answers": _median([load["latency"].get("p99_ms", 0.0) for load in loads]),
                f"{at}p99 ms of shed requests": _median(shed),
                f"{at}sent late, p99 ms": _median([load["sent_late"].get("p99_ms", 0.0) for load in loads]),
            }
            if good[factor] < GOODPUT_GOAL * peak:
                self.notes.append(f"{at}goal not reached: good answers at least {GOODPUT_GOAL:.0%} of the peak")
            if _median(shed) > SHED_GOAL_MS:
                self.notes.append(f"{at}goal not reached: p99 of shed requests at most {SHED_GOAL_MS:.0f} ms")
        details["MB of all replicas, first"] = memory[0] / 1e6
        details["MB of all replicas, last"] = memory[-1] / 1e6
        return {name: round(value, 3) for name, value in details.items()}


def _median(values: Sequence[float]) -> float:
    return float(np.median(values)) if values else 0.0


def heavy_bundle(directory: Path) -> Path:
    """A bundle with fresh weights whose model costs some 40 ms of a core an answer; what it says does not matter."""
    small = tiny_config()
    llm = {"hidden_size": 512, "layers": 8, "heads": 8, "recent": 30}
    values = small.model_dump(mode="json")
    values["recommender"]["llm"] |= llm
    values["recommender"]["optim"]["epochs"] = 0
    return build_run(parse(PipelineConfig, values), directory / "heavy") / "bundle"

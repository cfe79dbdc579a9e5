"""What a load has measured."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np

Outcome = Literal["full", "degraded", "shed", "failed", "wrong"]
ANSWERED = ("full", "degraded", "wrong")
PERCENTILES = (50, 95, 99)
MOST_NOTES = 20


class Sample(NamedTuple):
    """One request: when it was due and how long its answer took, in seconds, and what came.

    `reason` is the reply's; of a request without one it is the status or the error.
    """

    at: float
    seconds: float
    outcome: Outcome
    reason: str
    bundle: str = ""


@dataclass
class Samples:
    """Everything that happened in a load, in the order in which it ended. `notes` counts what went wrong, in words."""

    asked: list[Sample] = field(default_factory=list)
    posted: list[Sample] = field(default_factory=list)
    visible: list[float] = field(default_factory=list)
    never_visible: int = 0
    late: list[float] = field(default_factory=list)
    unsent: int = 0
    seconds: float = 0.0
    notes: Counter[str] = field(default_factory=Counter)

    def note(self, what: str) -> None:
        """Count a kind of trouble; a load that goes wrong in a thousand ways keeps the first of them."""
        if what in self.notes or len(self.notes) < MOST_NOTES:
            self.notes[what] += 1


def percentiles(seconds: Sequence[float]) -> dict[str, float]:
    """p50, p95, p99 and the longest, in milliseconds; nothing of nothing."""
    if not seconds:
        return {}
    found = np.percentile(np.asarray(seconds), PERCENTILES) * 1000
    names = [f"p{p}_ms" for p in PERCENTILES]
    return {name: round(float(value), 2) for name, value in zip(names, found, strict=True)} | {
        "max_ms": round(max(seconds) * 1000, 2)
    }


def report(samples: Samples, within: float) -> dict[str, Any]:
    """Figures of a load, as JSON has them. Good is a full answer that took no longer than `within` seconds."""
    asked, seconds = samples.asked, max(samples.seconds, 1e-9)
    answered = [s for s in asked if s.outcome in ANSWERED]
    good = sum(s.outcome == "full" and s.seconds <= within for s in asked)
    shed = [s.seconds for s in asked if s.outcome == "shed"]
    return {
        "seconds": round(samples.seconds, 2),
        "requests": len(asked),
        "offered_per_second": round((len(asked) + samples.unsent) / seconds, 2),
        "answered_per_second": round(len(answered) / seconds, 2),
        "good_per_second": round(good / seconds, 2),
        "good_within_ms": round(within * 1000, 1),
        "latency": percentiles([s.seconds for s in answered]),
        "full": sum(s.outcome == "full" for s in asked),
        "degraded": dict(Counter(s.reason for s in asked if s.outcome == "degraded")),
        "shed": len(shed),
        "shed_latency": percentiles(shed),
        "failed": sum(s.outcome == "failed" for s in asked),
        "wrong": sum(s.outcome == "wrong" for s in asked),
        "bundles": dict(Counter(s.bundle for s in answered)),
        "events": {
            "accepted": sum(s.outcome == "full" for s in samples.posted),
            "shed": sum(s.outcome == "shed" for s in samples.posted),
            "failed": sum(s.outcome == "failed" for s in samples.posted),
            "latency": percentiles([s.seconds for s in samples.posted if s.outcome == "full"]),
        },
        "event_to_visible": {
            "measured": len(samples.visible),
            "never": samples.never_visible,
            "latency": percentiles(samples.visible),
        },
        "sent_late": percentiles(samples.late),
        "unsent": samples.unsent,
        "notes": dict(samples.notes),
    }


def table(found: dict[str, Any]) -> str:
    """The same as lines of text."""
    total = max(1, found["requests"])

    def times(latency: dict[str, float]) -> str:
        return ", ".join(f"{name[:-3]} {value:.1f} ms" for name, value in latency.items()) or "-"

    def share(count: int) -> str:
        return f"{count:,} ({count / total:.2%})"

    degraded = "; ".join(f"{reason} {share(count)}" for reason, count in found["degraded"].items()) or "0"
    events, visible = found["events"], found["event_to_visible"]
    rows = [
        ("requests", f"{found['requests']:,} in {found['seconds']:.1f} s; {found['unsent']:,} not sent"),
        ("offered", f"{found['offered_per_second']:.1f} / s, sent late by {times(found['sent_late'])}"),
        ("answered", f"{found['answered_per_second']:.1f} / s"),
        ("good", f"{found['good_per_second']:.1f} / s: full answers within {found['good_within_ms']:.0f} ms"),
        ("latency of answers", times(found["latency"])),
        ("full", share(found["full"])),
        ("degraded", degraded),
        ("shed", f"{share(found['shed'])}, {times(found['shed_latency'])}"),
        ("failed", share(found["failed"])),
        ("wrong", share(found["wrong"])),
        ("bundles", ", ".join(f"{name[:12]} {count:,}" for name, count in found["bundles"].items()) or "-"),
        ("events", f"{events['accepted']:,} accepted, {events['shed']:,} shed, {events['failed']:,} failed"),
        ("accepting an event", times(events["latency"])),
        ("event to visible", f"{times(visible['latency'])} ({visible['measured']:,}; never: {visible['never']:,})"),
        *(("!", f"{count:,} x {what}") for what, count in found["notes"].items()),
    ]
    return "\n".join(f"{name:20} {value}" for name, value in rows)

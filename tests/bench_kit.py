"""Benchmarks as ratios: ours and the peer's on the same data in one process, in alternating rounds, medians."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

ROUNDS = 5
Figure = dict[str, object]


def seconds(run: Callable[[], object]) -> float:
    """Wall-clock seconds of one call."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def compare(
    figure: str, ours: Callable[[], object], peer: Callable[[], object], goal: float, rounds: int = ROUNDS
) -> Figure:
    """Time both in alternating rounds after one warm-up each. `ratio` is how many times faster ours is."""
    return compare_timed(figure, partial(seconds, ours), partial(seconds, peer), goal, rounds)


def compare_timed(
    figure: str, ours: Callable[[], float], peer: Callable[[], float], goal: float, rounds: int = ROUNDS
) -> Figure:
    """The same for calls that return the seconds of the part of them that counts."""
    ours()
    peer()
    pairs = [(ours(), peer()) for _ in range(rounds)]
    mine, theirs = (statistics.median(column) for column in zip(*pairs, strict=True))
    ratios = sorted(b / a for a, b in pairs)
    ratio = theirs / mine
    return {
        "figure": figure,
        "ours": round(mine, 4),
        "peer": round(theirs, 4),
        "ratio": round(ratio, 3),
        "goal": goal,
        "ok": ratio >= goal,
        "unit": "s",
        "spread": [round(ratios[0], 3), round(ratios[-1], 3)],
    }


def value(figure: str, ours: float, peer: float, goal: float, unit: str, at_least: bool = True) -> Figure:
    """A figure that is no time: a difference (ours - peer) against its goal. With peer 0 it is ours itself."""
    gain = ours - peer
    return {
        "figure": figure,
        "ours": round(ours, 5),
        "peer": round(peer, 5),
        "ratio": round(gain, 5),
        "goal": goal,
        "ok": gain >= goal if at_least else gain <= goal,
        "unit": unit,
        "spread": [],
    }


def main(figures: Callable[[], Iterable[Figure]]) -> None:
    """Print every figure; `--json FILE` appends one object a line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--json", type=Path)
    target = parser.parse_args().json
    for row in figures():
        verdict = "ok" if row["ok"] else "NOT reached"
        times = f"ours {row['ours']} {row['unit']}, peer {row['peer']} {row['unit']}, ratio {row['ratio']}"
        sys.stdout.write(f"{row['figure']}: {times} (goal {row['goal']}, {verdict}), spread {row['spread']}\n")
        sys.stdout.flush()
        if target is not None:
            with target.open("a") as f:
                f.write(json.dumps(row) + "\n")

"""What DMIL costs of a training step: the exact matching alone, and the assignment of targets with it.

On the shapes of the default recommender: 16 sequences with 16 anchors each, a window of 4, s interests of width 128. A
step is forward, backward and update on 2,000 items.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from bench_kit import Figure, main, seconds, value
from torch.nn.functional import normalize
from training_throughput import STEPS, config, plain, prepared

from hymirec.recommender.dmil import assign_targets, group_gains, group_targets
from hymirec.recommender.matching import match

ROUNDS, CALLS = 15, 20


def median(run: Callable[[], object]) -> float:
    """Median seconds of one call, of rounds of many."""

    def many() -> None:
        for _ in range(CALLS):
            run()

    many()
    return statistics.median(seconds(many) for _ in range(ROUNDS)) / CALLS


def costs(interests: int) -> tuple[float, float]:
    """Seconds of matching, and of the whole assignment."""
    settings = config("torch").recommender
    requests, window = settings.optim.batch_size * settings.dmil.anchors, settings.dmil.window
    generator = torch.Generator().manual_seed(0)
    own = normalize(torch.randn(requests, interests, settings.item.width, generator=generator), dim=2)
    targets = normalize(torch.randn(requests, window, settings.item.width, generator=generator), dim=2)
    valid, steps = torch.ones(requests, window, dtype=torch.bool), settings.dmil.lloyd_steps
    gains = group_gains(own, targets, valid, group_targets(targets, valid, interests, steps))
    whole = median(lambda: assign_targets(own, targets, valid, steps, "hungarian"))
    return median(lambda: match(gains)), whole


def figures() -> Iterator[Figure]:
    """Shares in per cent."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as directory:
        run = prepared(Path(directory))
        plain(run)
        step = statistics.median(plain(run) for _ in range(3)) / STEPS
    for interests in (2, 4, 8):
        matching, whole = costs(interests)
        name = f"s {interests}, step {1000 * step:.0f} ms"
        yield value(f"exact matching, {name}", 100 * matching / step, 0, 0.5, "% of a step", at_least=False)
        yield value(f"grouping, gains and matching, {name}", 100 * whole / step, 0, 5, "% of a step", at_least=False)


if __name__ == "__main__":
    main(figures)

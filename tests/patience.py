"""How long tests wait for something to happen elsewhere.

Seconds are those in which this process ran. A virtual machine may stand still for a minute, and the first who looks at
the clock afterwards would say of everyone else that they were stuck for all that time.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
PATIENCE_SECONDS = 90.0
STEP_SECONDS = 0.02
# What a look and the pause before it count at most.
LONGEST_STEP_SECONDS = 1.0


def happens(condition: Callable[[], bool], seconds: float = PATIENCE_SECONDS, step: float = STEP_SECONDS) -> bool:
    """Whether a condition comes true in so many seconds; it is looked at every `step` seconds."""
    left, last = seconds, time.monotonic()
    while not condition():
        if left <= 0:
            return False
        time.sleep(step)
        now = time.monotonic()
        left, last = left - min(now - last, LONGEST_STEP_SECONDS), now
    return True


def until(what: Callable[[], T], seconds: float = PATIENCE_SECONDS) -> T:
    """The first true value of `what()`; fails after so many seconds."""
    found: list[T] = []

    def true() -> bool:
        found[:] = [what()]
        return bool(found[0])

    assert happens(true, seconds), f"did not happen within {seconds:g} s"
    return found[0]

"""How long the harness waits for a writer."""

from __future__ import annotations

import time
from collections.abc import Callable

STEP_SECONDS = 0.005
# What a step of the wait counts at most.
LONGEST_STEP_SECONDS = 0.05


def until(condition: Callable[[], bool], seconds: float) -> bool:
    """Wait for a condition; False after so many seconds.

    The seconds are those in which this process ran. A virtual machine may stand still for a minute, and the first that
    looks at the clock afterwards would say of everyone else that he was stuck for all that time.
    """
    left, last = seconds, time.monotonic()
    while not condition():
        if left <= 0:
            return False
        time.sleep(STEP_SECONDS)
        now = time.monotonic()
        left, last = left - min(now - last, LONGEST_STEP_SECONDS), now
    return True

"""Requests a second of each caller, by a token bucket: so many at once after a pause, and then at a steady rate.

It keeps one caller from taking what is there for all. What all of them may take together is another matter: see
`hymirec.service.limit`. Kept as GCRA, the virtual scheduling of ATM (ITU-T I.371): one number a caller, when its bucket
will be full again.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from hymirec.config import LimitsConfig

# Sums of times are no better than this; who is on time must not be turned away for a rounding.
ROUNDING_SECONDS = 1e-6


class Rates:
    """Each caller's bucket holds `burst` requests at most and gains `per_second` of them a second.

    Of one event loop. `clock` gives seconds. It remembers every caller, so callers must be known ones.
    """

    def __init__(self, per_second: float, burst: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.per_second, self._clock = per_second, clock
        self._full_seconds = burst / per_second
        self._full_at: dict[bytes, float] = {}

    @classmethod
    def of(cls, limits: LimitsConfig, clock: Callable[[], float] = time.monotonic) -> Rates | None:
        """As configured; None where there is no limit. A burst that is not given is what comes in a second."""
        if limits.requests_per_second is None:
            return None
        return cls(limits.requests_per_second, limits.burst or math.ceil(limits.requests_per_second), clock)

    def wait(self, caller: bytes) -> float:
        """Take a request out of the caller's bucket and return 0, or return the seconds until there is one in it."""
        now = self._clock()
        full_at = max(now, self._full_at.get(caller, now)) + 1 / self.per_second
        seconds = full_at - now - self._full_seconds
        if seconds > ROUNDING_SECONDS:
            return seconds
        self._full_at[caller] = full_at
        return 0.0

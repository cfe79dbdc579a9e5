"""How many requests may wait for the recommender at a time: as many as it answers in time, found by trying.

A bound that is fixed is wrong for a model that is slower than thought: the line is then longer than its requests have
time, each is answered too late, and nothing comes of all the work. Here a late answer brings the bound down to what
would have been answered in time (a line that is served in order: Little's law, the gradient of Netflix's
concurrency-limits), but not below half at once; timely ones raise it one by one. So the line is as long as it is
useful, and who would wait in vain is turned away at once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from hymirec.errors import OverloadedError

# So few wait nowhere for long; below, a single slow answer would turn users away.
LEAST = 4
MOST_SHRINK = 0.5


class Limit:
    """`most` requests at a time at first, and never more; `target` is how long, in seconds, an answer may take.

    Of one event loop. `clock` gives seconds. Places are given at the door, before anything is parsed; what is learnt
    comes from the recommender's answers, which a slow client or a wait for an event do not make longer.
    """

    def __init__(self, most: int, target: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._most, self._least, self._target, self._clock = most, min(LEAST, most), target, clock
        self._value = float(most)
        self._shrunk = -target
        self.inside = 0

    @property
    def value(self) -> int:
        """The bound as it is now."""
        return int(self._value)

    @property
    def free(self) -> bool:
        """Whether one more may come in."""
        return self.inside < self.value

    @property
    def crowded(self) -> bool:
        """Whether the bound is what holds requests back, or nearly."""
        return 2 * self.inside > self._value

    @contextmanager
    def place(self) -> Iterator[None]:
        """Hold a place."""
        self.inside += 1
        try:
            yield
        finally:
            self.inside -= 1

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Learn from how long the block takes, an answer or none; nothing from one that is turned away."""
        begun, inside, away = self._clock(), self.inside, False
        try:
            yield
        except OverloadedError:
            away = True
            raise
        finally:
            if not away:
                self._learn(begun, self._clock(), inside)

    def _learn(self, begun: float, now: float, inside: int) -> None:
        if now - begun > self._target:
            # Requests that began before it shrank say nothing about the bound that holds now.
            if begun >= self._shrunk:
                in_time = inside * self._target / (now - begun)
                lower = max(self._least, self._value * MOST_SHRINK, in_time)
                self._value, self._shrunk = min(self._value, lower), now
        elif self.crowded:
            self._value = min(self._most, self._value + 1 / self._value)

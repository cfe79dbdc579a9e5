"""How many replicas: the arithmetic of both autoscalers, from what replicas tell of their work. No cluster, no clock.

History writers follow their lag. More of them start when the lag would not be worked off within a stated time, and that
has been so for a while; one goes when it has been calm for long and the rest can carry what comes. Recommenders follow
the share of their time that the model works. That grows in proportion to the load, so it says what one replica fewer
would do; requests in flight do not: they are few until a replica is full, and then as many as are let in, so a rule
from them alone takes replicas away, finds itself overloaded, adds them again, and so on for ever under a steady load.

Both go up as far as needed at once and down one by one. A replica that was taken away too early is not taken away again
before twice the time.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping
from typing import NamedTuple, Protocol

# A spike, or a writer that restarts, is over by then.
LATE_SECONDS = 30.0
# After a change of the members the partitions move, and what was measured before is void.
SETTLE_SECONDS = 30.0
WINDOW_SECONDS = 30.0
# A slope of fewer seconds is noise.
SLOPE_SECONDS = 10.0
# A lag of so small a part of the time in which it must be worked off is none.
NOTICED = 1 / 6
# What remains after a writer has gone may be loaded so far.
WRITER_LOAD = 0.7
# Recommenders: above `HIGH` more are needed; there are enough when each is at work for `AIM` of the time.
HIGH, AIM = 0.8, 0.6
BUSY_SECONDS = 10.0
LONGEST_PATIENCE = 8
# Names of what a replica tells.
LAG, RATE, PARTITIONS, HINDERED, BUSY = "lag_events", "events_per_second", "partitions", "hindered", "busy_ratio"


class Pace:
    """By how much a growing number grew in each second since it was last looked at."""

    def __init__(self, now: float) -> None:
        self._then, self._value = now, 0.0

    def of(self, value: float, now: float) -> float:
        """`now` is in seconds; 0 where no time has passed."""
        grown, passed = value - self._value, now - self._then
        if passed <= 0:
            return 0.0
        self._then, self._value = now, value
        return max(0.0, grown / passed)


class Account(Protocol):
    """What is read of a writer's `ConsumerStatus`."""

    @property
    def handled(self) -> int: ...
    @property
    def lag(self) -> Mapping[int, int]: ...
    @property
    def positions(self) -> Mapping[int, int]: ...
    @property
    def problems(self) -> Mapping[str, str]: ...


class Work(NamedTuple):
    """What all history writers say together: `lag` messages wait, `rate` a second are applied, from `partitions`.

    `hindered`: the store or the log does not answer one of them, and more writers would not mend that.
    """

    lag: float
    rate: float
    partitions: int
    hindered: bool = False

    @staticmethod
    def of(told: Iterable[Mapping[str, float]]) -> Work:
        """The sum of what writers tell (`WriterStats`)."""
        lag = rate = partitions = hindered = 0.0
        for one in told:
            lag, rate = lag + one[LAG], rate + one[RATE]
            partitions, hindered = partitions + one[PARTITIONS], hindered + one[HINDERED]
        return Work(lag, rate, int(partitions), hindered > 0)


class WriterStats:
    """What one history writer tells, as plain numbers; rates are since it was last asked."""

    def __init__(self, now: float) -> None:
        self._pace = Pace(now)

    def of(self, status: Account, now: float) -> dict[str, float]:
        """A partition that stands still counts as a partition and not as lag: nobody can work that off."""
        stopped = {int(name) for name in status.problems if name.isdigit()}
        return {
            LAG: float(sum(status.lag.values())),
            RATE: self._pace.of(status.handled, now),
            PARTITIONS: float(len(stopped | set(status.positions))),
            HINDERED: float(bool({"store", "log", "consumer"} & set(status.problems))),
        }


class _Since:
    """For how many seconds something has been so without a break."""

    def __init__(self) -> None:
        self._begun: float | None = None

    def held(self, now: float, so: bool) -> float:
        if not so:
            self._begun = None
            return -1.0
        if self._begun is None:
            self._begun = now
        return now - self._begun


class _Patience:
    """How long it must have been calm before a replica goes: twice as long after each time that was regretted."""

    def __init__(self, seconds: float) -> None:
        self._least, self.seconds = seconds, seconds
        self._gone = -math.inf

    def went(self, now: float) -> None:
        self._gone = now

    def came(self, now: float) -> None:
        regretted = now - self._gone < 2 * self.seconds
        self.seconds = min(2 * self.seconds, LONGEST_PATIENCE * self._least) if regretted else self._least


class WriterScaling:
    """Between `least` and `most` history writers, and no more than there are partitions.

    A lag is to be worked off within `catch_up_seconds`; a writer goes after `calm_seconds` in which fewer were enough.
    """

    def __init__(self, least: int, most: int, catch_up_seconds: float, calm_seconds: float) -> None:
        self._least, self._most, self._goal = least, most, catch_up_seconds
        self._patience = _Patience(calm_seconds)
        self._late, self._calm, self._fewer = _Since(), _Since(), _Since()
        self._samples: deque[tuple[float, float, float]] = deque()
        self._running, self._settled, self._partitions = -1, -math.inf, 0
        # Messages a second of one writer that had enough to do; None before that was seen.
        self._capacity: float | None = None

    def decide(self, now: float, running: int, target: int, work: Work | None) -> int:
        """Writers wanted. `now` in seconds; `running` of the `target` that was wanted before run; None: nothing known.

        To be called whenever there is something new, and at least every few seconds.
        """
        # Between two owners a partition is nobody's and not told of. For longer than that it is gone.
        fewer = work is not None and work.partitions < self._partitions
        moving = fewer and self._fewer.held(now, fewer) < 2 * SETTLE_SECONDS
        if running != self._running or moving:
            self._running, self._settled = running, now + SETTLE_SECONDS
        if work is None or work.hindered or now < self._settled:
            self._samples.clear()
            self._late.held(now, False)
            self._calm.held(now, False)
            return target
        self._partitions = work.partitions
        self._fewer.held(now, False)
        rate, growth = self._trend(now, work)
        if self._late.held(now, self._is_late(work.lag, rate, growth)) >= LATE_SECONDS:
            self._capacity = max(r for _, _, r in self._samples) / running
            wanted = min(self._most, self._partitions, max(target + 1, self._needed(work.lag, rate, growth)))
            if wanted > target and running >= target:
                self._patience.came(now)
                return wanted
        if self._calm.held(now, self._is_calm(work.lag, rate, growth, target)) >= self._patience.seconds:
            self._calm.held(now, False)
            self._patience.went(now)
            return target - 1
        return target

    def _trend(self, now: float, work: Work) -> tuple[float, float]:
        """Messages applied a second, and by how many a second the lag grows, over the last half minute."""
        self._samples.append((now, work.lag, work.rate))
        while self._samples[0][0] < now - WINDOW_SECONDS:
            self._samples.popleft()
        count = len(self._samples)
        rate = sum(r for _, _, r in self._samples) / count
        if now - self._samples[0][0] < SLOPE_SECONDS:
            return rate, 0.0
        mean_t = sum(t for t, _, _ in self._samples) / count
        mean_lag = sum(lag for _, lag, _ in self._samples) / count
        spread = sum((t - mean_t) ** 2 for t, _, _ in self._samples)
        return rate, sum((t - mean_t) * (lag - mean_lag) for t, lag, _ in self._samples) / spread

    def _is_late(self, lag: float, rate: float, growth: float) -> bool:
        # Where nothing is applied at all, partitions are moving or something stands still.
        if rate <= 0 or lag <= rate * self._goal * NOTICED:
            return False
        return growth >= 0 or lag / -growth > self._goal

    def _needed(self, lag: float, rate: float, growth: float) -> int:
        """Writers that apply what comes and work the lag off in time, counted from when they have settled."""
        assert self._capacity is not None
        behind = lag + max(0.0, growth) * SETTLE_SECONDS
        return math.ceil((max(0.0, rate + growth) + behind / self._goal) / self._capacity)

    def _is_calm(self, lag: float, rate: float, growth: float, target: int) -> bool:
        if target <= self._least:
            return False
        if lag > max(1.0, rate, self._capacity or 0.0) * self._goal * NOTICED:
            return False
        return self._capacity is None or rate + growth <= WRITER_LOAD * self._capacity * (target - 1)


class RecommenderScaling:
    """Between `least` and `most` recommenders; `ongoing` requests are as many as one should have in hand.

    One goes after `calm_seconds` in which fewer were enough.
    """

    def __init__(self, least: int, most: int, ongoing: float, calm_seconds: float) -> None:
        self._least, self._most, self._ongoing = least, most, ongoing
        self._patience = _Patience(calm_seconds)
        self._full, self._calm = _Since(), _Since()
        self._running, self._settled = -1, -math.inf

    def decide(self, now: float, running: int, target: int, busy: float | None, ongoing: float) -> int:
        """Recommenders wanted.

        `busy` is the sum over all that run of the share of the time (0 to 1 each) that the model works, None where not
        all have told; `ongoing` counts requests in hand and in queues. Both are means over some seconds.
        """
        if running != self._running:
            self._running, self._settled = running, now + SETTLE_SECONDS
        if busy is None or not running or now < self._settled:
            self._full.held(now, False)
            self._calm.held(now, False)
            return target
        full = busy > HIGH * running or ongoing > self._ongoing * running
        if self._full.held(now, full) >= BUSY_SECONDS and running >= target:
            # What overload leaves of the signal tells too little for more than twice as many.
            needed = max(math.ceil(busy / AIM), math.ceil(ongoing / self._ongoing))
            wanted = min(self._most, 2 * target, max(target + 1, needed))
            if wanted > target:
                self._patience.came(now)
                return wanted
        fewer = target - 1
        calm = fewer >= self._least and busy <= AIM * fewer and ongoing <= self._ongoing * fewer
        if self._calm.held(now, calm) >= self._patience.seconds:
            self._calm.held(now, False)
            self._patience.went(now)
            return fewer
        return target

"""Replays of hours in a second: loads, restarts and noise against the arithmetic of both autoscalers."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest

from hymirec.service.scaling import RecommenderScaling, Work, WriterScaling

Load = Callable[[float], float]
HOUR = 3_600
GOAL, CALM = 60.0, 300.0
# Of one replica, a second.
CAPACITY = 1_000.0
PARTITIONS = 6


class Writers:
    """Partitions that are shared evenly, writers that need time to start, and a group that stands while it moves them.

    Each writer tells of itself every 6 s, and what it told arrives every 10 s, as in Ray Serve; `noise` is relative.
    """

    def __init__(
        self, scaling: WriterScaling, least: int = 1, noise: float = 0.05, start: float = 15, pause: float = 10
    ):
        self.scaling, self.noise, self.start, self.pause = scaling, noise, start, pause
        self.target = self.running = least
        self.lag = np.zeros(PARTITIONS)
        self.changes: list[tuple[float, int]] = []
        self.lags: list[float] = []
        self.stands_until = 0.0
        self.hindered = False
        self._arriving: list[float] = []
        self._random = np.random.default_rng(7)
        self._told = Work(0, 0, PARTITIONS)
        self._heard: Work | None = None

    def run(self, seconds: float, load: Load, restarts: tuple[float, ...] = ()) -> None:
        applied = 0.0
        for now in np.arange(0, seconds, 1.0):
            for ready in [at for at in self._arriving if at <= now]:
                self._arriving.remove(ready)
                self._members(self.running + 1, now)
            if now in restarts:
                self._members(self.running, now, self.pause + 15)
            self.lag += self._random.poisson(max(0.0, load(now)) / PARTITIONS, PARTITIONS)
            applied += self._apply(now)
            self.lags.append(float(self.lag.sum()))
            if now % 6 == 0:
                stands = now < self.stands_until
                told = Work(self._noisy(self.lag.sum()), self._noisy(applied / 6), 0 if stands else PARTITIONS)
                self._told, applied = told._replace(hindered=self.hindered), 0.0
            if now % 10 == 0:
                self._heard = self._told
            self._follow(self.scaling.decide(now, self.running, self.target, self._heard), now)

    def _apply(self, now: float) -> float:
        if now < self.stands_until or self.hindered:
            return 0.0
        done = 0.0
        for writer in range(self.running):
            own = np.arange(writer, PARTITIONS, self.running)
            waiting = self.lag[own].sum()
            taken = min(waiting, CAPACITY)
            if waiting:
                self.lag[own] -= self.lag[own] * (taken / waiting)
            done += taken
        return done

    def _noisy(self, value: float) -> float:
        return float(value) * max(0.0, 1 + self.noise * float(self._random.standard_normal()))

    def _members(self, running: int, now: float, pause: float | None = None) -> None:
        self.running, self.stands_until = running, now + (self.pause if pause is None else pause)

    def _follow(self, wanted: int, now: float) -> None:
        if wanted == self.target:
            return
        self.changes.append((now, wanted))
        if wanted > self.target:
            self._arriving += [now + self.start] * (wanted - self.target)
        else:
            self._members(wanted, now)
        self.target = wanted

    def numbers(self) -> list[int]:
        return [number for _, number in self.changes]


def writers(least: int = 1, most: int = 8, **options: float) -> Writers:
    return Writers(WriterScaling(least, most, GOAL, CALM), least, **options)


def ups(replay: Writers | Recommenders) -> int:
    before = [replay.least_of_replay, *replay.numbers()] if isinstance(replay, Recommenders) else [1, *replay.numbers()]
    return sum(b > a for a, b in itertools.pairwise(before))


@pytest.mark.parametrize("share", [0.0, 0.5, 0.95])
def test_a_steady_load_that_one_writer_carries_moves_nothing(share: float) -> None:
    replay = writers(noise=0.2)
    replay.run(HOUR, lambda now: share * CAPACITY)
    assert replay.changes == []


@pytest.mark.parametrize("load", [1.5, 4.2])
def test_a_step_beyond_one_writer_is_answered_once_and_caught_up_in_time(load: float) -> None:
    replay = writers()
    replay.run(HOUR / 2, lambda now: (0.5 if now < 600 else load) * CAPACITY)
    assert ups(replay) <= 2
    assert len(replay.changes) <= 4
    # Noticed, late for 30 s, started, settled, worked off; lag of less than 10 s of work is none.
    assert max(replay.lags[600 + 240 :]) < 10 * load * CAPACITY
    assert load < max(replay.numbers()) <= PARTITIONS
    # What one writer fewer could not carry with room to spare stays.
    assert replay.target * 0.7 + 0.7 >= load


def test_a_backlog_brings_writers_and_they_go_one_by_one() -> None:
    replay = writers()
    replay.lag += 600 * CAPACITY / PARTITIONS
    replay.run(2 * HOUR, lambda now: 0.3 * CAPACITY)
    first, *rest = replay.numbers()
    assert first == PARTITIONS
    assert rest == list(range(PARTITIONS - 1, 0, -1))
    caught_up = next(second for second, lag in enumerate(replay.lags) if lag < CAPACITY)
    assert caught_up < 300
    times = [at for at, _ in replay.changes]
    assert all(later - sooner >= CALM for sooner, later in itertools.pairwise(times))


@pytest.mark.parametrize("seconds", [1, 20])
def test_a_spike_that_is_worked_off_in_time_starts_nobody(seconds: int) -> None:
    replay = writers()
    # As much as one writer does in 20 s, again and again.
    replay.run(HOUR / 2, lambda now: 0.4 * CAPACITY + (20 * CAPACITY / seconds if now % 600 < seconds else 0))
    assert replay.changes == []


def test_a_rebalance_and_a_restart_during_which_the_lag_rises_start_nobody() -> None:
    replay = writers()
    replay.run(HOUR / 2, lambda now: 0.5 * CAPACITY, restarts=(600.0, 1_200.0))
    assert max(replay.lags) > 10 * CAPACITY
    assert replay.changes == []


def test_a_slow_ramp_goes_up_and_down_step_by_step() -> None:
    replay = writers()
    replay.run(3 * HOUR, lambda now: CAPACITY * (0.3 + 3.7 * max(0.0, 1 - abs(now - 1.5 * HOUR) / HOUR)))
    numbers = [1, *replay.numbers()]
    turn = numbers.index(max(numbers))
    assert numbers[:turn] == sorted(set(numbers[:turn]))
    assert numbers[turn:] == list(range(numbers[turn], replay.target - 1, -1))
    assert replay.target == 1
    assert max(replay.lags) < 3 * GOAL * CAPACITY


@pytest.mark.parametrize("period", [120, 1_800])
def test_a_wave_of_any_length_is_followed_without_trembling(period: int) -> None:
    hours = 2
    replay = writers(noise=0.2)
    replay.run(hours * HOUR, lambda now: CAPACITY * (1.5 + math.sin(2 * math.pi * now / period)))
    waves = hours * HOUR / period
    # A wave shorter than the calm time has its peak's writers all the time; of a longer one each is at most one rise.
    assert ups(replay) <= 3 + (waves if period > 2 * CALM else 0)
    assert max(replay.lags[900:]) < 2 * GOAL * 2.5 * CAPACITY


def test_a_topic_of_fewer_partitions_than_writers_allowed_bounds_them() -> None:
    replay = writers(most=50)
    replay.run(600, lambda now: 20 * CAPACITY)
    assert max(replay.numbers()) == PARTITIONS


def test_a_store_that_does_not_answer_brings_no_writers() -> None:
    replay = writers(least=1)
    replay.hindered = True
    replay.run(900, lambda now: 0.5 * CAPACITY)
    assert replay.changes == []


def test_nothing_is_decided_before_every_writer_has_told() -> None:
    scaling = WriterScaling(1, 8, GOAL, CALM)
    assert [scaling.decide(now, 2, 2, None) for now in range(900)] == [2] * 900


def test_a_writer_that_was_missed_is_not_taken_away_again_as_soon() -> None:
    """Ten calm minutes, ten busy ones, again and again: the second writer goes in the first calm ones only."""
    replay = writers()
    replay.run(4 * HOUR, lambda now: CAPACITY * (0.5 if now % 1_200 < 600 else 1.4))
    assert replay.numbers() == [2, 1, 2]


class Recommenders:
    """Replicas that serve in order of arrival, what comes by chance; beyond `ROOM` requests are turned away.

    What is told are means over 30 s that are up to 10 s old, as in Ray Serve.
    """

    RATE, ROOM, START, AIMED = 60.0, 80.0, 20.0, 8.0

    def __init__(self, decide: Callable[[float, int, int, float, float], int], least: int = 1) -> None:
        self._decide = decide
        self.least_of_replay = self.target = self.running = least
        self.changes: list[tuple[float, int]] = []
        self.begun = self.away = self.came = 0.0
        self._random = np.random.default_rng(7)

    def run(self, seconds: float, load: Load) -> None:
        waiting, step = 0.0, 0.2
        starting: list[float] = []
        busy: list[float] = []
        ongoing: list[float] = []
        told = (0.0, 0.0)
        for tick in range(int(seconds / step)):
            now = self.begun + tick * step
            for ready in [at for at in starting if at <= now]:
                starting.remove(ready)
                self.running += 1
            come = float(self._random.poisson(load(now) * step))
            done = min(waiting + come, float(self._random.poisson(self.RATE * self.running * step)))
            left = waiting + come - done
            waiting = min(left, self.ROOM)
            self.came, self.away = self.came + come, self.away + left - waiting
            busy.append(min(float(self.running), done / (self.RATE * step)))
            ongoing.append(waiting + busy[-1])
            if tick % int(10 / step) == 0:
                window = int(30 / step)
                told = float(np.mean(busy[-window:])), float(np.mean(ongoing[-window:]))
            if tick % int(1 / step) == 0:
                wanted = self._decide(now, self.running, self.target, *told)
                if wanted != self.target:
                    self.changes.append((now, wanted))
                    starting += [now + self.START] * (wanted - self.target)
                    self.running = min(self.running, wanted)
                    self.target = wanted
        self.begun += seconds

    def numbers(self) -> list[int]:
        return [number for _, number in self.changes]


def recommenders(most: int = 8) -> Recommenders:
    return Recommenders(RecommenderScaling(1, most, Recommenders.AIMED, CALM).decide)


@pytest.mark.parametrize("load", [50, 100, 300])
def test_a_steady_load_settles_and_turns_nobody_away_any_more(load: float) -> None:
    replay = recommenders()
    replay.run(HOUR, lambda now: load)
    settled = replay.away
    replay.run(HOUR / 2, lambda now: load)
    # Up, what was too much down again, and then nothing.
    assert len(replay.changes) <= 6
    assert replay.away == settled
    assert replay.target * Recommenders.RATE > load


def test_rush_hours_are_followed_up_and_down() -> None:
    replay = recommenders()
    replay.run(2.5 * HOUR, lambda now: 20 + 280 * max(0.0, math.sin(math.pi * now / HOUR) if now < HOUR else 0.0))
    numbers = [1, *replay.numbers()]
    turn = numbers.index(max(numbers))
    assert numbers[:turn] == sorted(numbers[:turn])
    assert numbers[turn:] == list(range(numbers[turn], 0, -1))
    assert replay.away < 0.01 * replay.came


def test_a_burst_of_requests_starts_nobody() -> None:
    replay = recommenders()
    replay.run(900, lambda now: 20 + (35 if now % 300 < 5 else 0))
    assert replay.changes == []


def test_a_load_that_all_recommenders_together_cannot_carry_keeps_all() -> None:
    replay = recommenders(most=4)
    replay.run(900, lambda now: 1_000)
    assert replay.numbers() == [2, 4]


def test_no_recommender_goes_while_one_has_not_told() -> None:
    scaling = RecommenderScaling(1, 8, 8, CALM)
    assert [scaling.decide(now, 3, 3, None, 0.0) for now in range(900)] == [3] * 900

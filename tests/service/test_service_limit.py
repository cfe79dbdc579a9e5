"""The bound of the requests that wait for the recommender, against a stage whose speed is given."""

from __future__ import annotations

import heapq
from contextlib import ExitStack

import pytest

from hymirec.service.limit import LEAST, Limit

TARGET = 1.0


def simulated(
    limit: Limit, clock: list[float], offered: float, capacity: float, seconds: float
) -> tuple[int, int, int]:
    """Requests come at a rate, a stage answers them in order of arrival. In time, late, and turned away."""
    ends: list[tuple[float, int]] = []
    places = {}
    free, begin, number = clock[0], clock[0], 0
    timely = late = away = 0

    def leave(until: float) -> None:
        nonlocal timely, late
        while ends and ends[0][0] <= until:
            clock[0], who = heapq.heappop(ends)
            place, since = places.pop(who)
            place.close()
            timely, late = (timely + 1, late) if clock[0] - since <= 2 * TARGET else (timely, late + 1)

    while (at := begin + number / offered) < begin + seconds:
        leave(at)
        clock[0], number = at, number + 1
        if not limit.free:
            away += 1
            continue
        place = ExitStack()
        place.enter_context(limit.place())
        place.enter_context(limit.timed())
        free = max(free, at) + 1 / capacity
        heapq.heappush(ends, (free, number))
        places[number] = (place, at)
    leave(float("inf"))
    return timely, late, away


@pytest.mark.parametrize("factor", [2, 5, 10])
def test_a_stage_that_is_slower_than_its_bound_answers_in_time_what_it_can(factor: int) -> None:
    clock = [0.0]
    limit = Limit(80, TARGET, lambda: clock[0])
    simulated(limit, clock, factor * 20, 20, 15)
    timely, late, away = simulated(limit, clock, factor * 20, 20, 60)
    # 80 in line before a stage of 20 a second would wait for 4 seconds.
    assert timely > 0.95 * 60 * 20
    assert late == 0
    assert away == pytest.approx((factor - 1) * 60 * 20, rel=0.1)


def test_the_bound_stays_where_it_was_while_answers_are_in_time_and_comes_back() -> None:
    clock = [0.0]
    limit = Limit(80, TARGET, lambda: clock[0])
    assert simulated(limit, clock, 100, 200, 20) == (2_000, 0, 0)
    assert limit.value == 80
    simulated(limit, clock, 100, 5, 120)
    assert limit.value < 15
    simulated(limit, clock, 250, 200, 120)
    assert limit.value == 80


def test_a_bound_that_is_far_too_high_comes_down_within_the_first_answers() -> None:
    clock = [0.0]
    limit = Limit(80, TARGET, lambda: clock[0])
    simulated(limit, clock, 40, 20, 6)
    # 80 in line wait for 4 seconds, 40 for 2, and 20 for as long as they may.
    assert limit.value <= 25
    assert simulated(limit, clock, 40, 20, 30)[1] == 0


def test_a_few_always_find_a_place() -> None:
    clock = [0.0]
    limit = Limit(80, TARGET, lambda: clock[0])
    simulated(limit, clock, 5, 0.5, 3_000)
    assert limit.value == LEAST
    with limit.place(), limit.place(), limit.place():
        assert limit.free
        with limit.place():
            assert not limit.free

"""The token bucket, with a clock of ours, against the plain one that counts what is in it."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hymirec.config import LimitsConfig, ServiceConfig, parse
from hymirec.errors import ConfigError
from hymirec.service.rates import Rates


@given(
    st.sampled_from([Fraction(1, 2), Fraction(3), Fraction(40)]),
    st.integers(1, 5),
    st.lists(st.tuples(st.integers(0, 40), st.sampled_from([b"one", b"other"])), max_size=60),
)
def test_it_lets_in_what_a_bucket_of_whole_requests_would(
    rate: Fraction, burst: int, visits: list[tuple[int, bytes]]
) -> None:
    clock = [1e6]
    rates = Rates(float(rate), burst, lambda: clock[0])
    now, buckets = Fraction(0), {b"one": (Fraction(burst), Fraction(0)), b"other": (Fraction(burst), Fraction(0))}
    for pause, caller in visits:
        now += Fraction(pause, 64)
        clock[0] = 1e6 + float(now)
        left, since = buckets[caller]
        left = min(Fraction(burst), left + (now - since) * rate)
        assert rates.wait(caller) == pytest.approx(float(max(Fraction(0), (1 - left) / rate)), abs=1e-5)
        buckets[caller] = (left - (left >= 1), now)


def test_a_steady_caller_at_the_rate_is_never_turned_away() -> None:
    clock = [123_456.789]
    rates = Rates(3, 1, lambda: clock[0])
    for _ in range(10_000):
        assert rates.wait(b"") == 0
        clock[0] += 1 / 3


@pytest.mark.parametrize(("per_second", "burst", "at_once"), [(0.5, None, 1), (2.5, None, 3), (2.5, 7, 7)])
def test_a_burst_that_is_not_given_is_what_comes_in_a_second(
    per_second: float, burst: int | None, at_once: int
) -> None:
    rates = Rates.of(LimitsConfig(requests_per_second=per_second, burst=burst), lambda: 0.0)
    assert rates is not None
    waits = [rates.wait(b"") for _ in range(at_once + 1)]
    assert (waits[:-1], waits[-1] > 0) == ([0] * at_once, True)


def test_there_is_no_rate_unless_one_is_configured() -> None:
    assert Rates.of(LimitsConfig()) is None
    with pytest.raises(ConfigError, match=r"burst goes with limits\.requests_per_second"):
        parse(LimitsConfig, {"burst": 5})
    with pytest.raises(ConfigError, match=r"limits\.requests_per_second: Input should be greater than 0"):
        parse(ServiceConfig, {"bundle": "b", "limits": {"requests_per_second": 0}})

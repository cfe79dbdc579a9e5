from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from hymirec.answers import Coarse
from hymirec.service.nearline import CoarseCache, Pending


def coarse(number: int) -> Coarse:
    return Coarse(np.zeros((1, 2), np.float32), "bundle", number)


def test_the_cache_forgets_who_was_not_used_for_longest() -> None:
    cache = CoarseCache(2)
    for number, user in enumerate(["a", "b"]):
        cache.put(user, coarse(number), cache.ticket())
    assert cache.get("a") is not None
    cache.put("c", coarse(2), cache.ticket())
    assert (cache.get("b"), len(cache)) == (None, 2)
    assert cache.users() == ["a", "c"]


def test_a_value_computed_before_an_erasure_is_not_kept_after_it() -> None:
    cache = CoarseCache(10)
    ticket = cache.ticket()
    cache.drop("a")
    cache.put("a", coarse(1), ticket)
    assert cache.get("a") is None
    cache.put("a", coarse(2), cache.ticket())
    assert cache.get("a") is not None


def test_who_came_last_is_refreshed_first_and_each_user_once() -> None:
    pending = Pending(10)
    pending.add(["a", "b", "a"])
    assert [pending.take() for _ in range(3)] == ["a", "b", None]


@given(st.lists(st.integers(0, 20)), st.integers(1, 5))
def test_the_line_is_bounded_and_keeps_the_newest(users: list[int], most: int) -> None:
    pending = Pending(most)
    pending.add(str(user) for user in users)
    newest = list(dict.fromkeys(str(user) for user in reversed(users)))
    assert [pending.take() for _ in range(len(pending))] == newest[:most]

"""Groups of users and of targets, by hand and as partitions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hymirec.evaluation.groups import POPULARITY_GROUPS, by_length, by_popularity, length_names, popularity_groups
from hymirec.evaluation.metrics import means, per_user


def named(popularity: list[int]) -> list[str]:
    return [POPULARITY_GROUPS[group] for group in popularity_groups(np.array(popularity))]


def test_bins_of_lengths_include_their_bound() -> None:
    values = {"R@10": np.array([1.0, 0.0, 1.0, 0.0, 1.0])}
    found = by_length(values, np.array([20, 1, 21, 50, 51]), [20, 50])
    assert length_names([20, 50]) == ["<=20", "21-50", ">50"]
    assert found == {
        "<=20": {"users": 2, "R@10": 0.5},
        "21-50": {"users": 2, "R@10": 0.5},
        ">50": {"users": 1, "R@10": 1.0},
    }


def test_an_empty_bin_is_left_out() -> None:
    assert list(by_length({"R@10": np.ones(1)}, np.array([30]), [20, 50])) == ["21-50"]


def test_head_makes_half_of_all_interactions_and_tail_a_fifth() -> None:
    # 20 interactions: 9 are less than half, so the head takes 5 too; 2 + 2 make a fifth; what is left is mid.
    assert named([9, 5, 2, 2, 2, 0]) == ["head", "head", "tail", "tail", "tail", "cold"]
    assert named([10, 4, 3, 1, 1, 1]) == ["head", "mid", "tail", "tail", "tail", "tail"]


def test_equally_popular_items_are_in_one_group() -> None:
    assert set(named([3, 3, 3, 3])) == {"head"}
    assert named([0, 0]) == ["cold", "cold"]


def test_each_target_counts_alone_in_its_group() -> None:
    # One user with a hit in the head and a miss in the tail, another with a hit in the tail.
    ranks, users = np.array([0, 99, 3]), np.array([0, 0, 1])
    group = np.array([POPULARITY_GROUPS.index(name) for name in ("head", "tail", "tail")])
    found = by_popularity(ranks, users, group, [10])
    assert list(found) == ["tail", "head"]
    assert (found["head"]["users"], found["head"]["targets"], found["head"]["R@10"]) == (1, 1, 1.0)
    assert (found["tail"]["users"], found["tail"]["targets"], found["tail"]["R@10"]) == (2, 2, 0.5)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**31), st.integers(1, 60))
def test_groups_are_a_partition_and_weigh_up_to_the_whole(seed: int, users: int) -> None:
    rng = np.random.default_rng(seed)
    ranks, owners = rng.integers(0, 40, users), np.arange(users)
    values = per_user(ranks, owners, [10], users)
    whole = means(values)
    lengths = by_length(values, rng.integers(1, 200, users), [20, 50, 100])
    popularity = by_popularity(ranks, owners, popularity_groups(rng.integers(0, 9, users)), [10])
    for groups in (lengths, popularity):
        assert sum(own["users"] for own in groups.values()) == users
        for name, value in whole.items():
            assert sum(own["users"] * own[name] for own in groups.values()) / users == pytest.approx(value)

"""Ranks in files, and two models compared user by user."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from hymirec.catalog.parts import write_table
from hymirec.errors import ArtifactDamagedError, ArtifactMissingError, DataError
from hymirec.evaluation.bootstrap import paired_p_value
from hymirec.evaluation.ranks import Ranks, compare


def ranks_of(values: list[int], items: list[int] | None = None) -> Ranks:
    users = np.arange(len(values)) + 3
    return Ranks.of(users, np.array(items or range(len(values))), np.array(values))


def test_a_file_gives_back_what_was_saved(tmp_path: Path) -> None:
    ranks = Ranks.of(np.array([1, 1, 4]), np.array([7, 8, 7]), np.array([0, 2**31, 5]))
    ranks.save(tmp_path / "r.parquet")
    opened = Ranks.open(tmp_path / "r.parquet")
    assert opened.user_T.tolist() == [1, 1, 4]
    assert opened.rank_T.tolist() == [0, 2**31, 5]
    assert opened.targets == ranks.targets
    assert opened.per_user([10])["R@10"].tolist() == [0.5, 1.0]


def test_a_file_that_is_not_there_or_holds_something_else_is_told(tmp_path: Path) -> None:
    with pytest.raises(ArtifactMissingError):
        Ranks.open(tmp_path / "nowhere.parquet")
    write_table(tmp_path / "other.parquet", pa.table({"user": [1], "rank": [2]}))
    with pytest.raises(ArtifactDamagedError, match="does not hold ranks"):
        Ranks.open(tmp_path / "other.parquet")


def test_a_difference_by_hand() -> None:
    # Hits at 10: ours 3 of 4, theirs 1 of 4.
    ours, theirs = ranks_of([0, 0, 9, 10]), ranks_of([0, 10, 11, 12])
    found = compare([ours], [theirs])
    assert found["R@10"].difference == pytest.approx(0.5)
    a, b = np.array([1.0, 1, 1, 0]), np.array([1.0, 0, 0, 0])
    assert found["R@10"].p_value == paired_p_value(a, b, 2_000, 0)
    assert compare([theirs], [ours])["R@10"].difference == pytest.approx(-0.5)
    assert compare([ours], [ours])["N@10"] == (0.0, 1.0)


def test_a_user_counts_once_whatever_the_seeds() -> None:
    seeds = [ranks_of([0, 10]), ranks_of([10, 10])]
    assert compare(seeds, [ranks_of([10, 10])])["R@10"].difference == pytest.approx(0.25)


def test_a_consistent_difference_is_seen_and_chance_is_not() -> None:
    rng = np.random.default_rng(0)
    theirs = rng.integers(0, 40, 3_000)
    better = np.where(rng.random(3_000) < 0.1, theirs // 2, theirs)
    assert compare([ranks_of(better.tolist())], [ranks_of(theirs.tolist())])["N@10"].p_value < 0.01
    assert compare([ranks_of(rng.permutation(theirs).tolist())], [ranks_of(theirs.tolist())])["R@10"].p_value > 0.01


def test_runs_that_were_asked_for_other_items_are_not_compared() -> None:
    with pytest.raises(DataError, match="different targets"):
        compare([ranks_of([1, 2])], [ranks_of([1, 2], items=[5, 6])])

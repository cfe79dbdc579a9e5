"""Every problem of the two tables is found and named with table, row and column."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from hymirec.catalog.normalise import Tables
from hymirec.catalog.validation import MAX_LINES, check, colliding_keys, find_problems, find_warnings
from hymirec.errors import ValidationError


def items(**change: Any) -> pa.Table:
    columns = {"item": [1, 2, 3], "title": ["a", "b", "c"], **change}
    return pa.table({name: values for name, values in columns.items() if values is not None})


def interactions(**change: Any) -> pa.Table:
    columns = {"user": ["u", "u", "v"], "item": [1, 2, 3], "ts": [10, 20, 30], **change}
    return pa.table({name: values for name, values in columns.items() if values is not None})


def test_good_tables_have_no_problem() -> None:
    assert find_problems(items(), interactions()) == []
    assert find_problems(items(item=["1", "2", "3"]), interactions(item=["1", "1", "3"], action=["x", None, "y"])) == []
    check(Tables(items(), interactions()))


CASES: dict[str, tuple[pa.Table, pa.Table, list[str]]] = {
    "missing column of items": (items(title=None), interactions(), ["items: no column title"]),
    "missing columns of interactions": (
        items(),
        interactions(ts=None, user=None),
        ["interactions: no column user", "interactions: no column ts"],
    ),
    "float ids": (
        items(item=[1.0, 2.0, 3.0]),
        interactions(),
        ["items, column item: expected int64 or string, got double"],
    ),
    "times as text": (
        items(),
        interactions(ts=["a", "b", "c"]),
        ["interactions, column ts: expected int64 seconds or a timestamp, got string"],
    ),
    "numbers as actions": (
        items(),
        interactions(action=[1, 2, 3]),
        ["interactions, column action: expected string, got int64"],
    ),
    "null ids": (
        items(item=[1, None, 3]),
        interactions(user=["u", None, "v"], item=[None, 1, 3]),
        [
            "items row 1, column item: is null",
            "interactions row 1, column user: is null",
            "interactions row 0, column item: is null",
        ],
    ),
    "null ts": (items(), interactions(ts=[1, 2, None]), ["interactions row 2, column ts: is null"]),
    "duplicate item": (
        items(item=[1, 2, 2]),
        interactions(item=[1, 1, 2]),
        ["items row 2, column item: 2 is there already (row 1)"],
    ),
    "unknown item": (items(), interactions(item=[1, 9, 3]), ["interactions row 1, column item: 9 is not in items"]),
    "ids of two types": (
        items(),
        interactions(item=["1", "2", "3"]),
        ["interactions, column item: ids are string, those of items are int64"],
    ),
    "negative ts": (items(), interactions(ts=[1, -5, 3]), ["interactions row 1, column ts: -5 is negative"]),
    "milliseconds": (
        items(),
        interactions(ts=[1, 2, 1_700_000_000_000]),
        ["interactions row 2, column ts: 1700000000000 is beyond"],
    ),
    "empty tables": (
        items().slice(0, 0),
        interactions().slice(0, 0),
        ["items: the table is empty", "interactions: the table is empty"],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_problem_is_named(case: str) -> None:
    left, right, expected = CASES[case]
    problems = find_problems(left, right)
    assert len(problems) == len(expected)
    for problem, start in zip(problems, expected, strict=True):
        assert problem.startswith(start)


def test_many_problems_of_one_kind_are_counted() -> None:
    bad = interactions(user=["u"] * 50, item=[9] * 50, ts=list(range(50)))
    problems = find_problems(items(), bad)
    assert len(problems) == MAX_LINES + 1
    assert "30 rows more of that kind (50 in all)" in problems[-1]


def test_rows_count_over_all_chunks() -> None:
    chunks = pa.concat_tables([interactions(), interactions(item=[1, 8, 1])])
    assert find_problems(items(), chunks) == ["interactions row 4, column item: 8 is not in items"]


def test_check_raises_with_all_problems() -> None:
    with pytest.raises(ValidationError, match="row 1, column item: 9 is not in items") as e:
        check(Tables(items(item=[1, 2, 2]), interactions(item=[1, 9, 2])))
    assert len(e.value.problems) == 2


def test_equal_keys_are_paired_with_the_first_row_that_has_them() -> None:
    keys = np.array([7, 3, 7, 5, 3], np.uint64)
    assert colliding_keys(keys) == [(0, 2), (1, 4)]
    assert colliding_keys(np.array([1, 2], np.uint64)) == []


def test_empty_titles_and_cold_items_are_warnings() -> None:
    found = find_warnings(items(title=["a", None, " "]), interactions(item=[1, 1, 2]))
    assert found[:2] == ["items row 1, column title: is empty", "items row 2, column title: is empty"]
    assert found[2].startswith("items: 1 of 3 are in no interaction")
    assert find_warnings(items(), interactions()) == []

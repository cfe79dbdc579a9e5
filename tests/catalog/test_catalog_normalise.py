"""Tables of any width and kind come to the catalogue's types, and nothing is lost on the way."""

from __future__ import annotations

from datetime import date, datetime, timedelta

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hymirec.catalog.normalise import normalise

ITEMS = pa.table({"item": pa.array([1], pa.int32()), "title": ["t"]})


def interactions(ts: pa.Array, **columns: pa.Array) -> pa.Table:
    n = len(ts)
    return pa.table(
        {"user": pa.array([1] * n, pa.int16()), "item": pa.array([1] * n, pa.uint32()), "ts": ts, **columns}
    )


@pytest.mark.parametrize("kind", [pa.int8(), pa.int32(), pa.uint8(), pa.uint64()])
def test_integers_are_widened(kind: pa.DataType) -> None:
    tables = normalise(pa.table({"item": pa.array([7], kind)}), interactions(pa.array([3], kind)))
    assert tables.items.schema.field("item").type == pa.int64()
    assert tables.interactions.schema.types == [pa.int64()] * 3
    assert tables.interactions["ts"].to_pylist() == [3]


def test_an_unsigned_id_beyond_int64_is_left_to_validation() -> None:
    tables = normalise(pa.table({"item": pa.array([2**63], pa.uint64())}), interactions(pa.array([1])))
    assert tables.items.schema.field("item").type == pa.uint64()


@pytest.mark.parametrize("kind", [pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.large_string())])
def test_any_string_becomes_string(kind: pa.DataType) -> None:
    column = pa.array(["a", None, "a"], pa.string()).cast(kind) if not pa.types.is_dictionary(kind) else None
    column = column if column is not None else pa.array(["a", None, "a"], pa.large_string()).dictionary_encode()
    tables = normalise(pa.table({"item": [1, 2, 3], "title": column}), interactions(pa.array([1])))
    assert tables.items.schema.field("title").type == pa.string()
    assert tables.items["title"].to_pylist() == ["a", None, "a"]


def test_a_list_of_strings_becomes_one_text() -> None:
    items = pa.table({"item": [1, 2], "title": ["x", "y"], "genres": [["Drama", "War"], None], "scores": [[1], [2]]})
    tables = normalise(items, interactions(pa.array([1])))
    assert tables.items["genres"].to_pylist() == ["Drama, War", None]
    assert tables.items["scores"].to_pylist() == [[1], [2]]


@given(
    st.datetimes(datetime(1900, 1, 1), datetime(2100, 1, 1)),
    st.sampled_from([("s", 0), ("ms", 3), ("us", 6), ("ns", 9)]),
)
def test_a_timestamp_becomes_seconds_rounded_down(moment: datetime, unit: tuple[str, int]) -> None:
    column = pa.array([moment.replace(microsecond=0) if unit[0] == "s" else moment]).cast(
        pa.timestamp(unit[0]), safe=False
    )
    seconds = (moment.replace(microsecond=0) - datetime(1970, 1, 1)) // timedelta(seconds=1)
    if unit[0] == "ms":  # casting to milliseconds drops the rest, towards zero, before we see it
        seconds = column.cast(pa.int64())[0].as_py() // 1000
    assert normalise(ITEMS, interactions(column)).interactions["ts"].to_pylist() == [seconds]


def test_a_date_is_its_first_second() -> None:
    ts = pa.array([date(1970, 1, 2)])
    assert normalise(ITEMS, interactions(ts)).interactions["ts"].to_pylist() == [86_400]


def test_interactions_keep_only_what_is_used_and_items_keep_all() -> None:
    tables = normalise(
        ITEMS.append_column("price", pa.array([1.5])),
        interactions(pa.array([1]), action=pa.array(["a"]), rating=pa.array([5])),
    )
    assert tables.interactions.column_names == ["user", "item", "ts", "action"]
    assert tables.items.column_names == ["item", "title", "price"]

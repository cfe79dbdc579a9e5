"""Item texts: labels, order, white space, and the defined fallback."""

from __future__ import annotations

import pyarrow as pa
import pytest

from hymirec.catalog.text import clean, render, text_columns
from hymirec.errors import DataError


def table(**columns: list[str | None]) -> pa.Table:
    return pa.table({name: pa.array(values, pa.string()) for name, values in columns.items()})


def test_a_text_is_title_then_labelled_columns() -> None:
    items = table(title=["Heat"], genres=["Crime"], plot_text=["A thief."])
    assert render(items, ["title", "genres", "plot_text"]).to_pylist() == [
        "Title: Heat Genres: Crime Plot text: A thief."
    ]


def test_an_empty_column_is_left_out_with_its_label_and_no_text_is_the_empty_text() -> None:
    items = table(title=[None, "A", "  ", ""], genres=["G", None, "\n", None])
    assert render(items, ["title", "genres"]).to_pylist() == ["Genres: G", "Title: A", "", ""]


def test_no_column_and_no_row_are_fine() -> None:
    assert render(table(title=["a", "b"]), []).to_pylist() == ["", ""]
    assert render(table(title=[]), ["title"]).to_pylist() == []


def test_white_space_of_any_kind_is_collapsed() -> None:
    column = pa.chunked_array([pa.array(["  a \t\r\n b\u00a0\u3000c ", None]), pa.array(["d"])])
    assert clean(column).to_pylist() == ["a b c", "", "d"]


def test_a_column_without_any_value_is_empty() -> None:
    assert clean(pa.chunked_array([pa.nulls(2)])).to_pylist() == ["", ""]


def test_columns_default_to_title_then_all_other_strings() -> None:
    items = pa.table({"item": ["x"], "brand": ["b"], "price": [1.0], "title": ["t"]})
    assert text_columns(items) == ["title", "brand"]
    assert text_columns(items, ("brand",)) == ["brand"]
    assert text_columns(items, ()) == []


@pytest.mark.parametrize("column", ["prise", "price"])
def test_a_wanted_column_that_is_no_string_is_named(column: str) -> None:
    with pytest.raises(DataError, match=f"names {column}.*title"):
        text_columns(pa.table({"item": [1], "title": ["t"], "price": [1.0]}), ("title", column))

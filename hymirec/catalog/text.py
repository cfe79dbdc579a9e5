"""The text of an item: `Title: ... Genres: ...`, from its title and text columns.

Source: the encoder's input template of HyMiRec, arXiv 2510.13738. An item without any text has the text "": what the
encoder makes of it is the encoder's to define.
"""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt

from hymirec.catalog.parts import one_array
from hymirec.catalog.schemas import ITEM, TITLE
from hymirec.errors import DataError


def text_columns(items: pa.Table, wanted: Sequence[str] | None = None) -> list[str]:
    """Columns that make the text: `wanted`, or `title` and then every other string column but the id, in table order.

    Raises DataError for a wanted column that is not there or is not a string.
    """
    strings = [f.name for f in items.schema if f.name != ITEM and (pt.is_string(f.type) or pt.is_null(f.type))]
    if wanted is None:
        return [TITLE, *(name for name in strings if name != TITLE)] if TITLE in strings else strings
    lacking = [name for name in wanted if name not in strings]
    if lacking:
        raise DataError(
            f"data.text_columns names {', '.join(lacking)}, but the string columns of items are {', '.join(strings)}; "
            "mend the config or convert the columns to strings"
        )
    return list(wanted)


def clean(column: pa.ChunkedArray) -> pa.Array:
    """Strings without leading, trailing and repeated white space (any Unicode space, line breaks); null becomes ""."""
    filled = pc.fill_null(column.cast(pa.string()), "")
    return one_array(pc.utf8_trim_whitespace(pc.replace_substring_regex(filled, r"[\s\p{Z}]+", " ")))


def render(items: pa.Table, columns: Sequence[str]) -> pa.Array:
    """The texts of a table of items, one a row; an empty or null column is left out with its label."""
    if items.num_rows == 0 or not columns:
        return pa.array([""] * items.num_rows, pa.string())
    pieces = []
    for name in columns:
        value = clean(items[name])
        # Not null and null_handling="skip": a row of nulls alone is then left out of the result (pyarrow 26).
        labelled = pc.binary_join_element_wise(f"{label(name)}:", value, "", " ")
        pieces.append(pc.if_else(pc.equal(value, ""), "", labelled))
    return pc.utf8_rtrim_whitespace(pc.binary_join_element_wise(*pieces, ""))


def label(column: str) -> str:
    """A column's name as a reader would write it: `plot_text` -> `Plot text`."""
    words = column.replace("_", " ").strip()
    return words[:1].upper() + words[1:]

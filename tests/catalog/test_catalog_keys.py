"""Item keys: one id has one key, as number and as text, for ever."""

from __future__ import annotations

import numpy as np
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from hymirec.catalog.keys import item_key, item_keys


@given(st.integers(-(2**63), 2**63 - 1))
def test_a_number_and_its_text_have_one_key(item: int) -> None:
    assert item_key(item) == item_key(str(item))


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]))))
def test_keys_of_many_are_the_keys_of_each(items: list[str]) -> None:
    keys = item_keys(items)
    assert keys.dtype == np.uint64
    assert keys.tolist() == [item_key(item) for item in items]


def test_keys_are_xxh3_of_the_utf8_text() -> None:
    # Histories on disk hold these numbers: they must never change.
    assert item_key("") == 0x2D06800538D394C2
    assert item_key("é") == xxhash.xxh3_64_intdigest("é".encode())

"""Texts become token rows that always end with the special token."""

from __future__ import annotations

import time

from hypothesis import given, settings
from hypothesis import strategies as st

from hymirec.encoder.tokenizer import FALLBACK_TEXT, pad_rows, token_ids, train_tokenizer

ITEM = "<|item|>"
TEXTS = [f"Title: {color} {thing}" for color in ("red", "blue", "cream") for thing in ("lantern", "mug", "café sign")]
TOKENIZER = train_tokenizer(TEXTS, 320, ITEM)
SPECIAL = TOKENIZER.convert_tokens_to_ids(ITEM)


def test_the_same_texts_give_the_same_tokenizer() -> None:
    """Every training hashes with another seed, so an order that hangs on hashes would show."""
    once = {train_tokenizer(TEXTS, 320, ITEM).backend_tokenizer.to_str() for _ in range(8)}
    assert once == {TOKENIZER.backend_tokenizer.to_str()}


@settings(deadline=None)
@given(st.text(max_size=200), st.integers(4, 40))
def test_the_special_token_is_last_and_only_there_whatever_the_text(text: str, max_tokens: int) -> None:
    (row,) = token_ids(TOKENIZER, [text], ITEM, max_tokens)
    assert row[-1] == SPECIAL
    assert SPECIAL not in row[:-1]
    assert 2 <= len(row) <= max_tokens


def test_a_text_that_spells_the_special_token_gets_no_second_one() -> None:
    (row,) = token_ids(TOKENIZER, [f"red {ITEM} lantern {ITEM}"], ITEM, 32)
    assert row.count(SPECIAL) == 1


def test_letters_and_bytes_that_training_never_saw_are_kept() -> None:
    (row,) = token_ids(TOKENIZER, ["日本 ☕"], ITEM, 32)
    assert TOKENIZER.decode(row[:-1]).strip() == "日本 ☕"


def test_null_empty_and_blank_texts_are_the_fallback() -> None:
    rows = token_ids(TOKENIZER, [None, "", " \t\n", FALLBACK_TEXT], ITEM, 32)
    assert all(row == rows[3] for row in rows)


def test_tokenising_leaves_no_trace_in_the_tokenizer() -> None:
    before = TOKENIZER.backend_tokenizer.to_str()
    token_ids(TOKENIZER, ["red lantern " * 50, "mug"], ITEM, 8)
    assert TOKENIZER.backend_tokenizer.to_str() == before


def test_a_text_of_megabytes_costs_no_more_than_its_first_tokens() -> None:
    start = time.perf_counter()
    (row,) = token_ids(TOKENIZER, ["red lantern " * 1_000_000], ITEM, 16)
    assert len(row) == 16
    assert time.perf_counter() - start < 1


def test_rows_are_padded_on_the_right() -> None:
    batch = pad_rows([[5, 6, 7], [8]], pad=0)
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]

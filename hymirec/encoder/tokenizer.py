"""Texts -> token ids with the special token at the end, and the tokenizer of the `tiny` preset."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

PAD = "<|pad|>"
# What an item without any text is encoded as.
FALLBACK_TEXT = "unknown item"
# Characters a token that are looked at: a text of a megabyte is cut before it is tokenised, not after.
CHARACTERS_A_TOKEN = 64


def train_tokenizer(texts: Iterable[str], vocab_size: int, special_token: str) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE on texts; the same texts in the same order give the same tokenizer.

    Every byte is in the vocabulary, so no later text has an unknown token.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, special_token],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, extra_special_tokens=[special_token], padding_side="right"
    )


def or_fallback(text: str | None) -> str:
    """The text itself, or `FALLBACK_TEXT` when there is nothing to read in it."""
    return text if text and text.strip() else FALLBACK_TEXT


def token_ids(tokenizer: Any, texts: Sequence[str | None], special_token: str, max_tokens: int) -> list[list[int]]:
    """Token ids of each text, at most `max_tokens`, the last of them always the special token.

    The ids are cut here and not by the tokenizer: a fast tokenizer would keep the length as a part of its state, and
    save it. What the tokenizer itself puts around a text (`[CLS]`, `<s>`) is kept, as its model was trained with it. A
    text that spells the special token gets its letters, not the token.
    """
    if not texts:
        return []
    special = tokenizer.convert_tokens_to_ids(special_token)
    longest = max_tokens * CHARACTERS_A_TOKEN
    cleaned = [or_fallback(text)[:longest].replace(special_token, " ") for text in texts]
    rows: list[list[int]] = tokenizer(cleaned, add_special_tokens=True, padding=False, truncation=False)["input_ids"]
    return [[*row[: max_tokens - 1], special] for row in rows]


def pad_rows(rows: Sequence[Sequence[int]], pad: int) -> dict[str, Tensor]:
    """`input_ids` and `attention_mask` (U, L) int64 on the CPU, padded on the right to the longest row."""
    length = max((len(row) for row in rows), default=0)
    tokens = torch.full((len(rows), length), pad, dtype=torch.int64)
    mask = torch.zeros((len(rows), length), dtype=torch.int64)
    for number, row in enumerate(rows):
        tokens[number, : len(row)] = torch.as_tensor(row, dtype=torch.int64)
        mask[number, : len(row)] = 1
    return {"input_ids": tokens, "attention_mask": mask}

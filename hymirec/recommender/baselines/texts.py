"""Items told by their texts, trained end to end: the loss on the next item reaches the content encoder.

A step of the full softmax asks for the vectors of all items, which is most of its time. So texts are tokenised once,
and a step makes one pass over the items that it needs, in groups of like length: little padding, and activations that
stay in a core's cache. On MovieLens-1M 16 groups take .84 of the time of 4, and .41 of one.

U items that are encoded at once  L tokens  D width of the encoder  W width  N catalogue
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from hymirec.config import BaselineConfig, EncoderConfig, LLMConfig
from hymirec.encoder.modeling import ContentEncoder
from hymirec.encoder.tokenizer import pad_rows, token_ids
from hymirec.recommender.llm import drop_outputs, empty_llm, llm_architecture, start_blocks

# Groups of like length in a training step. A constant: under ZeRO-3 a forward pass is a collective, so every rank must
# make as many.
GROUPS = 16
# Texts, evenly over the catalogue, that a tokenizer is trained on and that the mean embedding is measured on.
TOKENIZER_TEXTS = 200_000
CENTER_TEXTS = 4_096


def spread(texts: Sequence[str], count: int) -> Sequence[str]:
    """At most `count` texts, evenly over all."""
    return texts[:: max(1, -(-len(texts) // count))]


def llama(settings: BaselineConfig) -> PreTrainedModel:
    """A causal Llama by config that reads vectors (B, T, W) of entries near 1, with dropout inside its blocks."""
    sizes = LLMConfig(hidden_size=settings.width, layers=settings.layers, heads=settings.heads)
    model = empty_llm(llm_architecture(sizes), gradient_checkpointing=False)
    start_blocks(model)
    drop_outputs(model, settings.dropout)
    return model


class TokenTable(nn.Module):
    """Token ids of every item's text. Not part of a checkpoint: the tables follow from the texts.

    `text_N` is the first item with the same tokens: equal texts are one product to a model that knows nothing else.
    """

    tokens_NL: Tensor
    length_N: Tensor
    text_N: Tensor

    def __init__(self, tokenizer: Any, texts: Sequence[str], special_token: str, max_tokens: int) -> None:
        super().__init__()
        rows = token_ids(tokenizer, texts, special_token, max_tokens)
        padded = pad_rows(rows, int(tokenizer.pad_token_id))
        self.register_buffer("tokens_NL", padded["input_ids"].to(torch.int32), persistent=False)
        self.register_buffer("length_N", padded["attention_mask"].sum(dim=1), persistent=False)
        first: dict[tuple[int, ...], int] = {}
        text_N = torch.tensor([first.setdefault(tuple(row), item) for item, row in enumerate(rows)])
        self.register_buffer("text_N", text_N, persistent=False)

    def __len__(self) -> int:
        return len(self.length_N)

    def forward(self, index_U: Tensor) -> tuple[Tensor, Tensor]:
        """Token ids and mask (U, L), both int64, right-padded to the longest of these items."""
        length_U = self.length_N[index_U]
        longest = int(length_U.max()) if len(index_U) else 0
        mask_UL = torch.arange(longest, device=index_U.device) < length_U[:, None]
        return self.tokens_NL[index_U, :longest].long(), mask_UL.long()


class TextTower(nn.Module):
    """Text -> content encoder -> `head` -> vector; see `sequential.ItemTower`."""

    def __init__(self, encoder: ContentEncoder, texts: Sequence[str], head: nn.Module, encode_batch: int) -> None:
        super().__init__()
        self.size = len(texts)
        self.encoder = encoder
        self.head = head
        self.table = TokenTable(encoder.tokenizer, texts, encoder.config.special_token, encoder.config.max_tokens)
        self._encode_batch = encode_batch

    @classmethod
    def build(
        cls, settings: EncoderConfig, texts: Sequence[str], seed: int, make_head: Callable[[int], nn.Module]
    ) -> TextTower:
        """A new tower; `make_head` gets D. The encoder is centred on the catalogue, so that untrained vectors spread.

        Raises what `ContentEncoder.build` raises.
        """
        encoder = ContentEncoder.build(settings, spread(texts, TOKENIZER_TEXTS), seed)
        if settings.center:
            encoder.centered(spread(texts, CENTER_TEXTS), settings.encode_batch)
        if settings.gradient_checkpointing:
            encoder.recompute_activations()
        return cls(encoder, texts, make_head(encoder.width), settings.encode_batch)

    @property
    def text_N(self) -> Tensor:  # noqa: N802
        """See `ItemTower`."""
        return self.table.text_N

    def forward(self, index_U: Tensor) -> Tensor:
        """See `ItemTower`. Without gradients (evaluation) in parts of `encode_batch` texts."""
        order_U = self.table.length_N[index_U].argsort(stable=True)
        count = GROUPS if torch.is_grad_enabled() else -(-len(index_U) // self._encode_batch)
        parts = [part for part in order_U.tensor_split(max(1, count)) if len(part)]
        states_UD = torch.cat([self.encoder(*self.table(index_U[part])) for part in parts])
        vectors: Tensor = self.head(states_UD[order_U.argsort()])
        return vectors

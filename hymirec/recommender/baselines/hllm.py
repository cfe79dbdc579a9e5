"""HLLM: an LLM that reads items, and one that reads users, trained end to end.

Item LLM: text -> state at the special token -> projection. User LLM: a causal Llama by config over the item vectors,
the next item at every position. Its loss (cosine, learnable scale from 1/.07 capped at 100, false negatives above .99
masked) is the house's own. Source: arXiv 2409.12740 as described in HyMiRec, arXiv 2510.13738.

B batch  T items of a chunk  W width  D width of the item LLM
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from hymirec.config import BaselineConfig, EncoderConfig
from hymirec.recommender.baselines.sequential import Chunks, SequentialBaseline
from hymirec.recommender.baselines.texts import TextTower, llama


class HLLM(SequentialBaseline):
    """The user LLM over any item tower."""

    def __init__(self, settings: BaselineConfig, tower: TextTower) -> None:
        super().__init__(settings, tower)
        self.user = llama(settings)
        self.dropout = nn.Dropout(settings.dropout)

    def states(self, chunks: Chunks) -> Tensor:
        """See `SequentialBaseline.states`. Padding stands on the right, where a causal model does not see it."""
        # Entries near 1 are what the LLM's blocks expect.
        tokens_BTW = self.dropout(chunks.vectors_BTW * self.settings.width**0.5)
        states_BTW: Tensor = self.user(inputs_embeds=tokens_BTW, use_cache=False).last_hidden_state
        return states_BTW


def build(settings: BaselineConfig, encoder: EncoderConfig, texts: Sequence[str], seed: int) -> HLLM:
    """A seeded, untrained HLLM over a catalogue's texts. Raises what `ContentEncoder.build` raises."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        project = partial(nn.Linear, out_features=settings.width, bias=False)
        return HLLM(settings, TextTower.build(encoder, texts, seed, project))

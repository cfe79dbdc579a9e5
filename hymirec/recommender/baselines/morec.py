"""MoRec: SASRec whose items are told by their texts, trained end to end.

State at the special token -> linear -> GELU -> linear -> SASRec. The last linear layer is an addition: the house
compares by cosine, and GELU's values are hardly ever negative, so that without it all items would lie in one corner.
The published in-batch softmax subtracts log popularity from the logits, since popular items are negatives more often;
the house's candidates are the whole catalogue or drawn uniformly, and need no such correction.
Source: arXiv 2303.13835 as described in HyMiRec, arXiv 2510.13738.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from hymirec.config import BaselineConfig, EncoderConfig
from hymirec.recommender.baselines.sasrec import SASRec
from hymirec.recommender.baselines.texts import TextTower


def build(settings: BaselineConfig, encoder: EncoderConfig, texts: Sequence[str], seed: int) -> SASRec:
    """A seeded, untrained MoRec over a catalogue's texts. Raises what `ContentEncoder.build` raises."""

    def head(states: int) -> nn.Module:
        return nn.Sequential(
            nn.Linear(states, settings.width), nn.GELU(), nn.Linear(settings.width, settings.width, bias=False)
        )

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return SASRec(settings, TextTower.build(encoder, texts, seed, head))

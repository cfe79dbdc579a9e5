"""Stage 1: next-item contrastive training of the content encoder, end to end.

A user tower (causal Transformer over the embeddings of a user's most recent items) predicts the embedding of the next
item at every position; candidates are all distinct items of the step, in-batch and sampled ones. Only distinct items go
through the encoder, in groups of like length, so that little of a step is padding (a quarter less time on a shop's
product names). Source: HLLM (arXiv 2409.12740) as described in HyMiRec (arXiv 2510.13738), stage 1.

B users  T positions  U distinct items of the step  P positions that have a next item  D width
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the field's name for it

from hymirec.encoder.modeling import ContentEncoder
from hymirec.encoder.tokenizer import pad_rows

SCALE_CAP = 100.0
# Groups of like length that a step's items are encoded in. A constant: under ZeRO-3 a forward pass is a collective, so
# every rank must make as many.
GROUPS = 4


def grouped(rows: Sequence[Sequence[int]], pad: int) -> dict[str, Tensor]:
    """Token rows, already in order of their length, as `GROUPS` pairs `input_ids.<g>`, `attention_mask.<g>`; `text`
    (U,), the first row with the same tokens.

    Fewer rows than groups: some groups are empty, shape (0, 0).
    """
    first: dict[tuple[int, ...], int] = {}
    tensors = {"text": torch.tensor([first.setdefault(tuple(tokens), row) for row, tokens in enumerate(rows)])}
    for group in range(GROUPS):
        part = rows[group * len(rows) // GROUPS : (group + 1) * len(rows) // GROUPS]
        for name, value in pad_rows(part, pad).items():
            tensors[f"{name}.{group}"] = value
    return tensors


class UserTower(nn.Module):
    """Causal Transformer over item embeddings with learned positions counted from the end."""

    def __init__(self, width: int, layers: int, length: int, heads: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.position = nn.Parameter(0.02 * torch.randn(length, width))
        block = nn.TransformerEncoderLayer(
            width, heads, 2 * width, dropout=0.1, activation="gelu", batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(block, layers, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(width)

    def forward(self, items_BTD: Tensor, valid_BT: Tensor) -> Tensor:
        """States (B, T, D) of histories (B, T, D) that are padded on the left; `valid_BT` is False for padding."""
        length = items_BTD.shape[1]
        own = torch.eye(length, dtype=torch.bool, device=items_BTD.device)
        later = torch.ones_like(own).triu(diagonal=1)
        # Padding sees itself, so that no softmax is empty.
        hidden_BTT = (later | ~valid_BT[:, None, :]) & ~own
        mask = hidden_BTT.repeat_interleave(self.heads, dim=0)
        states: Tensor = self.norm(self.blocks(items_BTD + self.position[-length:], mask=mask))
        return states


class Stage1Model(nn.Module):
    """Encoder, user tower and a learnable scale."""

    def __init__(self, encoder: ContentEncoder, user_layers: int, length: int, scale: float) -> None:
        super().__init__()
        self.encoder = encoder
        self.user = UserTower(encoder.width, user_layers, length)
        # One element, not a scalar: DeepSpeed cannot broadcast a tensor without dimensions.
        self.log_scale = nn.Parameter(torch.tensor([math.log(scale)]))

    def items(self, batch: dict[str, Tensor]) -> Tensor:
        """Unit embeddings (U, D) of the items of a batch that `grouped` made."""
        groups = [(batch[f"input_ids.{g}"], batch[f"attention_mask.{g}"]) for g in range(GROUPS)]
        return F.normalize(torch.cat([self.encoder(ids, mask) for ids, mask in groups if len(ids)]), dim=-1)

    def states(self, unit_UD: Tensor, slots_BT: Tensor) -> Tensor:
        """Unit states (B, T, D) of users whose histories are rows of `unit_UD`; -1 is padding, on the left."""
        valid_BT = slots_BT >= 0
        return F.normalize(self.user(unit_UD[slots_BT.clamp(min=0)] * valid_BT[..., None], valid_BT), dim=-1)

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Batch: what `grouped` makes of the step's distinct items; `slots` (B, T), see `states`.

        Items of equal text are one thing under several ids, no negatives of each other.
        Returns the mean `loss` over all positions with a next item, the share of them ranked `first`, and the `scale`.
        """
        unit_UD = self.items(batch)
        slots_BT = batch["slots"]
        asked_BT = (slots_BT[:, :-1] >= 0) & (slots_BT[:, 1:] >= 0)
        query_PD = self.states(unit_UD, slots_BT)[:, :-1][asked_BT]
        target_P = slots_BT[:, 1:][asked_BT]
        scale = self.log_scale.exp().clamp(max=SCALE_CAP)
        logits_PU = (query_PD @ unit_UD.T).float() * scale
        # Told from the texts, not from the embeddings: a model that gave all items one could make its loss 0.
        text_U = batch["text"]
        same_UU = (text_U[:, None] == text_U[None]).fill_diagonal_(False)
        logits_PU = logits_PU.masked_fill(same_UU[target_P], -torch.inf)
        loss = F.cross_entropy(logits_PU, target_P)
        first = (logits_PU.argmax(dim=1) == target_P).float().mean()
        return {"loss": loss, "first": first, "scale": scale}

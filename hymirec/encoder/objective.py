"""Stage 1: next-item contrastive training of the content encoder, end to end.

A user tower (causal Transformer over the embeddings of a user's most recent items) predicts the embedding of the next
item at every position; candidates are all distinct items of the step, in-batch and sampled ones. Only distinct items
go through the encoder. Source: HLLM (arXiv 2409.12740) as described in HyMiRec (arXiv 2510.13738), stage 1.

B users  T positions  U distinct items of the step  D width
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the field's name for it

from hymirec.encoder.modeling import ContentEncoder

SCALE_CAP = 100.0
# A candidate nearer to the target than this is the same thing under another id, not a negative.
SAME = 0.99


class UserTower(nn.Module):
    """Causal Transformer over item embeddings with learned positions counted from the end."""

    def __init__(self, width: int, layers: int, length: int, heads: int = 2) -> None:
        super().__init__()
        self.position = nn.Parameter(0.02 * torch.randn(length, width))
        block = nn.TransformerEncoderLayer(
            width, heads, 2 * width, dropout=0.1, activation="gelu", batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(block, layers, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(width)

    def forward(self, items_BTD: Tensor, valid_BT: Tensor) -> Tensor:
        """States (B, T, D) of left-padded histories."""
        length = items_BTD.shape[1]
        causal = nn.Transformer.generate_square_subsequent_mask(length, device=items_BTD.device)
        # Padding on the left: a row of padding sees itself, so that no softmax is empty.
        mask = causal[None] + torch.where(valid_BT[:, None, :], 0.0, -torch.inf)
        mask = torch.where(torch.eye(length, dtype=torch.bool, device=mask.device), 0.0, mask)
        heads = self.blocks.layers[0].self_attn.num_heads  # type: ignore[union-attr]
        mask = mask.repeat_interleave(int(heads), dim=0)  # type: ignore[arg-type]
        states: Tensor = self.norm(self.blocks(items_BTD + self.position[-length:], mask=mask))
        return states


class Stage1Model(nn.Module):
    """Encoder, user tower and a learnable scale."""

    def __init__(self, encoder: ContentEncoder, user_layers: int, length: int, scale: float) -> None:
        super().__init__()
        self.encoder = encoder
        self.user = UserTower(encoder.width, user_layers, length)
        self.log_scale = nn.Parameter(torch.tensor(math.log(scale)))

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Batch: `input_ids`, `attention_mask` (U, L); `slots` (B, T) rows of them, -1 is padding on the left.

        Returns the mean loss over all positions that have a next item, and the share ranked first.
        """
        e_UD = self.encoder(batch["input_ids"], batch["attention_mask"])
        slots_BT = batch["slots"]
        valid_BT = slots_BT >= 0
        unit_UD = F.normalize(e_UD, dim=-1)
        states_BTD = self.user(unit_UD[slots_BT.clamp(min=0)] * valid_BT[..., None], valid_BT)
        asked = valid_BT[:, :-1] & valid_BT[:, 1:]
        query_PD = F.normalize(states_BTD[:, :-1][asked], dim=-1)
        target_P = slots_BT[:, 1:][asked]
        scale = self.log_scale.exp().clamp(max=SCALE_CAP)
        logits_PU = scale * query_PD @ unit_UD.T
        with torch.no_grad():
            same = (unit_UD @ unit_UD.T) > SAME
            same.fill_diagonal_(False)
        logits_PU = logits_PU.masked_fill(same[target_P], -torch.inf)
        loss = F.cross_entropy(logits_PU, target_P)
        return {"loss": loss, "first": (logits_PU.argmax(dim=1) == target_P).float().mean(), "scale": scale}

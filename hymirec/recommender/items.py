"""Item vectors of the recommender: v = normalize(P e + R), text and a learned residual an item.

e is the item's L2-normalised content embedding, P a projection, R a table with one row an item that starts from
co-occurrence. Text alone (`ids: false`) serves catalogues that change by the hour; the table alone those without text.
N catalogue  D content width  W item width
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from hymirec.errors import ModelError


class ItemEmbedder(nn.Module):
    """The vectors that the LLM reads, that targets and negatives are, and that the index holds."""

    content_ND: Tensor

    def __init__(self, items: int, width: int, content_width: int, text: bool, ids: bool) -> None:
        super().__init__()
        self.items, self.width, self.content_width = items, width, content_width
        self.projection = nn.Parameter(torch.empty(width, content_width)) if text else None
        self.residual = nn.Parameter(torch.empty(items, width)) if ids else None
        # Not part of the weights: the embeddings are an artifact of their own.
        self.register_buffer("content_ND", torch.empty(0), persistent=False)

    def attach(self, content_ND: Tensor) -> None:
        """Give the content embeddings (N, D); they are normalised here. A zero row stays zero.

        Raises ModelError for a shape that is not the configured one.
        """
        if content_ND.shape != (self.items, self.content_width):
            raise ModelError(
                f"expected content embeddings of shape ({self.items}, {self.content_width}), got "
                f"{tuple(content_ND.shape)}; run the embeddings step and the recommender step of one run"
            )
        self.content_ND = F.normalize(content_ND.float(), dim=1)

    def forward(self, index: Tensor | None = None) -> Tensor:
        """Unit vectors (*index.shape, W) of items; all N of them for None.

        Raises ModelError when text is used and no content embeddings are attached.
        """
        parts: list[Tensor] = []
        if self.projection is not None:
            if not len(self.content_ND):
                raise ModelError("item vectors need content embeddings: call attach_content() first")
            content = self.content_ND if index is None else self.content_ND[index]
            parts.append(content.to(self.projection.dtype) @ self.projection.T)
        if self.residual is not None:
            parts.append(self.residual if index is None else F.embedding(index, self.residual))
        total = parts[0] if len(parts) == 1 else parts[0] + parts[1]
        return F.normalize(total, dim=-1)

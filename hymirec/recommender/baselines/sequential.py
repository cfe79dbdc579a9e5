"""What the trained baselines share: item tower in, states after every item out, the house's loss on the next item.

A baseline is an item tower (ids or texts -> vectors) and a user model (vectors of a history -> states). Vectors and
states are normalised, so that all systems are told apart by the same contrastive loss on cosines with a learnable
scale.

B batch  T items of a chunk  W width  N catalogue  U items that are encoded at once
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from hymirec.config import BaselineConfig
from hymirec.errors import ModelError
from hymirec.recommender.contract import Reach
from hymirec.recommender.losses import Candidates
from hymirec.recommender.neighbours import Neighbours
from hymirec.recommender.trend import Trend


class ItemTower(Protocol):
    """Item indices -> vectors (U, W), not normalised. An `nn.Module`.

    `text_N`: a number for the text of every item, equal for items that the tower cannot tell apart, so that one is no
    negative of the other; None for a tower that tells all items apart.
    """

    size: int

    @property
    def text_N(self) -> Tensor | None: ...  # noqa: N802

    def __call__(self, index_U: Tensor) -> Tensor: ...


class IdTower(nn.Module):
    """A learned vector an item; `start_NW`, if given, is where the vectors start."""

    text_N = None

    def __init__(self, items: int, width: int, start_NW: Tensor | None = None) -> None:
        super().__init__()
        self.size = items
        self.table = nn.Embedding(items, width)
        nn.init.normal_(self.table.weight, std=width**-0.5)
        if start_NW is not None:
            with torch.no_grad():
                self.table.weight.copy_(start_NW)

    def forward(self, index_U: Tensor) -> Tensor:
        """See `ItemTower`."""
        vectors: Tensor = self.table(index_U)
        return vectors


@dataclass(frozen=True)
class Chunks:
    """What a user model reads: right-padded histories, all (B, T).

    `request[b, t]` is when the request after item t came. `vectors_BTW` are unit vectors of the items.
    """

    vectors_BTW: Tensor
    items: Tensor
    ts: Tensor
    mask: Tensor
    request: Tensor


class SequentialBaseline(nn.Module, ABC):
    """A recommender (`contract.Recommender`) with one interest. Subclasses give `states`."""

    table_NW: Tensor

    def __init__(self, settings: BaselineConfig, tower: ItemTower) -> None:
        super().__init__()
        self.settings = settings
        self.reach = Reach(settings.length)
        self.trend, self.neighbours = Trend(), Neighbours()
        self.tower = tower
        self.log_scale = nn.Parameter(torch.tensor([settings.scale]).log())
        # The finished item vectors of a trained model; not part of the weights.
        self.register_buffer("table_NW", torch.empty(0), persistent=False)
        self._evaluated: tuple[int, Tensor] | None = None

    @abstractmethod
    def states(self, chunks: Chunks) -> Tensor:
        """State (B, T, W) after each item, from this item and those before it; need not be normalised."""

    def trained_at(self, mask_BT: Tensor) -> Tensor:
        """Where (B, T) a history has a state that is asked for the next item; elsewhere `states` need mean nothing."""
        return mask_BT

    def item_vectors(self) -> Tensor:
        """See `Recommender.item_vectors`. Evaluation asks at every batch: the tower runs once for the same weights."""
        if len(self.table_NW):
            return self.table_NW
        if self.training or torch.is_grad_enabled():
            return self._encode(torch.arange(self.tower.size))
        version = sum(p._version for p in self.parameters())
        if self._evaluated is None or self._evaluated[0] != version:
            self._evaluated = (version, self._encode(torch.arange(self.tower.size)))
        return self._evaluated[1]

    def train(self, mode: bool = True) -> Self:
        """As `nn.Module.train`; vectors that evaluation made are forgotten."""
        self._evaluated = None
        return super().train(mode)

    def attach_item_vectors(self, table_NW: Tensor) -> None:
        """Freeze the item vectors: from here on the tower is not asked."""
        if table_NW.shape != (self.tower.size, self.settings.width):
            raise ModelError(
                f"expected item vectors of shape ({self.tower.size}, {self.settings.width}), got "
                f"{tuple(table_NW.shape)}; use the baseline's directory as one piece"
            )
        self.table_NW = table_NW

    def _encode(self, index_U: Tensor) -> Tensor:
        return F.normalize(self.tower(index_U.to(self.log_scale.device)), dim=-1)

    def answer(self, batch: dict[str, Tensor]) -> Tensor:
        """See `Recommender.answer`; a user without any item is answered with the mean of all item vectors."""
        items, mask = batch["items"], batch["mask"]
        table_NW = self.item_vectors()
        if not items.shape[1]:
            return F.normalize(table_NW.mean(dim=0), dim=0).expand(len(items), 1, -1)
        last = mask.sum(dim=1) - 1
        # The request after item t came with item t + 1; the last one comes now.
        later = torch.cat([batch["ts"][:, 1:], batch["now"][:, None]], dim=1)
        request = later.scatter(1, last.clamp(min=0)[:, None], batch["now"][:, None])
        vectors = F.embedding(items.masked_fill(~mask, 0), table_NW)
        state_BTW = self.states(Chunks(vectors, items, batch["ts"], mask, request))
        state_BW = state_BTW[torch.arange(len(items)), last.clamp(min=0)]
        state_BW = torch.where((last >= 0)[:, None], state_BW, table_NW.mean(dim=0))
        return F.normalize(state_BW, dim=-1)[:, None]

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """See `Recommender.forward`: the next item after every item of the chunk."""
        following = batch["next"][:, 1:]
        known = (following >= 0) & self.trained_at(batch["mask"])
        target_R = following[known]
        negatives = batch["negatives"].reshape(-1) if "negatives" in batch else None
        asked = [batch["items"].reshape(-1), target_R] + ([] if negatives is None else [negatives])
        size = self.tower.size
        index_U = torch.arange(size, device=target_R.device) if negatives is None else torch.unique(torch.cat(asked))
        vectors_UW = self._encode(index_U)
        place_N = torch.zeros(size, dtype=torch.int64, device=target_R.device)
        place_N[index_U] = torch.arange(len(index_U), device=target_R.device)

        def vectors(index: Tensor) -> Tensor:
            return F.embedding(place_N[index], vectors_UW)

        items = batch["items"]
        chunks = Chunks(vectors(items), items, batch["ts"], batch["mask"], batch["request"][:, 1:])
        state_RW = F.normalize(self.states(chunks)[known], dim=-1)
        candidates = Candidates(
            vectors_UW if negatives is None else vectors(negatives),
            negatives,
            self.log_scale.exp().clamp(max=100.0),
            self._same(negatives),
        )
        loss = candidates.loss(state_RW[:, None], target_R, vectors(target_R))
        return {"loss": loss, "scale": candidates.scale}

    def _same(self, negatives_M: Tensor | None) -> Callable[[Tensor], Tensor] | None:
        """Which candidates have a target's text; None for a tower that does not read texts."""
        text_N = self.tower.text_N
        if text_N is None or not self.settings.mask_same_text:
            return None
        text_M = text_N if negatives_M is None else text_N[negatives_M]
        return lambda target_R: text_N[target_R][:, None] == text_M

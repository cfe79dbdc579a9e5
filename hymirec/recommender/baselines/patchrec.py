"""PatchRec: a history as patches, the older the coarser, read by an LLM; here an embedding model.

    [session patches of the oldest part ; an item patch each ; the last items token by token] --> Llama by config

An item patch is the mean of its title's token embeddings; a session patch the mean of some item patches. The state
after each item patch, after each text and after each session patch (of its last item) is asked for the next item.
Adapted from the description in HyMiRec, arXiv 2510.13738: the published system generates text; here item vectors are
projected item patches and the states are compared with them, so that the whole catalogue is ranked.

Zones are counted from the end of the history, at a request as in training. Items inside a session have no state.

B batch  T items of a chunk  X tokens that are read  K items read as texts  L tokens of a text  W width
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from hymirec.config import BaselineConfig, EncoderConfig, PatchConfig
from hymirec.encoder.presets import build_tokenizer
from hymirec.recommender.baselines.sequential import Chunks, SequentialBaseline
from hymirec.recommender.baselines.texts import TOKENIZER_TEXTS, TokenTable, llama, spread


class PatchTower(nn.Module):
    """Item patches, projected, as item vectors (see `sequential.ItemTower`), and the token embeddings themselves."""

    def __init__(self, table: TokenTable, vocabulary: int, width: int) -> None:
        super().__init__()
        self.size = len(table)
        self.table = table
        self.token = nn.Embedding(vocabulary, width)
        nn.init.normal_(self.token.weight, std=width**-0.5)
        self.project = nn.Linear(width, width, bias=False)
        nn.init.eye_(self.project.weight)

    @property
    def text_N(self) -> Tensor:  # noqa: N802
        """See `ItemTower`."""
        return self.table.text_N

    def forward(self, index_U: Tensor) -> Tensor:
        """See `ItemTower`: the mean over a text's tokens, the special token left out."""
        tokens_UL, mask_UL = self.table(index_U)
        length_U = mask_UL.sum(dim=1)
        title_UL = mask_UL.bool() & (torch.arange(tokens_UL.shape[1], device=index_U.device) < length_U[:, None] - 1)
        start_U = (length_U - 1).cumsum(dim=0) - (length_U - 1)
        patch_UW = F.embedding_bag(tokens_UL[title_UL], self.token.weight, start_U, mode="mean")
        vectors: Tensor = self.project(patch_UW)
        return vectors


@dataclass(frozen=True)
class PatchLayout:
    """Where the items of right-padded histories stand among the LLM's tokens. All (B, T)."""

    own: Tensor
    """Whether there is a state after the item: not inside a session, not in padding."""
    first: Tensor
    """The (first) token of the item, or of the session that it is in."""
    last: Tensor
    """The token after which the item's state stands; 0 where the item has none."""
    share: Tensor
    """Weight in its patch: 1 for an item patch, 1/n in a session of n, 0 for texts and padding."""
    text: Tensor
    """Whether the item is read token by token."""


def lay_out(mask_BT: Tensor, tokens_BT: Tensor, patch: PatchConfig) -> PatchLayout:
    """Zones of histories (`mask_BT` True for an item) whose items have `tokens_BT` tokens.

    Sessions are counted from the newest item of their zone, so the oldest session may be a short one.
    """
    length_B1 = mask_BT.sum(dim=1, keepdim=True)
    from_end = length_B1 - 1 - torch.arange(mask_BT.shape[1], device=mask_BT.device)
    text = mask_BT & (from_end < patch.texts)
    depth = from_end - patch.texts - patch.items
    session = depth >= 0
    inner = session & (depth % patch.session != 0)
    own = mask_BT & ~inner
    count = torch.where(text, tokens_BT, own.long())
    after = count.cumsum(dim=1)
    old_B1 = (length_B1 - patch.texts - patch.items).clamp(min=0)
    members = (old_B1 - depth // patch.session * patch.session).clamp(min=1, max=patch.session)
    share = torch.where(session, 1 / members, (mask_BT & ~text).float())
    return PatchLayout(own, torch.where(inner, after, after - count), (after - 1).clamp(min=0), share, text)


class PatchRec(SequentialBaseline):
    """See the module's docstring."""

    def __init__(self, settings: BaselineConfig, tower: PatchTower) -> None:
        super().__init__(settings, tower)
        self.reader = llama(settings)
        self.dropout = nn.Dropout(settings.dropout)

    @property
    def patches(self) -> PatchTower:
        """The item tower."""
        assert isinstance(self.tower, PatchTower)
        return self.tower

    def trained_at(self, mask_BT: Tensor) -> Tensor:
        """See `SequentialBaseline.trained_at`."""
        return lay_out(mask_BT, mask_BT.long(), self.settings.patch).own

    def states(self, chunks: Chunks) -> Tensor:
        """See `SequentialBaseline.states`; where `trained_at` is False, the row means nothing."""
        layout = lay_out(chunks.mask, self.patches.table.length_N[chunks.items], self.settings.patch)
        tokens_BXW = self.dropout(self._read(chunks, layout) * self.settings.width**0.5)
        hidden_BXW: Tensor = self.reader(inputs_embeds=tokens_BXW, use_cache=False).last_hidden_state
        last = self._flat(layout.last, hidden_BXW.shape[1])
        return hidden_BXW.flatten(0, 1).index_select(0, last).view_as(chunks.vectors_BTW)

    def _read(self, chunks: Chunks, layout: PatchLayout) -> Tensor:
        """What the LLM reads (B, X, W): patches by their weights, texts by their token embeddings."""
        batch, width = len(chunks.mask), self.settings.width
        longest = int(layout.last.max()) + 1
        tokens = chunks.vectors_BTW.new_zeros(batch * longest, width)
        patched = chunks.vectors_BTW * layout.share[:, :, None].to(tokens.dtype)
        first = self._flat(layout.first.clamp(max=longest - 1), longest)
        tokens = tokens.index_add(0, first, patched.flatten(0, 1))
        tokens_KL, mask_KL = self.patches.table(chunks.items[layout.text])
        place_KL = first[layout.text.flatten()][:, None] + torch.arange(tokens_KL.shape[1], device=first.device)
        text = mask_KL.bool()
        return tokens.index_add(0, place_KL[text], self.patches.token(tokens_KL[text])).view(batch, longest, width)

    @staticmethod
    def _flat(place_BT: Tensor, longest: int) -> Tensor:
        """Places in rows of `longest` tokens -> places (B T,) in the flattened rows."""
        row_B1 = torch.arange(len(place_BT), device=place_BT.device)[:, None]
        return (row_B1 * longest + place_BT).flatten()


def build(settings: BaselineConfig, encoder: EncoderConfig, texts: Sequence[str], seed: int) -> PatchRec:
    """A seeded, untrained PatchRec over a catalogue's texts; of the encoder's settings it takes the tokenizer.

    Raises ModelMissingError when the preset's tokenizer is not on this machine.
    """
    tokenizer = build_tokenizer(encoder, spread(texts, TOKENIZER_TEXTS))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        table = TokenTable(tokenizer, texts, encoder.special_token, encoder.max_tokens)
        return PatchRec(settings, PatchTower(table, len(tokenizer), settings.width))

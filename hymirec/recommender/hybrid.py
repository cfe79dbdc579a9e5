"""The hybrid model: light recommender over codes, LLM over recent items, several interests out.

    long history --codes--> light tower --> coarse interests
    [coarse + indicator ; start ; recent items ; queries] --> LLM --> refined interests r_0 .. r_{S-1}

r_0 is the LLM's state at the last item, r_j = state at the last item + head_j(state at query j): a fresh query lags an
item token, which carries its own embedding, so the others start from the trunk. To each is added a sum of the recent
items' own vectors with a memory of its own (`recency`). The first is a unit vector of item space; the others are as
long as their gate is open (0..1), so that a user with one interest is answered by one.

Padding: recent items stand on the left of their row and padding on the right in training; `interests` takes either
side. `coarse` takes padding anywhere. Results do not depend on padding or batch size beyond rounding (1e-5).

B batch  T recent items  P = T + 1 prefixes  E long events  Q coarse  A anchors  S interests  W item width
H hidden width (of the LLM, or of the light tower for coarse)  N catalogue  L layers  K centroids
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from transformers import PreTrainedConfig, PreTrainedModel

from hymirec.artifacts import read_json
from hymirec.codebook.quantizer import ItemTable
from hymirec.config import RecommenderConfig, parse
from hymirec.errors import ArtifactDamagedError, ArtifactMissingError, ModelError
from hymirec.recommender.codes import CodeTable
from hymirec.recommender.contract import Reach
from hymirec.recommender.items import ItemEmbedder
from hymirec.recommender.light import LightTower
from hymirec.recommender.llm import drop_outputs, empty_llm, start_blocks
from hymirec.recommender.losses import Candidates, Twins, same_content
from hymirec.recommender.masks import TimeBias, additive, pack
from hymirec.recommender.negatives import negatives_a_step
from hymirec.recommender.neighbours import Neighbours, open_neighbours
from hymirec.recommender.objective import Objective, objective_losses
from hymirec.recommender.recency import RecencyKernels
from hymirec.recommender.ticks import BUCKETS, NO_AGE, age_buckets
from hymirec.recommender.trend import Trend, TrendCounts, open_trend

# Where the gate of an interest starts: sigmoid(4) = .98.
OPEN_GATE = 4.0
SERVING_FILE = "item_vectors.safetensors"


class HybridConfig(PreTrainedConfig):
    """`recommender` is the RecommenderConfig as plain values; `llm` the Hugging Face config of the LLM."""

    model_type = "hymirec_hybrid"

    def __init__(
        self,
        items: int = 1,
        content_width: int = 8,
        recommender: dict[str, Any] | None = None,
        llm: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        self.items = items
        self.content_width = content_width
        self.recommender = recommender or {}
        self.llm = llm or {}
        super().__init__(**kwargs)


class HybridModel(PreTrainedModel):
    """See the module's docstring. `attach_*` gives it the tables that are artifacts of their own."""

    config_class = HybridConfig
    base_model_prefix = "hybrid"
    main_input_name = "items"

    codebook_LKX: Tensor
    table_NW: Tensor
    # What is popular now, chosen after training; counts are there where it is served from.
    trend: Trend
    trend_counts: TrendCounts | None
    # What stood beside a history's last items, chosen after that.
    neighbours: Neighbours

    def __init__(self, config: HybridConfig) -> None:
        super().__init__(config)
        settings = parse(RecommenderConfig, config.recommender, "recommender config of the model")
        self.settings = settings
        self.reach = Reach.of(settings)
        self.trend, self.trend_counts = Trend(), None
        self.neighbours = Neighbours()
        item, light, dmil = settings.item, settings.light, settings.dmil
        self.llm = empty_llm(config.llm, settings.llm.gradient_checkpointing)
        if settings.llm.preset == "tiny":
            drop_outputs(self.llm, settings.llm.dropout)
        hidden, heads = self.llm.config.hidden_size, self.llm.config.num_attention_heads
        self.items = ItemEmbedder(config.items, item.width, config.content_width, item.text, item.ids)
        self.coarse_count = light.queries if light.enabled else 0
        self.light = (
            LightTower(config.content_width, light.hidden_size, light.layers, light.heads, light.queries, light.dropout)
            if light.enabled
            else None
        )
        self.coarse_in = nn.Linear(light.hidden_size, hidden) if light.enabled else None
        self.indicator_H = nn.Parameter(torch.zeros(hidden)) if settings.llm.indicator and light.enabled else None
        self.start_H = nn.Parameter(torch.empty(hidden))
        self.item_in = nn.Linear(item.width, hidden, bias=False)
        self.state_out = nn.Linear(hidden, item.width, bias=False)
        self.time_bias = TimeBias(heads) if settings.llm.time else None
        self.gap = nn.Embedding(BUCKETS, hidden) if settings.llm.time else None
        self.query_JH = nn.Parameter(torch.empty(dmil.interests - 1, hidden))
        self.recency = RecencyKernels(dmil.interests, item.lags) if item.lags else None
        self.heads = nn.ModuleList([nn.Linear(hidden, item.width) for _ in range(dmil.interests - 1)])
        self.gate = nn.Linear(hidden, 1) if dmil.interests > 1 else None
        # One element, not a scalar: DeepSpeed cannot broadcast a tensor without dimensions.
        self.log_scale = nn.Parameter(torch.tensor([settings.scale]).log())
        self.dropout = nn.Dropout(settings.llm.dropout)
        self.codes = CodeTable()
        for name in ("codebook_LKX", "table_NW"):
            self.register_buffer(name, torch.empty(0), persistent=False)
        self._codebook_projected = False
        self._twins: Twins | None = None
        if settings.llm.freeze:
            self.llm.requires_grad_(False)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Nothing: the LLM and the light tower initialise themselves, the rest is `reset_parameters`."""

    def reset_parameters(self, input_size: float = 1.0) -> None:
        """Fresh weights around the LLM, from torch's current random state.

        `input_size` is the root mean square of the inputs that the LLM's blocks are used to (`load_llm_weights`).
        Item space passes through the LLM's residual stream unchanged at first (identity in and out), so an untrained
        model answers with the neighbours of the last item.
        """
        if self.settings.llm.preset == "tiny":
            start_blocks(self.llm)
        nn.init.eye_(self.item_in.weight)
        nn.init.eye_(self.state_out.weight)
        # A unit vector has entries of W^-1/2; the LLM's blocks expect entries near 1.
        with torch.no_grad():
            self.item_in.weight.mul_(input_size * self.settings.item.width**0.5)
        nn.init.normal_(self.start_H, std=0.5 * input_size)
        nn.init.normal_(self.query_JH, std=0.5 * input_size)
        if self.coarse_in is not None:
            nn.init.normal_(self.coarse_in.weight, std=input_size * self.coarse_in.in_features**-0.5)
            nn.init.zeros_(self.coarse_in.bias)
        if self.gap is not None:
            nn.init.zeros_(self.gap.weight)
        if self.gate is not None:
            nn.init.zeros_(self.gate.weight)
            nn.init.constant_(self.gate.bias, OPEN_GATE)
        if self.recency is not None:
            self.recency.reset_parameters()
        for head in self.heads:
            for parameter in head.parameters():
                nn.init.zeros_(parameter)
        if self.items.residual is not None:
            nn.init.normal_(self.items.residual, std=self.settings.item.width**-0.5)
        if self.items.projection is not None:
            nn.init.normal_(self.items.projection, std=self.settings.item.width**-0.5)

    # --- tables from other artifacts -------------------------------------------------------------------------------

    def attach_content(self, content_ND: Tensor) -> None:
        """Content embeddings, for training (and for `item_vectors` before a table is attached)."""
        self.items.attach(content_ND)
        threshold = self.settings.mask_false_negatives
        if negatives_a_step(self.settings.negatives, self.config.items) == 0 and threshold < 1:
            self._twins = Twins.find(self.items.content_ND, threshold)

    def attach_codes(self, codes: ItemTable, codebook_LKX: Tensor, projected: bool = False) -> None:
        """Codes of all items with the codebook: in content space (X = D) or as this light tower sees it (X = H).

        Raises ModelError when they are of another catalogue.
        """
        if len(codes) != self.config.items:
            raise ModelError(
                f"expected codes of {self.config.items} items, got {len(codes)}; use codes and recommender of one run"
            )
        device = self.start_H.device
        self.codes = CodeTable(codes).to(device)
        self.codebook_LKX = codebook_LKX.to(device)
        self._codebook_projected = projected

    def attach_item_vectors(self, table_NW: Tensor) -> None:
        """The final table of item vectors; from here on content embeddings are not needed.

        Raises ModelError for a table of another shape.
        """
        if table_NW.shape != (self.config.items, self.settings.item.width):
            raise ModelError(
                f"expected item vectors of shape ({self.config.items}, {self.settings.item.width}), got "
                f"{tuple(table_NW.shape)}; use the recommender directory as one piece"
            )
        self.table_NW = table_NW.to(self.start_H.device)

    def save_serving(self, directory: Path) -> None:
        """Write the item vectors and the projected codebook, all that serving needs beside weights and codes."""
        with torch.no_grad():
            tensors = {"item_vectors": self.item_vectors().float().cpu().contiguous()}
            if self.light is not None:
                projected = self.codebook_LKX if self._codebook_projected else self.light.project(self.codebook_LKX)
                tensors["projected_codebook"] = projected.float().cpu().contiguous()
        save_file(tensors, directory / SERVING_FILE)

    @classmethod
    def open(cls, directory: Path, codes: ItemTable) -> HybridModel:
        """A model ready to serve and to evaluate, in eval mode: weights, item vectors, codebook, codes, bonuses.

        Raises ArtifactMissingError when a file is not there, ArtifactDamagedError when one is not what it should be.
        """
        weights, path = directory / "model.safetensors", directory / SERVING_FILE
        for needed in (directory / "config.json", weights, path):
            if not needed.is_file():
                raise ArtifactMissingError(f"{needed} is not there; run the recommender step")
        read_json(directory / "config.json")
        loaded: Any = cls
        try:
            model: HybridModel = loaded.from_pretrained(directory)
        except SafetensorError as e:
            raise ArtifactDamagedError(f"{weights} holds no tensors ({e}); run the recommender step again") from e
        try:
            tensors = load_file(path)
        except SafetensorError as e:
            raise ArtifactDamagedError(f"{path} holds no tensors ({e}); run the recommender step again") from e
        model.attach_item_vectors(tensors["item_vectors"])
        if model.light is not None:
            model.attach_codes(codes, tensors["projected_codebook"], projected=True)
        model.trend, model.trend_counts = open_trend(directory)
        model.neighbours = open_neighbours(directory)
        model.eval()
        return model

    # --- inference -------------------------------------------------------------------------------------------------

    def item_vectors(self) -> Tensor:
        """Unit vectors (N, W) of all items; the attached table when there is one."""
        return self.table_NW if len(self.table_NW) else self.items()

    def coarse(self, items_BE: Tensor, ts_BE: Tensor, mask_BE: Tensor, now_B: Tensor) -> Tensor:
        """Coarse interests (B, Q, H of the light tower) of long histories; (B, 0, H) when the tower is off.

        The long history is what lies before the recent items. `now_B` is the time of the FIRST RECENT item (of the
        request, when there is none): coarse interests then do not change between two requests as long as the boundary
        stays where it is, and a cached value is exact. Times are int64 seconds. `mask_BE` is True for an event;
        padding may stand anywhere, and only the newest `light.max_history` events should be passed.
        """
        if self.light is None:
            return self.start_H.new_zeros(len(items_BE), 0, self.settings.light.hidden_size)
        if not len(self.codes):
            raise ModelError("coarse interests need the items' codes: call attach_codes() first")
        safe = items_BE.masked_fill(~mask_BE, 0)
        coarse: Tensor = self.light(
            *self.codes(safe),
            age_buckets(now_B[:, None], ts_BE),
            mask_BE,
            self.codebook_LKX,
            self._codebook_projected,
        )
        return coarse

    def interests(self, coarse_BQH: Tensor, items_BT: Tensor, ts_BT: Tensor, mask_BT: Tensor, now_B: Tensor) -> Tensor:
        """Interests (B, S, W), at most unit vectors, of a request at `now_B` after the recent items (oldest first).

        At most `llm.recent` items, padded on either side; T may be 0. A row without any item is answered from the
        coarse interests alone.
        """
        order = mask_BT.to(torch.int8).argsort(dim=1, descending=True, stable=True)
        items, ts, mask = (value.gather(1, order) for value in (items_BT, ts_BT, mask_BT))
        length_B1 = mask.sum(dim=1, keepdim=True)
        # The request after p items was made when item p + 1 came; the last one is made now.
        request = torch.cat([ts, now_B[:, None]], dim=1)
        request = request.scatter(1, length_B1, now_B[:, None])
        vectors = F.embedding(items.masked_fill(~mask, 0), self.item_vectors())
        _, interests_BASW = self.refine(coarse_BQH, vectors, ts, mask, request, length_B1)
        return interests_BASW[:, 0]

    def answer(self, batch: dict[str, Tensor]) -> Tensor:
        """See `Recommender.answer`: both stages on one batch."""
        coarse = self.coarse(batch["long_items"], batch["long_ts"], batch["long_mask"], batch["boundary"])
        return self.interests(coarse, batch["items"], batch["ts"], batch["mask"], batch["now"])

    # --- the LLM pass ----------------------------------------------------------------------------------------------

    def refine(
        self,
        coarse_BQH: Tensor,
        vectors_BTW: Tensor,
        ts_BT: Tensor,
        mask_BT: Tensor,
        request_BP: Tensor,
        anchors_BA: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """One packed pass: trunk states (B, P, W) after each prefix and interests (B, A, S, W) at the anchors.

        Unit vectors, or shorter ones for gated interests. Items are right-padded; an anchor is a prefix length 0..T;
        `request_BP[b, p]` is the time of the request after p items.
        """
        batch = len(vectors_BTW)
        anchors, queries = anchors_BA.shape[1], len(self.query_JH)
        layout = pack(mask_BT, anchors_BA, coarse_BQH.shape[1], queries)
        prefix_BPH = torch.cat([self.start_H.expand(batch, 1, -1), self.item_in(vectors_BTW)], dim=1)
        query_BAJH = self.query_JH.expand(batch, anchors, -1, -1)
        if self.gap is not None:
            gap_BPH = self.gap(self._gaps(ts_BT, request_BP))
            prefix_BPH = prefix_BPH + gap_BPH
            query_BAJH = query_BAJH + gap_BPH[torch.arange(batch)[:, None], anchors_BA][:, :, None]
        parts = [self._coarse_tokens(coarse_BQH)] if self.coarse_in is not None else []
        parts += [prefix_BPH, query_BAJH.flatten(1, 2)]
        tokens = self.dropout(torch.cat(parts, dim=1))
        bias = self.time_bias(layout, ts_BT, request_BP, anchors_BA) if self.time_bias is not None else None
        hidden_BXH = self.llm(
            inputs_embeds=tokens,
            attention_mask=additive(layout, bias, tokens.dtype),
            position_ids=layout.position_BX,
            use_cache=False,
        ).last_hidden_state
        # Normed states have entries near 1; item vectors, and the sums of them below, have a length of 1.
        hidden_BXH = hidden_BXH * hidden_BXH.shape[2] ** -0.5
        state_BPW = self.state_out(hidden_BXH[:, layout.start : layout.first_query])
        last_BAW = state_BPW[torch.arange(batch)[:, None], anchors_BA]
        asked_BAJH = hidden_BXH[:, layout.first_query :].unflatten(1, (anchors, queries))
        start_BAW = last_BAW.detach() if self.settings.dmil.shield_trunk else last_BAW
        others = [start_BAW + head(asked_BAJH[:, :, j]) for j, head in enumerate(self.heads)]
        interests = [last_BAW, *others]
        if self.recency is not None:
            prefix_1P = torch.arange(state_BPW.shape[1], device=anchors_BA.device)[None]
            state_BPW = state_BPW + self.recency(vectors_BTW, prefix_1P, 0)
            interests = [own + self.recency(vectors_BTW, anchors_BA, j) for j, own in enumerate(interests)]
        interests_BASW = F.normalize(torch.stack(interests, dim=2), dim=-1)
        if self.gate is not None:
            weight_BAJ = self.gate(asked_BAJH).squeeze(3).sigmoid()
            interests_BASW = torch.cat([interests_BASW[:, :, :1], interests_BASW[:, :, 1:] * weight_BAJ[..., None]], 2)
        return F.normalize(state_BPW, dim=-1), interests_BASW

    def _coarse_tokens(self, coarse_BQH: Tensor) -> Tensor:
        assert self.coarse_in is not None
        tokens: Tensor = self.coarse_in(coarse_BQH)
        return tokens if self.indicator_H is None else tokens + self.indicator_H

    @staticmethod
    def _gaps(ts_BT: Tensor, request_BP: Tensor) -> Tensor:
        """Bucket (B, P) of the time from the last item of each prefix to its request; the empty prefix has none."""
        none = torch.full_like(request_BP[:, :1], NO_AGE)
        return torch.cat([none, age_buckets(request_BP[:, 1:], ts_BT)], dim=1)

    # --- training --------------------------------------------------------------------------------------------------

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Losses of one micro-batch (see `batches.training_batch` for its keys): "loss" and scalar diagnostics."""
        coarse = self.coarse(batch["long_items"], batch["long_ts"], batch["long_mask"], batch["boundary"])
        negatives_M = batch["negatives"].reshape(-1) if "negatives" in batch else None
        # Each item that the step needs is made, and has its gradient put into the table, once.
        asked_U = None if negatives_M is None else _asked(batch)
        vectors_UW = self.items(asked_U)

        def vectors(index: Tensor) -> Tensor:
            safe = index.clamp(min=0)
            return F.embedding(safe if asked_U is None else torch.searchsorted(asked_U, safe), vectors_UW)

        state_BPW, interests_BASW = self.refine(
            coarse, vectors(batch["items"]), batch["ts"], batch["mask"], batch["request"], batch["anchors"]
        )
        return objective_losses(
            Objective(
                Candidates(
                    vectors_UW if negatives_M is None else vectors(negatives_M),
                    negatives_M,
                    self.log_scale.exp().clamp(max=100.0),
                    self._same(negatives_M),
                    self._twins,
                ),
                self.settings,
            ),
            state_BPW,
            interests_BASW,
            batch,
            vectors,
        )

    def _same(self, negatives_M: Tensor | None) -> Callable[[Tensor], Tensor] | None:
        """Which sampled candidates are a target under another id; None for the full softmax, which has twins."""
        threshold = self.settings.mask_false_negatives
        if negatives_M is None or threshold == 1:
            return None
        return same_content(self.items.content_ND, negatives_M, threshold)


def _asked(batch: dict[str, Tensor]) -> Tensor:
    """Items (U,), ascending, whose vectors a step with sampled negatives needs; 0 stands for padding."""
    names = ("items", "next", "window", "negatives")
    asked: Tensor = torch.cat([batch[name].reshape(-1) for name in names]).clamp(min=0).unique()
    return asked

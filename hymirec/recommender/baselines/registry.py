"""All baselines by the `kind` of their configuration: trained ones are built here, closed forms are made here.

N catalogue  W width
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module

from torch import Tensor

from hymirec.catalog.prepared import Catalog
from hymirec.config import TEXT_KINDS, BaselineConfig, EncoderConfig
from hymirec.recommender.baselines.contract import Baseline
from hymirec.recommender.baselines.ease import EASE
from hymirec.recommender.baselines.gru4rec import GRU4Rec
from hymirec.recommender.baselines.hstu import HSTU
from hymirec.recommender.baselines.itemknn import ItemKNN
from hymirec.recommender.baselines.popularity import Popularity, RecentPopularity
from hymirec.recommender.baselines.sasrec import SASRec
from hymirec.recommender.baselines.sequential import IdTower, SequentialBaseline


@dataclass(frozen=True)
class Inputs:
    """What a trained baseline is built from; `start_NW` is where vectors of ids start, if not at random."""

    settings: BaselineConfig
    encoder: EncoderConfig
    catalog: Catalog
    seed: int
    start_NW: Tensor | None = None


Builder = Callable[[Inputs], SequentialBaseline]


def _ids(model: Callable[[BaselineConfig, IdTower], SequentialBaseline]) -> Builder:
    def build(inputs: Inputs) -> SequentialBaseline:
        tower = IdTower(inputs.catalog.size, inputs.settings.width, inputs.start_NW)
        return model(inputs.settings, tower)

    return build


def _texts(kind: str) -> Builder:
    """The module is imported when it is needed: it brings transformers along."""

    def build(inputs: Inputs) -> SequentialBaseline:
        catalog = inputs.catalog
        texts = [text for part in range(len(catalog.part_paths)) for text in catalog.texts(part)]
        module = import_module(f"hymirec.recommender.baselines.{kind}")
        model: SequentialBaseline = module.build(inputs.settings, inputs.encoder, texts, inputs.seed)
        return model

    return build


ID_MODELS: dict[str, Builder] = {"gru4rec": _ids(GRU4Rec), "sasrec": _ids(SASRec), "hstu": _ids(HSTU)}
TEXT_MODELS: dict[str, Builder] = {kind: _texts(kind) for kind in TEXT_KINDS}
TRAINED = ID_MODELS | TEXT_MODELS

# Made from whether the evaluation masks histories: their tuning looks at validation as the evaluation will.
CLOSED_FORMS: dict[str, Callable[[bool], Baseline]] = {
    "popularity": lambda mask_history: Popularity(),
    "recent-popularity": lambda mask_history: RecentPopularity(days=None, mask_history=mask_history),
    "itemknn": lambda mask_history: ItemKNN(mask_history=mask_history),
    "ease": lambda mask_history: EASE(mask_history=mask_history),
}

_TITLES = {
    "gru4rec": "GRU4Rec",
    "sasrec": "SASRec",
    "hstu": "HSTU",
    "morec": "MoRec",
    "hllm": "HLLM",
    "patchrec": "PatchRec",
}


def title(settings: BaselineConfig) -> str:
    """A trained baseline's name in tables of results, with what makes it another model than its paper's."""
    parts = [_TITLES[settings.kind]]
    if settings.kind == "hstu" and not settings.time:
        parts.append("no time")
    if settings.kind in ID_MODELS and settings.cooccurrence:
        parts.append("co-occurrence start")
    return ", ".join(parts)

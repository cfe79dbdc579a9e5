"""New items for a trained recommender, without training: their vectors are what the model makes of their texts.

v = normalize(P e), the learned residual being zero, which is also what training starts an item from that nobody has
seen. Old items keep their vectors to the bit. N old items  M new items  D content width  W item width
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hymirec.codebook.quantizer import ItemQuantizer, ItemTable
from hymirec.errors import ModelError
from hymirec.recommender.hybrid import HybridModel
from hymirec.recommender.items import ItemEmbedder
from hymirec.recommender.neighbours import extend_neighbours
from hymirec.recommender.trend import extend_trend

RAW = "none"


def extend_recommender(
    source: Path,
    target: Path,
    codebook: ItemQuantizer,
    old: ItemTable,
    new: ItemTable,
    content_MD: NDArray[np.float32],
) -> NDArray[np.float32]:
    """Write the recommender of `source` with M more items to `target`; returns their vectors (M, W).

    `old` and `new` are the items' codes, `content_MD` the embeddings of the new ones.
    Trend counts of new items are 0, and they have no neighbours.
    Raises ModelError when the recommender does not read texts.
    """
    model = HybridModel.open(source, old)
    with torch.no_grad():
        vectors_MW = _vectors(model, torch.from_numpy(content_MD))
        model.config.items += len(vectors_MW)
        residual = model.items.residual
        if residual is not None:
            model.items.residual = nn.Parameter(torch.cat([residual, torch.zeros_like(vectors_MW).to(residual)]))
        model.attach_item_vectors(torch.cat([model.table_NW, vectors_MW.to(model.table_NW)]))
        if codebook.kind == RAW and model.light is not None:
            # Without a codebook the table that the light recommender reads has a row for each item.
            model.codebook_LKX = torch.cat([model.codebook_LKX, model.light.project(codebook.lookup(new))], dim=1)
    target.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(target)
    model.save_serving(target)
    extend_trend(source, target, len(vectors_MW))
    extend_neighbours(source, target, len(vectors_MW))
    found: NDArray[np.float32] = vectors_MW.float().numpy()
    return found


def _vectors(model: HybridModel, content_MD: Tensor) -> Tensor:
    embedder = model.items
    if embedder.projection is None:
        raise ModelError(
            "the recommender was trained with recommender.item.text=false, so it knows nothing of an item but what "
            "users did with it; train again with the new items, or with text"
        )
    added = ItemEmbedder(len(content_MD), embedder.width, embedder.content_width, text=True, ids=False)
    added.projection = embedder.projection
    added.attach(content_MD)
    vectors: Tensor = added()
    return vectors

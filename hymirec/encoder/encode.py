"""Encode a part file of the catalogue: texts in, vectors out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from hymirec.catalog.parts import read_table, to_numpy
from hymirec.catalog.schemas import INDEX, ITEM, TEXT
from hymirec.catalog.vectors import write_vectors
from hymirec.encoder.modeling import ContentEncoder
from hymirec.errors import NonFiniteEmbeddingError

FLOAT16_MAX = float(np.finfo(np.float16).max)


@dataclass(frozen=True)
class EncodeStats:
    """What one part was: `fallbacks` of its `rows` had no text."""

    rows: int
    fallbacks: int


def encode_part(encoder: ContentEncoder, source: Path, target: Path, batch: int) -> EncodeStats:
    """Encode `source` (a part of `data/items`) into `target` (a part of `embeddings`), `batch` texts a forward pass.

    Vectors are stored in fp16 as they leave the encoder, not normalised: the codebook works by cosine and keeps the
    norm in its magnitudes. An item without text gets the embedding of the text "unknown item". Texts of like length
    share a forward pass, and rows keep their order. The same part and weights give the same bytes.
    Raises NonFiniteEmbeddingError with the item's id for NaN, infinity or a value beyond fp16.
    """
    table = read_table(source, [INDEX, ITEM, TEXT])
    texts = table[TEXT].to_pylist()
    order = sorted(range(len(texts)), key=lambda row: len(texts[row] or ""))
    vectors = np.empty((len(texts), encoder.width), np.float16)
    encoder.eval()
    with torch.inference_mode():
        for start in range(0, len(order), batch):
            rows = order[start : start + batch]
            encoded = encoder.encode([texts[row] for row in rows]).float().cpu().numpy()
            bad = ~(np.abs(encoded) <= FLOAT16_MAX).all(axis=1)
            if bad.any():
                row = rows[int(np.flatnonzero(bad)[0])]
                raise NonFiniteEmbeddingError(
                    f"expected finite numbers within fp16, but the embedding of item {table[ITEM][row].as_py()!r} "
                    f"({source.name}, row {row}, text {str(texts[row])[:60]!r}) has others; train stage 1 with a lower "
                    "encoder.optim.lr, switch compute.bf16, or choose other weights"
                )
            vectors[rows] = encoded
    write_vectors(target, to_numpy(table[INDEX]), vectors)
    return EncodeStats(len(texts), sum(not (text or "").strip() for text in texts))

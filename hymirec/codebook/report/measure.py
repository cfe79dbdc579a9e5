"""How good a codebook is, in numbers: fidelity, neighbours kept, usage, magnitudes, bytes.

N rows  D width  L layers  K centroids
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hymirec.codebook.exact import exact_products, exact_scores, row_cosines, to_units
from hymirec.codebook.quantizer import ItemQuantizer, ItemTable
from hymirec.codebook.state import Usage

NEIGHBOURS = 100
QUERIES = 500
# Bytes of a component of an embedding that is not coded.
RAW_BYTES = 2
MAGNITUDE_BINS = 40
PERCENTILES = (5, 25, 50, 75, 95)


def quality_report(
    codebook: ItemQuantizer, vectors_ND: NDArray[np.floating[Any]] | Tensor, items: ItemTable
) -> dict[str, Any]:
    """Measure items as they are stored against the vectors (N, D) that they stand for.

    A layer's figures are those of what the first 1..l codes decode to. Cosines are between a vector and its decoded
    one; zero vectors are left out. `recall_at_100` is the share of a vector's 100 true neighbours in the sample that
    are among its 100 neighbours when all vectors but itself are decoded ones. `usage_fitted` is the load of centroids
    in the last pass of the fit, `usage_argmax` in these codes. Magnitudes are in the unit of the vectors. Bytes count
    an item's row as it is stored, uncompressed, against its raw embedding in fp16; `bytes_read` gives each layer an
    equal share of them.
    Raises ValueError when rows or layers do not fit each other.
    """
    vectors = torch.as_tensor(np.ascontiguousarray(vectors_ND, np.float32))
    if len(vectors) != len(items) or items.layers != codebook.layers:
        raise ValueError(
            f"expected {len(vectors)} rows of {codebook.layers} codes, got {len(items)} rows of {items.layers}"
        )
    lookup_LKD = codebook.lookup(items)
    neighbours = _Neighbours(vectors)
    fitted = codebook.info.get("usage", [])
    edges = _magnitude_edges(items)
    layers: list[dict[str, Any]] = []
    decoded = torch.zeros_like(vectors)
    for layer in range(codebook.layers):
        code = torch.from_numpy(items.codes_NL[:, layer].astype(np.int64))
        magnitude = torch.from_numpy(items.magnitudes_NL[:, layer].astype(np.float32))
        decoded = decoded + magnitude[:, None] * lookup_LKD[layer].cpu()[code]
        row: dict[str, Any] = {"bytes_read": round(items.bytes_per_item * (layer + 1) / codebook.layers, 2)}
        row |= _cosines(vectors, decoded) | {"recall_at_100": neighbours.recall(decoded)}
        if codebook.centroids:
            counts = torch.bincount(code, minlength=codebook.centroids)
            row["usage_argmax"] = _plain(asdict(Usage.of(counts)))
        if layer < len(fitted):
            row["usage_fitted"] = _plain(fitted[layer])
        if edges is not None:
            row["magnitudes"] = _magnitudes(items.magnitudes_NL[:, layer], edges)
        layers.append(row)
    raw = RAW_BYTES * codebook.width
    return {
        "kind": codebook.kind,
        "layers": codebook.layers,
        "centroids": codebook.centroids,
        "width": codebook.width,
        "rows": len(vectors),
        "cosine_mean": layers[-1]["cosine_mean"],
        "recall_at_100": layers[-1]["recall_at_100"],
        "bytes_per_item": items.bytes_per_item,
        "raw_bytes": raw,
        "compression_ratio": round(raw / items.bytes_per_item, 2),
        "per_layer": layers,
    }


def _plain(usage: dict[str, Any]) -> dict[str, Any]:
    """As JSON gives it back: a list for a tuple."""
    return {key: list(value) if isinstance(value, tuple) else value for key, value in usage.items()}


def _cosines(x_ND: Tensor, y_ND: Tensor) -> dict[str, float]:
    """Mean and percentiles of row-wise cosines, in fp64; a vector that decodes to nothing has cosine 0."""
    cosines = row_cosines(x_ND, y_ND)[(x_ND != 0).any(1)].numpy()
    if not len(cosines):
        return {"cosine_mean": 0.0} | {f"cosine_p{p:02d}": 0.0 for p in PERCENTILES}
    values = {"cosine_mean": float(cosines.mean())}
    values |= {f"cosine_p{p:02d}": float(np.percentile(cosines, p)) for p in PERCENTILES}
    return {name: round(value, 6) for name, value in values.items()}


class _Neighbours:
    """The true neighbours of (up to) 500 of the vectors, found once and looked for in every layer's decoded vectors."""

    def __init__(self, x_ND: Tensor) -> None:
        self._wanted = min(NEIGHBOURS, len(x_ND) - 1)
        self._query = torch.arange(0, len(x_ND), max(1, len(x_ND) // QUERIES))[:QUERIES]
        units_ND = to_units(x_ND)
        self._query_units = units_ND[self._query]
        self._true = self._nearest(units_ND) if self._wanted > 0 else None

    def recall(self, decoded_ND: Tensor) -> float:
        """Share of the true neighbours that decoded vectors find; 1 when a row has no neighbour to miss."""
        if self._true is None:
            return 1.0
        found = self._nearest(to_units(decoded_ND)).tolist()
        hits = sum(len(set(a) & set(b)) for a, b in zip(self._true.tolist(), found, strict=True))
        return round(hits / (self._wanted * len(found)), 4)

    def _nearest(self, units_ND: Tensor) -> Tensor:
        """Ties go to the row that comes first, so that they do not depend on the machine."""
        with exact_products():
            scores = exact_scores(self._query_units, units_ND.float().T.contiguous())
        scores = scores.double().scatter(1, self._query[:, None], -torch.inf)
        # Scores are whole numbers: less than one of them tells rows apart and never changes their order.
        scores -= torch.arange(len(units_ND), dtype=torch.float64) / (2 * len(units_ND))
        return scores.topk(self._wanted, dim=1)[1]


def _magnitude_edges(items: ItemTable) -> tuple[float, float] | None:
    """The range of all magnitudes; None where they are no information because all are 1."""
    values = items.magnitudes_NL
    if not values.size or bool((values == 1).all()):
        return None
    low, high = float(values.min()), float(values.max())
    return (low, high) if high > low else (low, low + 1.0)


def _magnitudes(values_N: NDArray[np.floating[Any]], edges: tuple[float, float]) -> dict[str, Any]:
    """Distribution of a layer's magnitudes: in `counts`, over equal bins of `range`, which all layers share."""
    values = values_N.astype(np.float64)
    # The ends are rounded outwards by fp64 itself, not cut: every value falls into a bin.
    counts = np.histogram(values, bins=MAGNITUDE_BINS, range=edges)[0]
    found: dict[str, Any] = {"mean": round(float(values.mean()), 6), "std": round(float(values.std()), 6)}
    found |= {f"p{p:02d}": round(float(np.percentile(values, p)), 6) for p in (5, 50, 95)}
    return found | {"range": list(edges), "counts": counts.tolist()}

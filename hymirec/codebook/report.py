"""How good a codebook is: fidelity, usage, bytes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from hymirec.codebook.fit import usage
from hymirec.codebook.residual import ResidualCodebook

NEIGHBOURS = 100
QUERIES = 500


def quality_report(
    codebook: ResidualCodebook, x_ND: Tensor, magnitude_bytes: int, fitted: list[dict[str, float]]
) -> dict[str, Any]:
    """Measure a codebook on a sample of vectors (N, D); `fitted` is the usage of each layer while it was fitted.

    Cosines are between a vector and what its codes decode to, for the first 1..L layers. Recall is the share of the
    true nearest neighbours (by cosine among the sample) that are found among decoded vectors.
    """
    codes_NL, magnitudes_NL = codebook.encode(x_ND)
    if magnitude_bytes == 2:
        magnitudes_NL = magnitudes_NL.half().float()
    per_layer = []
    decoded = torch.zeros_like(x_ND)
    for layer in range(codebook.layers):
        decoded = decoded + magnitudes_NL[:, layer, None] * codebook.centroids_LKD[layer][codes_NL[:, layer].long()]
        cosine = F.cosine_similarity(x_ND, decoded, dim=1)
        low, median = torch.quantile(cosine[:1_000_000], torch.tensor([0.05, 0.5])).tolist()
        per_layer.append(
            {
                "cosine_mean": round(float(cosine.mean()), 6),
                "cosine_p05": round(low, 6),
                "cosine_p50": round(median, 6),
                "usage_fitted": {key: round(v, 4) for key, v in fitted[layer].items()} if fitted else {},
                "usage_argmax": {
                    key: round(v, 4)
                    for key, v in usage(torch.bincount(codes_NL[:, layer].long(), minlength=codebook.centroids)).items()
                },
            }
        )
    stored = codebook.layers * (2 + magnitude_bytes)
    return {
        "layers": codebook.layers,
        "centroids": codebook.centroids,
        "width": codebook.width,
        "rows": len(x_ND),
        "cosine_mean": per_layer[-1]["cosine_mean"],
        "recall_at_100": round(_recall(x_ND, decoded), 4),
        "bytes_per_item": stored,
        "raw_bytes": 2 * codebook.width,
        "compression_ratio": round(2 * codebook.width / stored, 2),
        "per_layer": per_layer,
    }


def _recall(x_ND: Tensor, decoded_ND: Tensor) -> float:
    x, d = F.normalize(x_ND, dim=1), F.normalize(decoded_ND, dim=1)
    k = min(NEIGHBOURS, len(x))
    step = max(1, len(x) // QUERIES)
    true = (x[::step] @ x.T).topk(k, dim=1).indices
    found = (x[::step] @ d.T).topk(k, dim=1).indices
    hits = [len(set(a) & set(b)) for a, b in zip(true.tolist(), found.tolist(), strict=True)]
    return sum(hits) / (k * len(hits))


def to_markdown(report: dict[str, Any]) -> str:
    """The report as a page."""
    lines = [
        f"# Codebook: {report['layers']} layers of {report['centroids']} centroids, width {report['width']}",
        "",
        f"{report['bytes_per_item']} bytes an item instead of {report['raw_bytes']} (fp16): "
        f"{report['compression_ratio']} times smaller. Mean cosine {report['cosine_mean']:.4f}, recall@100 of true "
        f"neighbours {report['recall_at_100']:.4f}, measured on {report['rows']:,} items.",
        "",
        "| layer | cosine mean | p05 | p50 | max/mean fitted | CV fitted | max/mean argmax | perplexity | dead |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for number, layer in enumerate(report["per_layer"], start=1):
        fitted, argmax = layer["usage_fitted"], layer["usage_argmax"]
        lines.append(
            f"| {number} | {layer['cosine_mean']:.4f} | {layer['cosine_p05']:.4f} | {layer['cosine_p50']:.4f} | "
            f"{fitted.get('max_over_mean', float('nan')):.2f} | {fitted.get('cv', float('nan')):.3f} | "
            f"{argmax['max_over_mean']:.2f} | {argmax['perplexity']:.0f} | {argmax['dead']:.0f} |"
        )
    return "\n".join(lines) + "\n"

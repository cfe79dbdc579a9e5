"""How good a codebook is: fidelity, usage, neighbours kept, bytes.

N rows  D width  L layers
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hymirec.catalog.vectors import count_rows, read_vectors
from hymirec.codebook.encode import item_codes
from hymirec.codebook.exact import CHUNK_ROWS, exact_products, exact_scores, norms, to_units, tree_sum
from hymirec.codebook.residual import ResidualCodebook
from hymirec.codebook.state import Usage
from hymirec.codebook.table import ItemCodes
from hymirec.errors import ArtifactMissingError

NEIGHBOURS = 100
QUERIES = 500
SAMPLE_ROWS = 20_000
SAMPLE_BLOCKS = 20
RAW_BYTES = 2


def quality_report(
    codebook: ResidualCodebook, vectors_ND: NDArray[np.floating[Any]], codes: ItemCodes
) -> dict[str, Any]:
    """Measure codes (stored magnitudes included) against the vectors (N, D) that they stand for.

    Cosines are between a vector and what its first 1..L codes decode to; zero vectors are left out. `usage_fitted` is
    the load of each centroid in the last pass of the fit, `usage_argmax` in these codes. `recall_at_100` is the share
    of a vector's 100 true neighbours in the sample that are among its 100 neighbours when all vectors but itself are
    decoded ones. Bytes count an item's row uncompressed, against its raw embedding in fp16.
    """
    vectors = torch.as_tensor(np.ascontiguousarray(vectors_ND, np.float32))
    if len(vectors) != len(codes) or codes.layers != codebook.layers:
        raise ValueError(
            f"expected {len(vectors)} rows of {codebook.layers} codes, got {len(codes)} rows of {codes.layers}"
        )
    fitted = codebook.info.get("usage", [])
    layers: list[dict[str, Any]] = []
    decoded = torch.zeros_like(vectors)
    for layer in range(codebook.layers):
        code = torch.from_numpy(codes.codes_NL[:, layer].astype(np.int64))
        magnitude = torch.from_numpy(codes.magnitudes_NL[:, layer].astype(np.float32))
        decoded = decoded + magnitude[:, None] * codebook.centroids_LKD[layer].cpu()[code]
        counts = torch.bincount(code, minlength=codebook.centroids)
        row = _cosines(vectors, decoded) | {"usage_argmax": asdict(Usage.of(counts))}
        layers.append(row | ({"usage_fitted": fitted[layer]} if layer < len(fitted) else {}))
    raw = RAW_BYTES * codebook.width
    return {
        "layers": codebook.layers,
        "centroids": codebook.centroids,
        "width": codebook.width,
        "rows": len(vectors),
        "cosine_mean": layers[-1]["cosine_mean"],
        "recall_at_100": _recall(vectors, decoded),
        "bytes_per_item": codes.bytes_per_item,
        "raw_bytes": raw,
        "compression_ratio": round(raw / codes.bytes_per_item, 2),
        "per_layer": layers,
    }


def sample_report(codebook: ResidualCodebook, embeddings: Path, codes: ItemCodes | None = None) -> dict[str, Any]:
    """`quality_report` on up to 20,000 rows of a directory of embeddings, in blocks spread evenly over it.

    Without `codes` the sample is coded here, as the codes step would.
    """
    total = count_rows(embeddings)
    blocks = 1 if total <= SAMPLE_ROWS else SAMPLE_BLOCKS
    size = min(total, SAMPLE_ROWS) // blocks
    starts = [total * block // blocks for block in range(blocks)]
    vectors = np.concatenate([read_vectors(embeddings, start, start + size) for start in starts])
    if codes is None:
        sample = item_codes(codebook, vectors, codebook.info.get("magnitudes", "float16"))
    else:
        rows = np.concatenate([np.arange(start, start + size) for start in starts])
        sample = ItemCodes(codes.codes_NL[rows], codes.magnitudes_NL[rows])
    return quality_report(codebook, vectors, sample)


def report_directory(run_dir: Path) -> dict[str, Any]:
    """The report of a run's codebook, on its embeddings and, once they are written, its codes.

    Raises ArtifactMissingError or ArtifactDamagedError with the name of the file.
    """
    codebook = ResidualCodebook.from_pretrained(run_dir / "codebook")
    try:
        codes = ItemCodes.open(run_dir / "codes")
    except ArtifactMissingError:
        codes = None
    if codes is not None and len(codes) != count_rows(run_dir / "embeddings"):
        codes = None
    return sample_report(codebook, run_dir / "embeddings", codes)


def _cosines(x_ND: Tensor, y_ND: Tensor) -> dict[str, float]:
    """Mean and percentiles of row-wise cosines, in fp64; a vector that decodes to nothing has cosine 0."""
    found = []
    for start in range(0, len(x_ND), CHUNK_ROWS):
        x, y = x_ND[start : start + CHUNK_ROWS].double(), y_ND[start : start + CHUNK_ROWS].double()
        norm_x, product = norms(x), norms(x) * norms(y)
        cosine = tree_sum(x * y) / torch.where(product > 0, product, 1.0)
        found.append(cosine[norm_x > 0])
    cosines = torch.cat(found).numpy()
    if not len(cosines):
        return {"cosine_mean": 0.0, "cosine_p05": 0.0, "cosine_p50": 0.0, "cosine_p95": 0.0}
    p05, p50, p95 = np.percentile(cosines, [5, 50, 95])
    values = {"cosine_mean": cosines.mean(), "cosine_p05": p05, "cosine_p50": p50, "cosine_p95": p95}
    return {name: round(float(value), 6) for name, value in values.items()}


def _recall(x_ND: Tensor, decoded_ND: Tensor) -> float:
    """Recall of true neighbours among decoded vectors; 1 when a row has no neighbour to miss."""
    wanted = min(NEIGHBOURS, len(x_ND) - 1)
    if wanted < 1:
        return 1.0
    queries = torch.arange(0, len(x_ND), max(1, len(x_ND) // QUERIES))[:QUERIES]
    units, decoded = to_units(x_ND), to_units(decoded_ND)
    with exact_products():
        neighbours = [
            exact_scores(units[queries], table.float().T.contiguous())
            .scatter(1, queries[:, None], -torch.inf)
            .topk(wanted, dim=1)[1]
            for table in (units, decoded)
        ]
    hits = sum(
        len(set(true) & set(found)) for true, found in zip(neighbours[0].tolist(), neighbours[1].tolist(), strict=True)
    )
    return round(hits / (wanted * len(queries)), 4)


def to_markdown(report: dict[str, Any]) -> str:
    """The report as a page."""
    lines = [
        f"# Codebook: {report['layers']} layers of {report['centroids']:,} centroids, width {report['width']:,}",
        "",
        f"{report['bytes_per_item']} bytes an item instead of {report['raw_bytes']:,} (fp16): "
        f"{report['compression_ratio']:.1f} times smaller. Mean cosine {report['cosine_mean']:.4f}, recall@100 of true "
        f"neighbours {report['recall_at_100']:.4f}, measured on {report['rows']:,} items.",
        "",
        "| layers read | cosine: mean | p05 | p50 | fitted load: max/mean | CV | codes: max/mean | perplexity | dead |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for number, layer in enumerate(report["per_layer"], start=1):
        argmax, fitted = layer["usage_argmax"], layer.get("usage_fitted")
        load = f"{fitted['max_over_mean']:.2f} | {fitted['cv']:.3f}" if fitted else "- | -"
        lines.append(
            f"| {number} | {layer['cosine_mean']:.4f} | {layer['cosine_p05']:.4f} | {layer['cosine_p50']:.4f} "
            f"| {load} | {argmax['max_over_mean']:.2f} | {argmax['perplexity']:.0f} | {argmax['dead']} |"
        )
    return "\n".join(lines) + "\n"

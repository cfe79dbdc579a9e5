"""A codebook that follows its catalogue.

New items never wait for a refit: any vector has codes (`hymirec codebook encode`). What they cost is fidelity, once
they lie where the codebook has few centroids. A refresh then goes on from the last codebook with all items, old and
new, for a few passes a layer: centroid k grows out of centroid k, so most codes of old items stay what they were, and
what is trained on codes stays nearly right. The drift report says how nearly.

N rows  D width  L layers  K centroids
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hymirec.artifacts import write_atomic, write_json
from hymirec.catalog.parts import part_paths, read_table, to_numpy
from hymirec.catalog.schemas import EMBEDDING, INDEX
from hymirec.catalog.vectors import as_matrix, count_rows, read_rows
from hymirec.codebook.exact import row_cosines
from hymirec.codebook.fit import fit_batches
from hymirec.codebook.reduce import IdentityReducer
from hymirec.codebook.report.directory import sample_rows
from hymirec.codebook.residual import ResidualCodebook
from hymirec.config import CodebookConfig

DRIFT_FILE = "drift.json"
DRIFT_PAGE = "drift.md"
# Passes a layer: the start is good, and every further pass moves codes of old items.
PASSES = 3
# A centroid that has turned farther than this has been given to other items: its code means something else now.
LOST_COSINE = 0.5


def refresh_config(last: ResidualCodebook, passes: int = PASSES) -> CodebookConfig:
    """The config of the last fit, with `passes` passes a layer."""
    known = {key: last.info[key] for key in ("balance", "beam", "magnitudes", "refit") if key in last.info}
    return CodebookConfig(layers=last.layers, centroids=max(2, last.centroids), iterations=passes, **known)


def refresh_directory(
    codebook: Path, embeddings: Path, out: Path, passes: int = PASSES, seed: int = 17
) -> dict[str, Any]:
    """Refresh on this machine, in the memory that `codebook.memory_mb` allows; returns the drift report.

    `embeddings` holds all items, old ones first. Written to `out`: the codebook, drift.json and drift.md.
    Raises ModelError when the embeddings have another width, and ArtifactMissingError or ArtifactDamagedError.
    """
    last = ResidualCodebook.from_pretrained(codebook)

    def batches() -> Iterator[tuple[Tensor, NDArray[np.int64]]]:
        for path in part_paths(embeddings):
            table = read_table(path, [INDEX, EMBEDDING])
            yield torch.from_numpy(as_matrix(table[EMBEDDING])), to_numpy(table[INDEX]).astype(np.int64)

    config = refresh_config(last, passes)
    now = fit_batches(batches, config, seed, IdentityReducer(), torch.device("cpu"), last=last)
    return save_refreshed(last, now, embeddings, out)


def save_refreshed(last: ResidualCodebook, now: ResidualCodebook, embeddings: Path, out: Path) -> dict[str, Any]:
    """Write a refreshed codebook with its drift, measured on up to 20,000 items."""
    rows = sample_rows(count_rows(embeddings))
    report = drift_report(last, now, read_rows(embeddings, rows), rows < last.info.get("rows", len(rows)))
    now.save_pretrained(out)
    write_json(out / DRIFT_FILE, report)
    write_atomic(out / DRIFT_PAGE, drift_markdown(report).encode())
    return report


def drift_report(
    last: ResidualCodebook, now: ResidualCodebook, vectors_ND: NDArray[np.floating[Any]], known_N: NDArray[np.bool_]
) -> dict[str, Any]:
    """What a refresh changed for these vectors (N, D), of which `known_N` says which the last codebook was fitted on.

    For each layer: the share of known and of new items whose code changed, the mean cosine between a vector and what
    its first codes decode to, before and after, and how far centroids have turned (`turned_*` are cosines between
    centroid k before and after; `lost` counts those below 0.5).
    Raises ValueError when the two codebooks differ in shape.
    """
    if last.centroids_LKD.shape != now.centroids_LKD.shape:
        raise ValueError(f"expected equal shapes, got {last.centroids_LKD.shape} and {now.centroids_LKD.shape}")
    vectors = torch.as_tensor(np.ascontiguousarray(vectors_ND, np.float32))
    before, after = last.encode(vectors), now.encode(vectors)
    changed = (before[0] != after[0]).numpy()
    cosines = [_cosines(vectors, book, *coded) for book, coded in ((last, before), (now, after))]
    layers = []
    for layer in range(now.layers):
        turned = (last.centroids_LKD[layer].double() * now.centroids_LKD[layer].double()).sum(1)
        row: dict[str, Any] = {
            "turned_mean": round(float(turned.mean()), 6),
            "turned_least": round(float(turned.min()), 6),
            "lost": int((turned < LOST_COSINE).sum()),
        }
        for name, some in (("known", known_N), ("new", ~known_N)):
            if some.any():
                row[name] = {
                    "code_changed": round(float(changed[some, layer].mean()), 6),
                    "cosine_before": round(float(cosines[0][layer][some].mean()), 6),
                    "cosine_after": round(float(cosines[1][layer][some].mean()), 6),
                }
        layers.append(row)
    return {"known": int(known_N.sum()), "new": int((~known_N).sum()), "per_layer": layers}


def _cosines(vectors_ND: Tensor, book: ResidualCodebook, codes_NL: Tensor, magnitudes_NL: Tensor) -> list[NDArray[Any]]:
    """Cosine of every row with what its first 1..L codes decode to."""
    decoded, found = torch.zeros_like(vectors_ND), []
    for layer in range(book.layers):
        decoded = decoded + magnitudes_NL[:, layer, None] * book.centroids_LKD[layer][codes_NL[:, layer].long()]
        found.append(row_cosines(vectors_ND, decoded).numpy())
    return found


def drift_markdown(report: dict[str, Any]) -> str:
    """The drift as a page."""
    lines = [
        f"# Drift of the codebook, measured on {report['known']:,} items that it knew and {report['new']:,} new ones",
        "",
        "| layer | items | code changed | cosine before | after | centroids turned: mean cosine | least | lost |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for number, layer in enumerate(report["per_layer"], start=1):
        for name in ("known", "new"):
            if name in layer:
                row = layer[name]
                lines.append(
                    f"| {number} | {name} | {row['code_changed']:.2%} | {row['cosine_before']:.4f} "
                    f"| {row['cosine_after']:.4f} | {layer['turned_mean']:.4f} | {layer['turned_least']:.4f} "
                    f"| {layer['lost']} |"
                )
    return "\n".join(lines) + "\n"

"""The report of a run: measured on its embeddings and codes, with titles and plots, and written beside them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hymirec.artifacts import read_json, write_atomic, write_json
from hymirec.catalog.prepared import Catalog
from hymirec.catalog.schemas import ITEMS_DIR
from hymirec.catalog.vectors import count_rows, read_rows
from hymirec.codebook.exact import row_cosines
from hymirec.codebook.kinds import open_codebook
from hymirec.codebook.quantizer import ItemQuantizer, ItemTable
from hymirec.codebook.report.measure import quality_report
from hymirec.codebook.report.page import to_markdown
from hymirec.errors import ArtifactMissingError

SAMPLE_ROWS = 20_000
SAMPLE_BLOCKS = 20
# Titles: codes shown of each of the first layers, and titles shown of each code.
SHOWN_CODES = (6, 3, 3)
SHOWN_TITLES = 4
REPORT_DIR = "report"
TIMING_FILE = "timing.json"
FIT_FACTS = ("kernel", "workers", "peak_rss_mb", "read_seconds", "layer_seconds", "finish_seconds")


def sample_rows(total: int) -> NDArray[np.int64]:
    """Up to 20,000 of `total` rows, ascending, in blocks spread evenly over them."""
    blocks = 1 if total <= SAMPLE_ROWS else SAMPLE_BLOCKS
    size = min(total, SAMPLE_ROWS) // blocks
    return np.concatenate([np.arange(size) + total * block // blocks for block in range(blocks)])


def _sample(
    codebook: ItemQuantizer, embeddings: Path, items: ItemTable | None
) -> tuple[NDArray[np.int64], NDArray[np.float32], ItemTable]:
    """Rows, their vectors, and how they are (or would be) stored."""
    rows = sample_rows(count_rows(embeddings))
    vectors = read_rows(embeddings, rows)
    return rows, vectors, codebook.encode_items(vectors) if items is None else items.take(rows)


def sample_report(codebook: ItemQuantizer, embeddings: Path, items: ItemTable | None = None) -> dict[str, Any]:
    """`quality_report` on up to 20,000 rows of a directory of embeddings, in blocks spread evenly over it.

    Without `items` the sample is coded here, as the codes step would.
    """
    _, vectors, own = _sample(codebook, embeddings, items)
    return quality_report(codebook, vectors, own)


def report_directory(run_dir: Path) -> dict[str, Any]:
    """The report of a run's codebook, on its embeddings and, once they are written, its codes.

    Beside `quality_report` it holds, where the run has them, `titles` of items near some centroids and what the
    codebook step noted in `fit` (`kernel`, `layer_seconds`, ...).
    Raises ArtifactMissingError or ArtifactDamagedError with the name of the file.
    """
    codebook = open_codebook(run_dir / "codebook")
    total = count_rows(run_dir / "embeddings")
    try:
        items: ItemTable | None = codebook.open_items(run_dir / "codes")
    except ArtifactMissingError:
        items = None
    rows, vectors, own = _sample(codebook, run_dir / "embeddings", items if items and len(items) == total else None)
    report = quality_report(codebook, vectors, own) | _fit_facts(run_dir / "codebook")
    if codebook.centroids and (run_dir / "data" / ITEMS_DIR).is_dir():
        catalog = Catalog.open(run_dir / "data")
        if len(catalog) == total:
            report["titles"] = code_titles(codebook, vectors, own, [catalog.titles[int(row)].as_py() for row in rows])
    return report


def write_report(run_dir: Path, report: dict[str, Any]) -> Path:
    """Write report.json, report.md and the plots to `run_dir/codebook/report`; returns that directory.

    Equal reports give equal bytes. They are no part of the codebook's artifact: it stays as its step left it.
    """
    from hymirec.codebook.report.plots import write_plots

    out = run_dir / "codebook" / REPORT_DIR
    write_json(out / "report.json", report)
    write_atomic(out / "report.md", to_markdown(report, write_plots(report, out)).encode())
    return out


def code_titles(
    codebook: ItemQuantizer, vectors_ND: NDArray[np.floating[Any]], items: ItemTable, titles: list[str]
) -> list[dict[str, Any]]:
    """For some codes of the first layers: how many of these rows have it, and the titles of the nearest of them.

    Codes are taken at even steps from the most to the least used one. Nearest is the largest cosine between the
    centroid and what earlier layers left of the row.
    """
    lookup_LKD = codebook.lookup(items).cpu()
    residual = torch.as_tensor(np.ascontiguousarray(vectors_ND, np.float32))
    found = []
    for layer, shown in enumerate(SHOWN_CODES[: codebook.layers]):
        codes_N = items.codes_NL[:, layer].astype(np.int64)
        counts = np.bincount(codes_N, minlength=codebook.centroids)
        used = np.argsort(-counts, kind="stable")[: int((counts > 0).sum())]
        steps = np.linspace(0, len(used) - 1, min(shown, len(used))).astype(np.int64)
        for code in used[steps].tolist():
            rows = np.flatnonzero(codes_N == code)
            x, centroid = residual[rows].double(), lookup_LKD[layer, code].double()
            cosine = row_cosines(x, centroid.expand_as(x))
            order = torch.sort(cosine, descending=True, stable=True)[1]
            different = dict.fromkeys(titles[row] for row in rows[order.numpy()])
            row = {"layer": layer + 1, "code": int(code), "items": int(counts[code])}
            found.append(row | {"titles": list(different)[:SHOWN_TITLES]})
        magnitude = torch.from_numpy(items.magnitudes_NL[:, layer].astype(np.float32))
        residual = residual - magnitude[:, None] * lookup_LKD[layer][torch.from_numpy(codes_N)]
    return found


def _fit_facts(codebook_dir: Path) -> dict[str, Any]:
    """What the codebook step noted of the fit beside its artifact; nothing where it noted nothing."""
    try:
        noted = read_json(codebook_dir / TIMING_FILE)
    except ArtifactMissingError:
        return {}
    told = {key: noted[key] for key in FIT_FACTS if key in noted}
    return {"fit": told} if told else {}

"""The report as a page of Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

KINDS = {"cosine": "cosine residual codebook", "euclidean": "plain residual k-means", "none": "raw vectors, no codes"}


def to_markdown(report: dict[str, Any], pictures: Mapping[str, str] | None = None) -> str:
    """The report as a page; `pictures` gives the titles and file names of plots to show."""
    coded = bool(report["centroids"])
    shape = f"{report['layers']} layers of {report['centroids']:,} centroids, " if coded else ""
    lines = [
        f"# Codebook: {shape}width {report['width']:,}",
        "",
        f"Kind: {KINDS.get(report['kind'], report['kind'])}. {report['bytes_per_item']} bytes an item instead of "
        f"{report['raw_bytes']:,} (fp16): {report['compression_ratio']:.1f} times smaller. Mean cosine "
        f"{report['cosine_mean']:.4f}, recall@100 of true neighbours {report['recall_at_100']:.4f}, measured on "
        f"{report['rows']:,} items.",
        *_facts(report),
        "",
        "## What the first layers keep",
        "",
        "| layers read | bytes | cosine: mean | p05 | p50 | p95 | recall@100 |",
        "|---|---|---|---|---|---|---|",
    ]
    for number, row in enumerate(report["per_layer"], start=1):
        cosines = " | ".join(f"{row[f'cosine_{name}']:.4f}" for name in ("mean", "p05", "p50", "p95"))
        lines.append(f"| {number} | {row['bytes_read']:g} | {cosines} | {row['recall_at_100']:.4f} |")
    lines += [*_usage(report), *_magnitudes(report), *_titles(report)]
    for title, name in (pictures or {}).items():
        lines += ["", f"![{title}]({name})"]
    return "\n".join(lines) + "\n"


def _facts(report: dict[str, Any]) -> list[str]:
    """What is known of how the codebook was fitted."""
    fit = report.get("fit", {})
    told = [f"kernel {fit['kernel']}"] if "kernel" in fit else []
    if "workers" in fit:
        told.append(f"{fit['workers']} worker{'s' if fit['workers'] != 1 else ''}")
    if seconds := fit.get("layer_seconds"):
        told.append(f"{sum(seconds):.1f} s ({' + '.join(f'{value:.1f}' for value in seconds)} by layer)")
    if "peak_rss_mb" in fit:
        told.append(f"{fit['peak_rss_mb']:,} MB of memory at most in a worker")
    return ["", f"Fitted with {', '.join(told)}."] if told else []


def _usage(report: dict[str, Any]) -> list[str]:
    """How evenly centroids are used, in the fit's last pass and in the codes."""
    rows = []
    for number, layer in enumerate(report["per_layer"], start=1):
        for name, key in (("fit", "usage_fitted"), ("codes", "usage_argmax")):
            usage = layer.get(key)
            if usage:
                gini = f"{usage['gini']:.3f}" if "gini" in usage else "-"
                rows.append(
                    f"| {number} | {name} | {usage['perplexity']:,.0f} | {gini} | {usage['max_over_mean']:.2f} "
                    f"| {usage['cv']:.3f} | {usage['dead']:,} |"
                )
    if not rows:
        return []
    head = ["| layer | load in | perplexity | Gini | max / mean | CV | dead |", "|---|---|---|---|---|---|---|"]
    return ["", "## How evenly centroids are used", "", *head, *rows]


def _magnitudes(report: dict[str, Any]) -> list[str]:
    rows = [
        f"| {number} | {own['mean']:.4f} | {own['std']:.4f} | {own['p05']:.4f} | {own['p50']:.4f} | {own['p95']:.4f} |"
        for number, layer in enumerate(report["per_layer"], start=1)
        if (own := layer.get("magnitudes"))
    ]
    head = ["| layer | mean | standard deviation | p05 | p50 | p95 |", "|---|---|---|---|---|---|"]
    return ["", "## Magnitudes", "", *head, *rows] if rows else []


def _titles(report: dict[str, Any]) -> list[str]:
    """What some codes mean."""
    rows = [
        f"| {row['layer']} | {row['code']} | {row['items']:,} | {'; '.join(_cell(title) for title in row['titles'])} |"
        for row in report.get("titles", [])
    ]
    if not rows:
        return []
    head = ["| layer | code | items with it | nearest of them |", "|---|---|---|---|"]
    note = (
        "From the second layer on, a code stands for what earlier layers left, so titles of later layers share less. "
        "Counts are of the measured items."
    )
    return ["", "## What codes stand for", "", note, "", *head, *rows]


def _cell(text: str) -> str:
    """A title inside a table cell, as plain text."""
    flat = " ".join(text.split())
    flat = flat if len(flat) <= 60 else flat[:59].rstrip() + "…"
    for mark in "\\|`*_<>[]":
        flat = flat.replace(mark, "\\" + mark)
    return flat

"""What a run reached, as two small tables: accuracy and bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from hymirec.artifacts import read_json


def print_summary(console: Console, run_dir: Path) -> None:
    """Print the metrics of the evaluation step and, for HyMiRec's own run, the bytes of the codebook step."""
    console.print(metrics_table(read_json(run_dir / "evaluation" / "metrics.json")))
    report = run_dir / "codebook" / "report.json"
    if report.is_file():
        console.print(bytes_table(read_json(report)))


def metrics_table(metrics: dict[str, Any]) -> Table:
    """Test metrics, one row a model."""
    rows = metrics["models"]
    names = [key for key in ("R@10", "R@200", "N@10", "N@200") if key in rows[0]]
    names = names or [key for key in rows[0] if key[:2] in ("R@", "N@") and not key.endswith("_ci")][:4]
    table = Table(title=f"test: full ranking, {rows[0]['users']:,} users, {rows[0]['items']:,} items, history masked")
    table.add_column("model")
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(row["model"], *(f"{row[name]:.4f}" for name in names))
    interval = rows[0].get(f"{names[0]}_ci")
    if interval:
        table.caption = f"95 % interval of {rows[0]['model']}'s {names[0]}: {interval[0]:.4f} to {interval[1]:.4f}"
    return table


def bytes_table(report: dict[str, Any]) -> Table:
    """Bytes an item: raw embedding against codes."""
    table = Table(title="bytes an item")
    table.add_column("stored as")
    table.add_column("bytes", justify="right")
    table.add_column("mean cosine", justify="right")
    table.add_row(f"embedding, {report['width']} x fp16", f"{report['raw_bytes']:,}", "1.0000")
    coded = f"codes, {report['layers']} x (id + magnitude), k = {report['centroids']}"
    table.add_row(coded, f"{report['bytes_per_item']:g}", f"{report['cosine_mean']:.4f}")
    table.caption = f"{report['compression_ratio']:.1f} times smaller"
    return table

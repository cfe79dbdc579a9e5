"""Results as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def metric_names(row: Mapping[str, Any]) -> list[str]:
    """The names of a row's metrics, R@K first."""
    return [name for name in row if name[:2] in ("R@", "N@") and not name.endswith("_ci")]


def to_markdown(rows: Sequence[Mapping[str, Any]], mask_history: bool) -> str:
    """One table, one row a model, with the 95 % bootstrap interval of R@10 and N@10 where it was computed."""
    first = rows[0]
    names = metric_names(first)
    intervals = [name for name in ("R@10", "N@10") if f"{name}_ci" in first]
    header = ["model", *names, *(f"{name}, 95 %" for name in intervals), "overlap"]
    lines = [
        f"# Evaluation: {first['split']} split",
        "",
        f"Full ranking over {first['items']:,} items for {first['users']:,} users; the user's history is "
        f"{'not ranked' if mask_history else 'ranked too'}. Ties go to the lower item index. An item's score is its "
        "largest cosine over the interests; `overlap` is the mean cosine between two interests of a user.",
        "",
        "| " + " | ".join(header) + " |",
        "|" + "---|" * len(header),
    ]
    for row in rows:
        cells = [str(row["model"]), *(f"{row[name]:.4f}" for name in names)]
        cells += [_interval(row.get(f"{name}_ci")) for name in intervals]
        cells.append(f"{row['overlap']:.3f}" if "overlap" in row else "")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _interval(bounds: Sequence[float] | None) -> str:
    return f"{bounds[0]:.4f} .. {bounds[1]:.4f}" if bounds else "-"

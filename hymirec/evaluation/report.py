"""Results of one evaluation as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Rows = Sequence[Mapping[str, Any]]


def metric_names(row: Mapping[str, Any]) -> list[str]:
    """The names of a row's accuracy metrics that tables show: every R@K, every N@K, MRR at the first K."""
    named = [name for name in row if name[:2] in ("R@", "N@") and not name.endswith("_ci")]
    return named + [name for name in row if name.startswith("MRR@")][:1]


def list_names(row: Mapping[str, Any]) -> list[str]:
    """The names of a row's metrics of lists."""
    return [name for name in row if name.split("@")[0] in ("coverage", "Gini", "novelty")]


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a Markdown table; all but the first column stand to the right."""
    lines = ["| " + " | ".join(header) + " |", "|---" + "|---:" * (len(header) - 1) + "|"]
    return lines + ["| " + " | ".join(cells) + " |" for cells in rows]


def bounds(values: Sequence[float] | None) -> str:
    """An interval in words; `-` where there is none."""
    return f"{values[0]:.4f} .. {values[1]:.4f}" if values else "-"


def to_markdown(rows: Rows, mask_history: bool) -> str:
    """Accuracy with 95 % bootstrap intervals where they were computed, lists, and groups; one row a model."""
    first = rows[0]
    names, lists = metric_names(first), list_names(first)
    intervals = [name for name in names if f"{name}_ci" in first]
    accuracy = [
        [str(row["model"]), *(f"{row[name]:.4f}" for name in names), *(bounds(row.get(f"{n}_ci")) for n in intervals)]
        for row in rows
    ]
    shown = [
        [
            str(row["model"]),
            *(f"{row[name]:.3f}" for name in lists),
            f"{row['overlap']:.3f}" if "overlap" in row else "-",
        ]
        for row in rows
    ]
    return "\n".join(
        [
            f"# Evaluation: {first['split']} split",
            "",
            f"Full ranking over {first['items']:,} items for {first['users']:,} users; the user's history is "
            f"{'not ranked' if mask_history else 'ranked too'}. Ties go to the lower item index. An item's score is "
            "its largest cosine over the interests; `overlap` is the mean cosine between two interests of a user. "
            "What each number means is in docs/evaluation.md.",
            "",
            *table(["model", *names, *(f"{name}, 95 %" for name in intervals)], accuracy),
            "",
            *table(["model", *lists, "overlap"], shown),
            *group_tables([(str(row["model"]), row) for row in rows], names[0]),
            "",
        ]
    )


def group_tables(rows: Sequence[tuple[str, Mapping[str, Any]]], metric: str) -> list[str]:
    """A table of one metric for each grouping, of (label, row); the groups and their sizes are the first row's."""
    lines: list[str] = []
    for grouping, groups in rows[0][1]["groups"].items() if rows else ():
        header = [f"{name} ({_size(group)})" for name, group in groups.items()]
        cells = [
            [label, *(_cell(row["groups"].get(grouping, {}).get(name), metric) for name in groups)]
            for label, row in rows
        ]
        lines += ["", f"{metric} by {grouping}:", "", *table(["model", *header], cells)]
    return lines


def _size(group: Mapping[str, Any]) -> str:
    targets = group.get("targets", group["users"])
    return f"{group['users']:,} users" + ("" if targets == group["users"] else f", {targets:,} targets")


def _cell(group: Mapping[str, Any] | None, metric: str) -> str:
    return f"{group[metric]:.4f}" if group else "-"

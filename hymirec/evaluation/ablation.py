"""Ablation tables: variants of one run against their base, over seeds and users.

A variant's value for a user is the mean over its seeds. Intervals are bootstraps over users; a difference to the base
is one over the seeds and users that both have, and its p-value is that of the paired bootstrap.

U users of an evaluation
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hymirec.artifacts import read_json
from hymirec.evaluation.bootstrap import interval, paired_p_value
from hymirec.evaluation.evaluate import open_ranks, training_costs

Floats = NDArray[np.float64]
SHOWN = ("R@10", "N@10", "R@200", "N@200")
COSTS = ("overlap", "bytes_per_item", "seconds", "peak_rss_mb", "peak_gpu_mb")


@dataclass(frozen=True, eq=False)
class RunFigures:
    """What a finished run says of its first model: the metrics of each user, and what it cost.

    `targets` is a hash of who was asked for what; `per_user` {metric: (U,)}; `costs` {name of COSTS: number}.
    """

    items: int
    targets: str
    per_user: Mapping[str, Floats]
    costs: Mapping[str, float]

    @property
    def users(self) -> int:
        """Number of users."""
        return len(next(iter(self.per_user.values())))

    @property
    def means(self) -> dict[str, float]:
        """Mean of each metric over the users."""
        return {name: float(np.nanmean(values)) for name, values in self.per_user.items()}

    @property
    def shown(self) -> list[str]:
        """Metrics that a table has room for."""
        return [name for name in SHOWN if name in self.per_user] or list(self.per_user)[:4]

    @property
    def main(self) -> list[str]:
        """Recall and NDCG at 10, or at the first K: those that get intervals and p-values."""
        k = "10" if "R@10" in self.per_user else next(iter(self.per_user)).split("@")[1]
        return [f"R@{k}", f"N@{k}"]

    @classmethod
    def read(cls, run_dir: Path) -> RunFigures:
        """Read the figures of a run whose evaluation is done.

        `seconds` and peak memory (MiB of the largest worker) are those of training the recommender. Raises
        ArtifactMissingError for a run that is not that far.
        """
        model = read_json(run_dir / "evaluation" / "metrics.json")["models"][0]
        ranks = open_ranks(run_dir, model["model"])
        ks = [int(name[2:]) for name in model if re.fullmatch(r"R@\d+", name)]
        codebook = run_dir / "codebook" / "report.json"
        told = model | (read_json(codebook) if codebook.is_file() else {}) | training_costs(run_dir)
        costs = {name: float(told[name]) for name in COSTS if name in told}
        return cls(model["items"], ranks.targets, ranks.per_user(ks), costs)


@dataclass(frozen=True, eq=False)
class VariantRuns:
    """A variant: the assignments that make it, and the figures of its runs by seed."""

    name: str
    settings: tuple[str, ...]
    runs: dict[int, RunFigures]


@dataclass(frozen=True, eq=False)
class Failure:
    """A run that failed."""

    variant: str
    seed: int
    error: str

    def as_row(self) -> dict[str, Any]:
        """As an object of the table's JSON."""
        return {"variant": self.variant, "seed": self.seed, "error": self.error}


def ablation_rows(variants: Iterable[VariantRuns], base: str, resamples: int, seed: int) -> list[dict[str, Any]]:
    """One row a variant that has runs: metrics, intervals, costs, and for all but `base` the difference to it."""
    ran = {variant.name: variant for variant in variants if variant.runs}
    return [_row(variant, ran.get(base), resamples, seed) for variant in ran.values()]


def _row(variant: VariantRuns, base: VariantRuns | None, resamples: int, seed: int) -> dict[str, Any]:
    runs = list(variant.runs.values())
    first = runs[0]
    row: dict[str, Any] = {"variant": variant.name, "set": list(variant.settings), "seeds": sorted(variant.runs)}
    row |= {"users": first.users, "items": first.items}
    row |= {name: float(np.mean([run.means[name] for run in runs])) for name in first.per_user}
    for name in first.main:
        row[f"{name}_by_seed"] = {str(own): variant.runs[own].means[name] for own in sorted(variant.runs)}
        bounds = interval(_pooled(runs, name), resamples, seed)
        if bounds:
            row[f"{name}_ci"] = list(bounds)
    if base is not None and base is not variant:
        row |= _difference(variant, base, first.main, resamples, seed)
    known = [name for name in COSTS if all(name in run.costs for run in runs)]
    return row | {name: float(np.mean([run.costs[name] for run in runs])) for name in known}


def _difference(
    variant: VariantRuns, base: VariantRuns, names: Sequence[str], resamples: int, seed: int
) -> dict[str, float]:
    """Difference and p-value of each metric; nothing where the two have no seed in common, or other targets."""
    seeds = [own for own in sorted(variant.runs) if own in base.runs]
    ours, theirs = [variant.runs[own] for own in seeds], [base.runs[own] for own in seeds]
    if not seeds or any(a.targets != b.targets for a, b in zip(ours, theirs, strict=True)):
        return {}
    found: dict[str, float] = {}
    for name in names:
        a, b = _pooled(ours, name), _pooled(theirs, name)
        found[f"{name}_diff"] = float(np.nanmean(a - b))
        if resamples:
            found[f"{name}_p"] = paired_p_value(a, b, resamples, seed)
    return found


def _pooled(runs: Sequence[RunFigures], name: str) -> Floats:
    """A metric of each user, averaged over the runs; users of runs with other targets stand side by side."""
    values = [run.per_user[name] for run in runs]
    same = len({run.targets for run in runs}) == 1
    return np.mean(values, axis=0) if same else np.concatenate(values)


def to_markdown(title: str, rows: Sequence[Mapping[str, Any]], failures: Iterable[Failure]) -> str:
    """The table, with what each variant changes and the runs that failed."""
    lines = [f"# Ablation: {title}", ""]
    if rows:
        lines += [*_table(rows), "", *_legend(rows)]
    failed = [f"- `{failure.variant}`, seed {failure.seed}: {failure.error}" for failure in failures]
    return "\n".join([*lines, *(["", "Runs that failed:", "", *failed] if failed else [])]) + "\n"


def _table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    names = [name for name in SHOWN if name in rows[0]] or [name for name in rows[0] if name[:2] in ("R@", "N@")][:4]
    main = [name for name in rows[0] if f"{name}_by_seed" in rows[0]]
    header = ["variant", *names, *(f"{name}, 95 %" for name in main)]
    header += [label for name in main for label in (f"{name} - base", "p")]
    header += ["overlap", "bytes an item", "seconds", "peak MB", "runs"]
    lines = ["| " + " | ".join(header) + " |", "|---" + "|---:" * (len(header) - 1) + "|"]
    for row in rows:
        cells = [str(row["variant"]), *(f"{row[name]:.4f}" for name in names)]
        cells += [_interval(row.get(f"{name}_ci")) for name in main]
        cells += [
            cell for name in main for cell in (_number(row, f"{name}_diff", "+.4f"), _number(row, f"{name}_p", ".3f"))
        ]
        cells += [_number(row, "overlap", ".3f"), _number(row, "bytes_per_item", "g"), _number(row, "seconds", ".0f")]
        cells += [_number(row, "peak_rss_mb", ".0f"), str(len(row["seeds"]))]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _legend(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = [
        f"Test split, full ranking of {rows[0]['items']:,} items for {rows[0]['users']:,} users; a run is one seed. "
        "The difference to the base is over the seeds that both have; p is the paired bootstrap over users, not "
        "corrected for the number of variants. Seconds and peak memory (of the largest worker) are those of training "
        "the recommender.",
        "",
    ]
    return [
        *lines,
        *(f"- {row['variant']}: {', '.join(f'`{part}`' for part in row['set'])}" for row in rows if row["set"]),
    ]


def _number(row: Mapping[str, Any], name: str, form: str) -> str:
    return format(row[name], form) if name in row else "-"


def _interval(bounds: Sequence[float] | None) -> str:
    return f"{bounds[0]:.4f} .. {bounds[1]:.4f}" if bounds else "-"

"""Files of results: `docs/results/SET.json`, a list of rows, and the same as Markdown beside it.

A row is a model under a config and a seed. Ranks of its targets lie in `ranks/` beside the file where they are small,
so that every model is tested against the named baseline over the same users.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from hymirec.artifacts import read_json, write_atomic, write_json
from hymirec.config import PipelineConfig
from hymirec.errors import ArtifactDamagedError, DataError
from hymirec.evaluation.evaluate import RANKS_DIR, slug, training_costs
from hymirec.evaluation.ranks import COMPARED, Comparison, Ranks, compare
from hymirec.evaluation.report import bounds, group_tables, list_names, metric_names, table
from hymirec.evaluation.result import EvaluationResult

Row = dict[str, Any]
KEY = ("model", "config", "seed")
SET = ("split", "users", "items")
TARGETS = "targets"
BASELINE = "baseline"
# The config of a model that has none and no seed, such as popularity.
PLAIN = "-"
# Ranks are kept beside the results up to this size.
MAX_RANKS_BYTES = 100_000


def read_rows(path: Path) -> list[Row]:
    """The rows of a file, none when it is not there. Raises ArtifactDamagedError for another JSON."""
    rows = read_json(path) if path.exists() else []
    if not isinstance(rows, list) or not all(isinstance(row, dict) and set(row) >= {*KEY, *SET} for row in rows):
        raise ArtifactDamagedError(f"{path} is not a list of rows with {', '.join(KEY + SET)}; bring it back from git")
    return rows


def add_row(path: Path, row: Mapping[str, Any], ranks: Ranks | None = None, baseline: str | None = None) -> None:
    """Put a row into a file: it replaces the row of the same model, config and seed; all others stay.

    `ranks` are kept beside the file if they are small. `baseline` names the model that p-values are against from now
    on. Safe beside other processes that add rows, and a kill leaves the old rows or the new ones.
    Raises DataError when the row has no key, or is of another split, users, items or targets than the rows that are
    there.
    """
    missing = [name for name in KEY + SET if name not in row]
    if missing:
        raise DataError(f"a row of results needs {', '.join(missing)}; `EvaluationResult.as_row` gives all but the key")
    path.parent.mkdir(parents=True, exist_ok=True)
    with _locked(path.parent):
        rows = [old for old in read_rows(path) if _key(old) != _key(row)]
        for old in rows:
            if any(old.get(name) != row.get(name) for name in (*SET, TARGETS) if name in old and name in row):
                raise DataError(
                    f"{path} is of {_told(old)}, and this row is of {_told(row)}; they cannot stand in one table: "
                    "evaluate on the same data, or choose another file"
                )
        baseline = baseline or next((old["model"] for old in rows if old.get(BASELINE)), None)
        rows = sorted([*rows, dict(row)], key=_key)
        for own in rows:
            own.pop(BASELINE, None)
            own |= {BASELINE: True} if own["model"] == baseline else {}
        _keep_ranks(ranks_path(path, row), ranks)
        write_json(path, rows)
        write_atomic(path.with_suffix(".md"), to_markdown(path).encode())


def add_run(
    path: Path,
    run_dir: Path,
    config: PipelineConfig,
    results: Sequence[EvaluationResult],
    baseline: str | None = None,
) -> None:
    """Add the results of a run: the first is what the run trained, the others (closed forms) have no config or seed.

    `seconds` and `peak_rss_mb` are those of training it, `commit` is that of this checkout.
    """
    told = training_costs(run_dir)
    cost = {name: told[name] for name in ("seconds", "peak_rss_mb") if name in told} | {"commit": commit()}
    for number, result in enumerate(results):
        row = result.as_row(config.evaluation.bootstrap, config.seed)
        own = {"config": config.name, "seed": config.seed, **cost} if number == 0 else {"config": PLAIN, "seed": 0}
        add_row(path, row | own, result.ranks, baseline)


def commit() -> str:
    """The commit of this checkout, `-dirty` when files differ from it, "" outside of one."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=10"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def ranks_path(path: Path, row: Mapping[str, Any]) -> Path:
    """Where the ranks of a row are kept, beside the file of results `path`."""
    parts = [path.stem, slug(row["model"]), slug(row["config"]), str(row["seed"])]
    return path.parent / RANKS_DIR / ("-".join(part for part in parts if part) + ".parquet")


def to_markdown(path: Path) -> str:
    """The tables of a file of results: accuracy with p-values, lists and cost, groups; models by their first metric."""
    rows = read_rows(path)
    names = metric_names(rows[0])
    models: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        models.setdefault((row["model"], row["config"]), []).append(row)
    ordered = sorted(models.values(), key=lambda runs: -_mean(runs, names[0]))
    against = next((runs for runs in ordered if runs[0].get(BASELINE)), None)
    return "\n".join(
        [
            f"# Results: {path.stem}",
            "",
            *_legend(rows, against),
            "",
            *_accuracy(path, ordered, against, names),
            "",
            *_costs(ordered),
            *group_tables([(_label(runs[0]), runs[0]) for runs in ordered if "groups" in runs[0]], names[0]),
            "",
        ]
    )


def _legend(rows: Sequence[Row], against: Sequence[Row] | None) -> list[str]:
    row = rows[0]
    lines = [
        f"{row['split']} split, full ranking of {row['items']:,} items for {row['users']:,} users; docs/evaluation.md "
        "says how. A model with several seeds has their mean ± half their range; its intervals are the means of its "
        "seeds'. The best of a column is bold. Groups are those of the first seed."
    ]
    if against:
        lines += [
            "",
            f"p: paired bootstrap over users against {_label(against[0])}, two-sided, not corrected for the number of "
            "models; `-` where ranks are not kept.",
        ]
    return lines


def _accuracy(
    path: Path, models: Sequence[Sequence[Row]], against: Sequence[Row] | None, names: Sequence[str]
) -> list[str]:
    best = {name: max(_mean(runs, name) for runs in models) for name in names}
    intervals = [name for name in names if any(f"{name}_ci" in runs[0] for runs in models)]
    compared = [f"{metric}@{k}" for metric in "RN" for k in COMPARED if against]
    header = ["model", "config", "seeds", *names, *(f"{name}, 95 %" for name in intervals)]
    cells = []
    for runs in models:
        found = _compared(path, runs, against) if against and runs is not against else {}
        cells.append(
            [runs[0]["model"], runs[0]["config"], str(len(runs))]
            + [_spread(runs, name, _mean(runs, name) == best[name]) for name in names]
            + [_interval(runs, f"{name}_ci") for name in intervals]
            + [
                f"{found[name].difference:+.4f}, {_p(found[name].p_value)}" if name in found else "-"
                for name in compared
            ]
        )
    return table([*header, *(f"Δ {name}, p" for name in compared)], cells)


def _costs(models: Sequence[Sequence[Row]]) -> list[str]:
    lists = list_names(models[0][0])
    header = ["model", "config", *lists, "overlap", "seconds", "peak MB", "commit"]
    cells = [
        [runs[0]["model"], runs[0]["config"]]
        + [_number(runs, name, ".3f") for name in (*lists, "overlap")]
        + [_number(runs, "seconds", ",.0f"), _number(runs, "peak_rss_mb", ",.0f"), str(runs[-1].get("commit") or "-")]
        for runs in models
    ]
    return table(header, cells)


def _compared(path: Path, runs: Sequence[Row], against: Sequence[Row]) -> dict[str, Comparison]:
    """Difference to the baseline and p-value by metric; nothing unless the ranks of all seeds of both are kept."""
    ours, theirs = ([ranks_path(path, row) for row in own] for own in (runs, against))
    if not all(file.is_file() for file in (*ours, *theirs)):
        return {}
    return compare([Ranks.open(file) for file in ours], [Ranks.open(file) for file in theirs])


def _keep_ranks(path: Path, ranks: Ranks | None) -> None:
    """Write the ranks if they are small; ranks of an older row never stay."""
    if ranks is not None:
        ranks.save(path)
    if path.is_file() and (ranks is None or path.stat().st_size > MAX_RANKS_BYTES):
        path.unlink()


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    handle = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _key(row: Mapping[str, Any]) -> tuple[str, str, int]:
    return str(row["model"]), str(row["config"]), int(row["seed"])


def _told(row: Mapping[str, Any]) -> str:
    asked = f" (targets {row[TARGETS][:8]})" if TARGETS in row else ""
    return f"{row['users']} users of the {row['split']} split{asked} and {row['items']} items"


def _label(row: Mapping[str, Any]) -> str:
    return str(row["model"]) if row["config"] == PLAIN else f"{row['model']} ({row['config']})"


def _mean(runs: Sequence[Row], name: str) -> float:
    return float(np.mean([row.get(name, -np.inf) for row in runs]))


def _spread(runs: Sequence[Row], name: str, best: bool) -> str:
    values = [row[name] for row in runs if name in row]
    text = f"{np.mean(values):.4f}" if values else "-"
    text += f" ± {np.ptp(values) / 2:.4f}" if len(values) > 1 else ""
    return f"**{text}**" if best else text


def _interval(runs: Sequence[Row], name: str) -> str:
    found = [row[name] for row in runs if name in row]
    return bounds(np.mean(found, axis=0).tolist() if found else None)


def _number(runs: Sequence[Row], name: str, form: str) -> str:
    return format(_mean(runs, name), form) if all(name in row for row in runs) else "-"


def _p(value: float) -> str:
    return "< .001" if value < 0.001 else f"{value:.3f}"

"""A run as one page with pictures: learning curves, metrics of groups, interests of a few users as titles.

Every figure is one of the run's own files or comes from the evaluation's own ranking; a part that the run does not have
yet is named on the page, with the command that makes it.

T targets
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import Any

from hymirec.artifacts import read_json, write_atomic
from hymirec.catalog.prepared import Catalog, Sequences
from hymirec.config import PipelineConfig, load
from hymirec.errors import ArtifactMissingError
from hymirec.evaluation.charts import Bars, Line, bar_chart, line_chart
from hymirec.evaluation.evaluate import open_model, training_costs
from hymirec.evaluation.page import folded, page, paragraph, table
from hymirec.evaluation.portraits import Portrait, find_users, portraits, spread_users
from hymirec.evaluation.report import bounds, list_names, metric_names
from hymirec.recommender.baselines.registry import CLOSED_FORMS

FILE = "report.html"
USERS, LAST_ITEMS, TITLES, TARGETS = 3, 8, 6, 5
VALIDATED = {"ndcg@10": "Validation NDCG@10", "overlap": "Overlap: mean cosine between two interests of a user"}
Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class ReportedRun:
    """A run and what a reader calls it."""

    name: str
    directory: Path
    config: PipelineConfig = field(repr=False)

    @property
    def closed_form(self) -> bool:
        """Whether the run's model is computed, not trained."""
        return self.config.baseline is not None and self.config.baseline.kind in CLOSED_FORMS

    @property
    def training(self) -> dict[str, Any]:
        """`history` (a row an epoch, 0 is untrained) and `best_epoch`. Raises ArtifactMissingError."""
        step = "recommender" if self.config.baseline is None else "baseline"
        found: dict[str, Any] = read_json(self.directory / step / "training.json")
        return found

    @property
    def metrics(self) -> dict[str, Any]:
        """What the evaluation step found. Raises ArtifactMissingError."""
        found: dict[str, Any] = read_json(self.directory / "evaluation" / "metrics.json")
        return found

    @property
    def finish(self) -> str:
        """The command that does what is left of the run."""
        return f".venv/bin/python ray_jobs/train.py --config {self.directory / 'config.yaml'}"


def write_run_report(
    run_dir: Path, out: Path | None = None, users: Sequence[str] = (), against: Sequence[Path] = ()
) -> tuple[Path, list[str]]:
    """Write `report.html` into `out` (default: RUN_DIR/report); returns its path and what could not be shown, and why.

    `users` are ids (default: chosen by the length of their history); `against` are runs to draw beside this one.
    Raises ConfigError for a directory that is no run, RequestError for a user who cannot be shown.
    """
    directories = [run_dir, *against]
    names = [directory.resolve().name for directory in directories]
    unique = len(set(names)) == len(names)
    runs = [
        ReportedRun(name if unique else str(directory), directory, load(PipelineConfig, directory / "config.yaml"))
        for name, directory in zip(names, directories, strict=True)
    ]
    missing: list[str] = []
    sections: dict[str, Callable[[], str]] = {
        "Results": lambda: _results(runs[0]),
        "Learning curves": lambda: _curves(runs, missing),
        "Who is served well": lambda: _groups(runs, missing),
        "Interests as titles": lambda: _interests(runs[0], users),
    }
    body = [_heading(runs[0])]
    for title, section in sections.items():
        body.append(f"<section><h2>{title}</h2>{_or_note(section, runs[0], title, missing)}</section>")
    path = (out or run_dir / "report") / FILE
    write_atomic(path, page(f"{runs[0].name}: report", "\n".join(body)).encode())
    return path, missing


def _or_note(section: Callable[[], str], run: ReportedRun, title: str, missing: list[str]) -> str:
    """The section, or what is missing for it and what to do."""
    try:
        return section()
    except ArtifactMissingError as e:
        missing.append(f"{title}: {e}")
        return (
            f'<div class="note">{paragraph(f"Not yet: {e}.")}<p>The command that does what is left of this run, and '
            f"skips what is done: <code>{escape(run.finish)}</code></p></div>"
        )


def _heading(run: ReportedRun) -> str:
    data, model = run.config.data, run.config.baseline.kind if run.config.baseline else "HyMiRec"
    facts = f"{model} on {data.kind}, split {data.split}, seed {run.config.seed}."
    costs = training_costs(run.directory)
    if "seconds" in costs:
        facts += f" Took {costs['seconds']:,.0f} s" + (
            f", {costs['peak_rss_mb']:,.0f} MiB at its peak." if "peak_rss_mb" in costs else "."
        )
    return f"<h1>{escape(run.name)}</h1>{paragraph(facts, 'soft')}"


# --- results -------------------------------------------------------------------------------------------------------


def _results(run: ReportedRun) -> str:
    metrics = run.metrics
    rows: Rows = metrics["models"]
    first = rows[0]
    names = [*metric_names(first), *list_names(first), *(["overlap"] if "overlap" in first else [])]
    cells = [[str(row["model"]), *(f"{row[n]:.4f}" if n in row else "-" for n in names)] for row in rows]
    intervals = [name for name in names if f"{name}_ci" in first]
    words = (
        f"{metrics['split'].capitalize()} split: full ranking of {first['items']:,} items for {first['users']:,} "
        f"users; the user's history is {'not ranked' if metrics['mask_history'] else 'ranked too'}. "
    )
    words += " ".join(f"{first['model']}: {n} {first[n]:.4f}, 95 % {bounds(first[f'{n}_ci'])}." for n in intervals)
    return paragraph(words) + table("Metrics of the run and of popularity beside it", ["model", *names], cells)


# --- learning curves -----------------------------------------------------------------------------------------------


def _curves(runs: Sequence[ReportedRun], missing: list[str]) -> str:
    trained: list[tuple[ReportedRun, dict[str, Any]]] = []
    parts: list[str] = []
    for run in runs:
        if run.closed_form:
            parts.append(paragraph(f"{run.name} is a closed form: nothing is trained, so it has no learning curve."))
            continue
        try:
            trained.append((run, run.training))
        except ArtifactMissingError as e:
            if run is runs[0]:
                raise
            missing.append(f"Learning curves: {e}")
            parts.append(paragraph(f"{run.name} is not drawn: {e}.", "note"))
    if not trained:
        return "".join(parts)
    parts.append(
        paragraph("Epoch 0 is the untrained model. The large point is the best epoch, whose weights are kept.")
    )
    pictures = [
        line_chart(title, [_line(run.name, told, key) for run, told in trained], "epoch")
        for key, title in VALIDATED.items()
    ]
    pictures += [
        line_chart(
            f"Training loss and its terms, before weights: {run.name}",
            [_line(term.removeprefix("train_"), told, term) for term in _terms(told)],
            "epoch",
        )
        for run, told in trained
    ]
    parts.append(f'<div class="grid2">{"".join(pictures)}</div>')
    tables = [_epochs(run.name, told) for run, told in trained]
    rest = [folded(f"Every epoch of {run.name}", own) for (run, _), own in zip(trained[1:], tables[1:], strict=True)]
    return "".join([*parts, tables[0], *rest])


def _line(name: str, training: Mapping[str, Any], key: str) -> Line:
    points = [(row["epoch"], row[key]) for row in training["history"] if key in row]
    return Line(name, points, float(training["best_epoch"]))


def _terms(training: Mapping[str, Any]) -> list[str]:
    """The loss and its parts; the scale and the overlap of training are no losses."""
    named = dict.fromkeys(key for row in training["history"] for key in row if key.startswith("train_"))
    return [key for key in named if key not in ("train_scale", "train_overlap")]


def _epochs(name: str, training: Mapping[str, Any]) -> str:
    history, best = training["history"], training["best_epoch"]
    keys = list(dict.fromkeys(key for row in history for key in row if key != "epoch"))
    keys.sort(key=lambda key: key.startswith("train_"))
    cells = [
        [f"{row['epoch']:g}{' (best)' if row['epoch'] == best else ''}"]
        + [f"{row[key]:.4f}" if key in row else "-" for key in keys]
        for row in history
    ]
    marked = next((number for number, row in enumerate(history) if row["epoch"] == best), None)
    return table(f"Every epoch of {name}", ["epoch", *(key.replace("_", " ") for key in keys)], cells, marked)


# --- groups --------------------------------------------------------------------------------------------------------


def _groups(runs: Sequence[ReportedRun], missing: list[str]) -> str:
    rows = [dict(row) for row in runs[0].metrics["models"]]
    parts: list[str] = []
    for run in runs[1:]:
        try:
            other = dict(run.metrics["models"][0])
        except ArtifactMissingError as e:
            missing.append(f"Who is served well: {e}")
            parts.append(paragraph(f"{run.name} is not drawn: {e}.", "note"))
            continue
        if other["targets"] != rows[0]["targets"]:
            parts.append(paragraph(f"{run.name} is not drawn: it was asked for other targets.", "note"))
            continue
        rows.append(other | {"model": f"{other['model']} ({run.name})"})
    names = [name for name in rows[0] if f"{name}_ci" in rows[0]] or metric_names(rows[0])[:2]
    for grouping, groups in rows[0]["groups"].items():
        pairs = [_group_pair(metric, grouping, groups, rows) for metric in names]
        parts.append(f"<h3>By {escape(grouping)}</h3>")
        if grouping == "target popularity":
            parts.append(
                paragraph(
                    "Head: the most popular items that make half of the training events; tail: the least popular ones "
                    "that make a fifth; cold: none in training."
                )
            )
        parts.append(f'<div class="grid2">{"".join(pairs)}</div>')
    return "".join(parts)


def _group_pair(metric: str, grouping: str, groups: Mapping[str, Any], rows: Rows) -> str:
    """A picture of one metric, and its table."""
    found = [(str(row["model"]), row["groups"].get(grouping, {})) for row in rows]
    bars = [Bars(model, [own[name][metric] if name in own else None for name in groups]) for model, own in found]
    title = f"{metric} by {grouping}"
    header = [f"{name} ({group.get('targets', group['users']):,})" for name, group in groups.items()]
    cells = [[own.name, *("-" if value is None else f"{value:.4f}" for value in own.values)] for own in bars]
    unit = "targets" if any("targets" in group for group in groups.values()) else "users"
    under = table(f"{title} (number of {unit})", ["model", *header], cells)
    return f"<div>{bar_chart(title, list(groups), bars, grouping)}{under}</div>"


# --- interests -----------------------------------------------------------------------------------------------------


def _interests(run: ReportedRun, ids: Sequence[str]) -> str:
    sequences, catalog = Sequences.open(run.directory / "data"), Catalog.open(run.directory / "data")
    users = find_users(sequences, "test", ids) if ids else spread_users(sequences, "test", USERS)
    if run.closed_form:
        return paragraph(f"{run.name} scores items directly: a closed form has no interests to show.")
    model, name = open_model(run.directory, run.config, catalog)
    evaluation = run.config.evaluation
    found = portraits(model, sequences, "test", users, TITLES, evaluation)
    words = f"What {name} knew before the test targets, and what it made of it. " + (
        "" if ids else "These users are the quartiles of the length of histories; they were not chosen by result. "
    )
    words += (
        "Under each interest stand the items nearest to it, with their cosine"
        + (", without those of the history. " if evaluation.mask_history else ". ")
        + "An item's score is its largest cosine over the interests."
    )
    return paragraph(words) + "".join(_Shown(sequences, catalog, own, evaluation.list_k).html for own in found)


@dataclass(frozen=True)
class _Shown:
    """A portrait with the titles and times that belong to it."""

    sequences: Sequences
    catalog: Catalog
    own: Portrait
    list_k: int

    @property
    def html(self) -> str:
        items, ts = self.sequences.history(self.own.user, "test")
        last = [[_date(int(at)), self._title(int(i))] for i, at in zip(items, ts, strict=True)][-LAST_ITEMS:]
        heading = f"User {self.sequences.users[self.own.user].as_py()}: {len(items):,} items"
        cards = "".join(self._card(number) for number in range(len(self.own.interests)))
        return (
            f"<h3>{escape(heading)}</h3>{self._next()}"
            f"{table('The last items of the history, newest last', ['time (UTC)', 'title'], last, kind='text')}"
            f'<div class="grid2">{cards}</div>{self._between()}'
        )

    def _next(self) -> str:
        """The targets in words, each with its rank."""
        lines = []
        for target, rank, cosine_S in list(zip(self.own.targets, self.own.ranks, self.own.cosine_TS, strict=True)):
            best = int(cosine_S.argmax())
            lines.append(
                f"<p>Took next: <mark>{escape(self._title(int(target)))}</mark>, rank {int(rank) + 1:,} of "
                f"{self.catalog.size:,}, by interest {best} (cosine {cosine_S[best]:.3f}).</p>"
            )
        more = len(lines) - TARGETS
        return "".join(lines[:TARGETS]) + (paragraph(f"And {more} more targets.") if more > 0 else "")

    def _card(self, number: int) -> str:
        interest = self.own.interests[number]
        entries = []
        for item, cosine in zip(interest.items.tolist(), interest.cosines, strict=True):
            title = escape(self._title(item))
            hit = f"<mark>{title}</mark> (taken next)" if item in self.own.targets else title
            entries.append(f'<li>{hit} <span class="soft">{cosine:.3f}</span></li>')
        return (
            f'<div class="card"><h4>Interest {number}</h4><p class="soft">found {interest.share} of the first '
            f"{self.list_k} recommendations</p><ol>{''.join(entries)}</ol></div>"
        )

    def _between(self) -> str:
        """Cosines between the interests; nothing for one interest."""
        count = len(self.own.interests)
        if count < 2:
            return ""
        names = [f"interest {number}" for number in range(count)]
        rows = [[name, *(f"{value:.3f}" for value in row)] for name, row in zip(names, self.own.cosine_SS, strict=True)]
        return table("Cosine between interests", ["", *names], rows)

    def _title(self, item: int) -> str:
        """The title, or the id of an item that has none."""
        return self.catalog.titles[item].as_py() or f"item {self.catalog.item_id(item)}"


def _date(ts: int) -> str:
    return datetime.fromtimestamp(ts, UTC).strftime("%Y-%m-%d %H:%M")

"""`hymirec ...`: what needs no cluster.

Exit codes: 0 done, 1 the answer is bad news (problems in the tables, a partition that stands still), 2 an error, which
is one line on stderr and never a traceback. Libraries that take seconds to import are imported by their commands.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from hymirec.history_cli import history
from hymirec.terminal import out, speaks

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Hybrid multi-interest recommendation with an LLM.")
codebook = typer.Typer(no_args_is_help=True, help="The codebook of a run.")
bundle = typer.Typer(no_args_is_help=True, help="Immutable releases.")
config = typer.Typer(no_args_is_help=True, help="Configuration.")
app.add_typer(codebook, name="codebook")
app.add_typer(bundle, name="bundle")
app.add_typer(history, name="history")
app.add_typer(config, name="config")


@app.callback()
def _main() -> None:
    # transformers draws a bar for each file of weights.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


def _print_json(value: Any) -> None:
    out.print(json.dumps(value, indent=2, ensure_ascii=False), markup=False)


@app.command()
@speaks
def validate(directory: Path) -> None:
    """Name every problem of a directory of the two tables, with row and column; exit 1 if there is one."""
    from hymirec.catalog.tables import load_tables
    from hymirec.catalog.validation import find_problems, find_warnings
    from hymirec.config import DataConfig

    tables = load_tables(DataConfig(kind="parquet", path=str(directory)), seed=0)
    problems = find_problems(tables.items, tables.interactions)
    for line in problems or find_warnings(tables.items, tables.interactions):
        out.print(line if problems else f"note: {line}", markup=False)
    if problems:
        raise typer.Exit(1)
    out.print(f"{tables.items.num_rows:,} items and {tables.interactions.num_rows:,} interactions can be used")


@app.command()
@speaks
def recommend(
    bundle_dir: Annotated[Path, typer.Argument(metavar="BUNDLE")],
    items: Annotated[str, typer.Option("--history", help="item ids, oldest first, with commas between")] = "",
    k: Annotated[int, typer.Option("-k", help="how many")] = 10,
) -> None:
    """Recommend for a history, from a bundle on disk."""
    from hymirec.inference import HyMiRec

    ids = [part.strip() for part in items.split(",") if part.strip()]
    found = HyMiRec.from_pretrained(bundle_dir).recommend(history=ids, k=k)
    for place, item in enumerate(found.items, start=1):
        interest = "-" if item.interest is None else item.interest
        out.print(f"{place:3d}  {item.score:.4f}  {interest}  {item.item_id}  {item.title}", markup=False)
    out.print(f"({found.reason}; {found.unknown_items} unknown items; bundle {found.bundle[:12]})", markup=False)


@app.command()
@speaks
def evaluate(
    run_dir: Path,
    results: Annotated[
        Path | None, typer.Option(help="also put the rows into this file, docs/results/SET.json")
    ] = None,
    baseline: Annotated[str | None, typer.Option(help="with --results: the model that p-values are against")] = None,
) -> None:
    """Rank the whole catalogue for every test user of a finished run, and print the table."""
    from hymirec.config import PipelineConfig, load
    from hymirec.evaluation.evaluate import report, run_results
    from hymirec.evaluation.results import add_run

    settings = load(PipelineConfig, run_dir / "config.yaml")
    found = run_results(run_dir, settings)
    out.print(report(found, settings)["markdown"], markup=False)
    if results is not None:
        add_run(results, run_dir, settings, found, baseline)
        out.print(f"(in {results} and {results.with_suffix('.md')})", markup=False)


@app.command("report")
@speaks
def run_report(
    run_dir: Path,
    target: Annotated[Path | None, typer.Option("--out", help="directory of report.html [RUN_DIR/report]")] = None,
    user: Annotated[list[str] | None, typer.Option(help="show this user; may be given again")] = None,
    against: Annotated[list[Path] | None, typer.Option(help="draw this run beside it; may be given again")] = None,
) -> None:
    """Draw a run as one HTML page: learning curves, metrics of groups, interests of a few users as titles."""
    from hymirec.evaluation.run_report import write_run_report

    written, missing = write_run_report(run_dir, target, user or (), against or ())
    for line in missing:
        out.print(f"not shown: {line}", markup=False)
    out.print(f"(in {written})", markup=False)


@codebook.command("report")
@speaks
def codebook_report(
    run_dir: Path, as_json: Annotated[bool, typer.Option("--json", help="JSON instead of Markdown")] = False
) -> None:
    """Measure fidelity, usage and bytes of a run's codebook on its embeddings and codes.

    Also written, with plots, to RUN_DIR/codebook/report.
    """
    from hymirec.codebook import report_directory, to_markdown, write_report

    report = report_directory(run_dir)
    written = write_report(run_dir, report)
    if as_json:
        _print_json(report)
    else:
        out.print(to_markdown(report), markup=False)
        out.print(f"(with plots: {written / 'report.md'})", markup=False)


@codebook.command("encode")
@speaks
def codebook_encode(codebook_dir: Path, embeddings: Path, target: Path) -> None:
    """Code the parts of a directory of embeddings with a codebook as it is: new items need no refit."""
    from hymirec.catalog.parts import part_paths
    from hymirec.codebook import open_codebook

    fitted = open_codebook(codebook_dir)
    rows = sum(fitted.code_part(path, target / path.name) for path in part_paths(embeddings))
    out.print(f"{rows:,} items coded into {target}", markup=False)


@codebook.command("refresh")
@speaks
def codebook_refresh(
    codebook_dir: Path,
    embeddings: Path,
    target: Path,
    passes: Annotated[int, typer.Option(help="k-means passes a layer", min=1)] = 3,
) -> None:
    """Go on from a codebook with all items, old ones first, and tell how far codes have drifted.

    On a cluster: ray_jobs/refresh.py.
    """
    from hymirec.codebook import drift_markdown, refresh_directory

    report = refresh_directory(codebook_dir, embeddings, target, passes)
    out.print(drift_markdown(report), markup=False)


@app.command()
@speaks
def load(
    url: Annotated[str, typer.Argument(metavar="URL", help="where the service answers, http://127.0.0.1:8000")],
    interactions: Annotated[Path, typer.Option(help="Parquet of user, item, ts (file or directory): who comes")],
    rate: Annotated[float, typer.Option(help="open loop: visits a second, whatever the service does", min=0.01)] = 10.0,
    clients: Annotated[int, typer.Option(help="instead, closed loop: so many at a time", min=0)] = 0,
    seconds: Annotated[float, typer.Option(help="how long", min=1)] = 30.0,
    own_times: Annotated[bool, typer.Option(help="arrivals as in the data, to scale; else Poisson")] = False,
    past: Annotated[float, typer.Option(help="share of the interactions from before the load", min=0, max=1)] = 0.9,
    post_past: Annotated[bool, typer.Option(help="post that share first, with its own times")] = False,
    users: Annotated[int | None, typer.Option(help="only so many users [all]", min=1)] = None,
    k: Annotated[int, typer.Option("-k", help="items of an answer", min=1)] = 20,
    event_share: Annotated[float, typer.Option(help="visits with an event", min=0, max=1)] = 0.5,
    probe_share: Annotated[float, typer.Option(help="events whose way is timed", min=0, max=1)] = 0.1,
    within: Annotated[float, typer.Option(help="good is a full answer within so many seconds", min=0)] = 0.5,
    bundles: Annotated[list[Path] | None, typer.Option("--bundle", help="may answer, too [the one that does]")] = None,
    seed: Annotated[int, typer.Option(help="of arrivals and shares")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of a table")] = False,
) -> None:
    """Replay real users' arrivals against a running service, look at every reply, and measure; exit 1 if one is bad.

    A token, where the service wants one, is read from $HYMIREC_TOKEN (scopes read and write).
    """
    import asyncio

    from hymirec.artifacts import read_manifest
    from hymirec.load import Load, LoadPlan, Traffic, report, table

    plan = LoadPlan(
        url=url,
        seconds=seconds,
        rate=rate,
        clients=clients,
        own_times=own_times,
        k=k,
        event_share=event_share,
        probe_share=probe_share,
        seed=seed,
        token=os.environ.get("HYMIREC_TOKEN"),
        bundles=frozenset(read_manifest(directory).id for directory in bundles or ()),
    )
    found = report(asyncio.run(Load(plan, Traffic.read(interactions, past, users)).run(post_past)), within)
    if as_json:
        _print_json(found)
    else:
        out.print(table(found), markup=False)
    if found["failed"] or found["wrong"] or found["events"]["failed"] or found["event_to_visible"]["never"]:
        raise typer.Exit(1)


@bundle.command("inspect")
@speaks
def bundle_inspect(directory: Path) -> None:
    """Id, files, metrics and index of a bundle."""
    from hymirec.artifacts import read_json, read_manifest

    manifest = read_manifest(directory)
    metrics = read_json(directory / "metrics.json")
    _print_json({"id": manifest.id, "files": manifest.files, "metrics": metrics, "index": manifest.info.get("index")})


@bundle.command("verify")
@speaks
def bundle_verify(directory: Path) -> None:
    """Check the hash of every file of a bundle."""
    from hymirec.bundle import verify_bundle

    manifest = verify_bundle(directory)
    out.print(f"{len(manifest.files)} files are whole; id {manifest.id}")


@bundle.command("add-items")
@speaks
def bundle_add_items(
    run_dir: Path,
    items: Annotated[str, typer.Argument(help="Parquet or CSV of items, or a directory of them")],
    base: Annotated[Path | None, typer.Option(help="the bundle to start from [RUN_DIR/bundle]")] = None,
    target: Annotated[Path | None, typer.Option("--out", help="the new bundle [RUN_DIR/bundles/...]")] = None,
) -> None:
    """Make a new bundle that also recommends new items, without training.

    On a cluster: ray_jobs/add_items.py.
    """
    from hymirec.additions import add_items
    from hymirec.config import PipelineConfig, load

    settings = load(PipelineConfig, run_dir / "config.yaml").model_copy(update={"run_dir": str(run_dir)})
    out.print(add_items(settings, items, base, target).outcome(), markup=False, soft_wrap=True)


@config.command("docs")
@speaks
def config_docs() -> None:
    """The reference of every configuration key, as Markdown (docs/configuration.md)."""
    from hymirec.config_docs import reference

    sys.stdout.write(reference())

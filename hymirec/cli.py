"""`hymirec ...`: what needs no cluster.

Exit codes: 0 done, 1 the answer is bad news (problems in the tables, a partition that stands still), 2 an error, which
is one line on stderr and never a traceback. Libraries that take seconds to import are imported by their commands.
"""

from __future__ import annotations

import functools
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from rich.console import Console

from hymirec.errors import HyMiRecError

if TYPE_CHECKING:
    from hymirec.config import ServiceConfig
    from hymirec.history import HistoryStore
    from hymirec.streaming.source import EventSource

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Hybrid multi-interest recommendation with an LLM.")
codebook = typer.Typer(no_args_is_help=True, help="The codebook of a run.")
bundle = typer.Typer(no_args_is_help=True, help="Immutable releases.")
history = typer.Typer(no_args_is_help=True, help="Histories in a store. Reads go on beside a running service.")
config = typer.Typer(no_args_is_help=True, help="Configuration.")
app.add_typer(codebook, name="codebook")
app.add_typer(bundle, name="bundle")
app.add_typer(history, name="history")
app.add_typer(config, name="config")
out = Console(highlight=False, soft_wrap=True)
F = TypeVar("F", bound=Callable[..., None])
ServiceFile = Annotated[Path, typer.Option("--config", help="Serve YAML (or the plain values of a service)")]


@app.callback()
def _main() -> None:
    # transformers draws a bar for each file of weights.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


def _speaks(command: F) -> F:
    """An error of ours is one line on stderr and exit code 2, never a traceback."""

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except (HyMiRecError, OSError) as e:
            sys.stderr.write(f"error: {' '.join(str(e).split())}\n")
            raise typer.Exit(2) from e

    return run  # type: ignore[return-value]


def _print_json(value: Any) -> None:
    out.print(json.dumps(value, indent=2, ensure_ascii=False), markup=False)


@app.command()
@_speaks
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
@_speaks
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
@_speaks
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
@_speaks
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
@_speaks
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
@_speaks
def codebook_encode(codebook_dir: Path, embeddings: Path, target: Path) -> None:
    """Code the parts of a directory of embeddings with a codebook as it is: new items need no refit."""
    from hymirec.catalog.parts import part_paths
    from hymirec.codebook import open_codebook

    fitted = open_codebook(codebook_dir)
    rows = sum(fitted.code_part(path, target / path.name) for path in part_paths(embeddings))
    out.print(f"{rows:,} items coded into {target}", markup=False)


@codebook.command("refresh")
@_speaks
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


@bundle.command("inspect")
@_speaks
def bundle_inspect(directory: Path) -> None:
    """Id, files and metrics of a bundle."""
    from hymirec.artifacts import read_json, read_manifest

    manifest = read_manifest(directory)
    _print_json({"id": manifest.id, "files": manifest.files, "metrics": read_json(directory / "metrics.json")})


@bundle.command("verify")
@_speaks
def bundle_verify(directory: Path) -> None:
    """Check the hash of every file of a bundle."""
    from hymirec.bundle import verify_bundle

    manifest = verify_bundle(directory)
    out.print(f"{len(manifest.files)} files are whole; id {manifest.id}")


def _service(path: Path) -> ServiceConfig:
    """The service of a Serve YAML (its first application's `args`) or of plain values, with absolute paths."""
    import yaml

    from hymirec.config import ServiceConfig, parse
    from hymirec.errors import ConfigError

    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as e:
        raise ConfigError(f"{path}: cannot be read as YAML: {e}") from e
    if isinstance(values, dict) and isinstance(values.get("applications"), list) and values["applications"]:
        values = values["applications"][0].get("args", {})
    service = parse(ServiceConfig, values or {}, str(path)).placed()
    if service.history.store == "memory":
        raise ConfigError(f"{path}: history.store=memory lives inside the service; ask its HTTP interface instead")
    for key, place in (("history.path", service.history.path), ("stream.path", service.stream.path)):
        if place is not None and not Path(place).is_dir():
            raise ConfigError(
                f"{path}: {key} is {place}, and there is nothing. Relative paths lie under $HYMIREC_HOME, else under "
                "the current directory; the service makes the directory when it starts"
            )
    return service


def _reader(service: ServiceConfig) -> HistoryStore:
    """The store, to be read: RocksDB beside its writer, as of now."""
    from hymirec.history import open_store
    from hymirec.history.rocksdb import RocksDBStore

    if service.history.store == "rocksdb":
        return RocksDBStore(service.history, read_only=True)
    return open_store(service.history)


@history.command("show")
@_speaks
def history_show(user_id: str, service: ServiceFile, limit: int = 20) -> None:
    """A user's newest events, oldest first."""
    from hymirec.catalog.events import action_name

    store = _reader(_service(service))
    found = store.read(user_id, limit)
    for key, ts, action in zip(found.keys, found.ts, found.actions, strict=True):
        out.print(f"{int(ts)}  {action_name(int(action)):10s}  key {int(key)}", markup=False)
    out.print(f"({len(found)} of {found.count} events)")
    store.close()


@history.command("verify")
@_speaks
def history_verify(
    service: ServiceFile,
    replay: Annotated[bool, typer.Option("--replay", help="also read the log again and compare every history")] = False,
) -> None:
    """Compare the store's positions with the log; exit 1 when a partition cannot go on or a history is wrong.

    With --replay and Redis, let no events in meanwhile: a history that moves on differs.
    """
    from hymirec.streaming import open_log

    settings = _service(service)
    store, source = _reader(settings), open_log(settings.stream).source(group=False)
    topic_id, stored, wrong = source.topic_id(), store.positions(settings.stream.topic), 0
    for partition in source.assigned():
        low, high, position = source.beginning(partition), source.end(partition), stored.get(partition)
        if position is None:
            state = "nothing applied yet"
        elif position.topic_id != topic_id:
            state, wrong = "the topic was deleted and created again", wrong + 1
        elif not low <= position.offset <= high:
            state, wrong = f"position {position.offset} is outside of the log", wrong + 1
        else:
            state = f"position {position.offset}, {high - position.offset} behind"
        out.print(f"partition {partition}: log {low}..{high}, {state}", markup=False)
    if replay and not wrong:
        wrong = _replayed(settings, store, source)
    source.close()
    store.close()
    if wrong:
        raise typer.Exit(1)


def _replayed(settings: ServiceConfig, store: HistoryStore, source: EventSource) -> int:
    """Print every user whose history is not what the log makes it; returns how many there are."""
    from hymirec.history.verify import differences, fold
    from hymirec.streaming.replay import replay

    messages = replay(source, store.positions(settings.stream.topic))
    expected = fold(messages, settings.history.max_events, settings.history.dedup_horizon)
    lines = differences(store, expected)
    for line in lines:
        out.print(line, markup=False)
    out.print(f"{len(expected) - len(lines)} of {len(expected)} histories are what the log makes them")
    return len(lines)


@history.command("erase")
@_speaks
def history_erase(user_id: str, service: ServiceFile) -> None:
    """Erase a user: an event of the log, applied in order by the history writer."""
    from hymirec.streaming import erase_message, open_log

    producer = open_log(_service(service).stream).producer()
    producer.send([erase_message(user_id)])
    producer.close()
    out.print(f"the erasure of {user_id!r} is in the log", markup=False)


@history.command("reset-position")
@_speaks
def history_reset_position(
    partition: Annotated[int, typer.Option()],
    offset: Annotated[int, typer.Option(help="the next offset to apply", min=0)],
    service: ServiceFile,
) -> None:
    """Decide where a partition that stands still goes on. What lies between is skipped, by your decision.

    The service must be stopped where the store is RocksDB.
    """
    from hymirec.errors import ConfigError
    from hymirec.history import Position, open_store
    from hymirec.streaming import open_log

    settings = _service(service)
    source = open_log(settings.stream).source(group=False)
    if partition not in source.assigned():
        raise ConfigError(f"--partition {partition}: the topic has {sorted(source.assigned())}")
    store = open_store(settings.history)
    store.reset_position(settings.stream.topic, partition, Position(source.topic_id(), offset))
    source.close()
    store.close()
    out.print(f"partition {partition} goes on at offset {offset}")


@config.command("docs")
@_speaks
def config_docs() -> None:
    """The reference of every configuration key, as Markdown (docs/configuration.md)."""
    from hymirec.config_docs import reference

    sys.stdout.write(reference())

"""`hymirec ...`: what needs no cluster."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from rich.console import Console

from hymirec.errors import HyMiRecError

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Hybrid multi-interest recommendation with an LLM.")
codebook = typer.Typer(no_args_is_help=True, help="The codebook of a run.")
bundle = typer.Typer(no_args_is_help=True, help="Immutable releases.")
history = typer.Typer(no_args_is_help=True, help="Histories in a store; the writer of a RocksDB store must be stopped.")
config = typer.Typer(no_args_is_help=True, help="Configuration.")
app.add_typer(codebook, name="codebook")
app.add_typer(bundle, name="bundle")
app.add_typer(history, name="history")
app.add_typer(config, name="config")
out = Console(highlight=False, soft_wrap=True)
F = TypeVar("F", bound=Callable[..., None])
ServiceFile = Annotated[Path, typer.Option("--config", help="Serve YAML (or the plain values of a service)")]


def _speaks(command: F) -> F:
    """An error of ours is one line on stderr and exit code 2, never a traceback."""

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except HyMiRecError as e:
            sys.stderr.write(f"error: {e}\n")
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
def evaluate(run_dir: Path) -> None:
    """Rank the whole catalogue for every test user of a finished run, and print the table."""
    from hymirec.config import PipelineConfig, load
    from hymirec.evaluation.evaluate import evaluate_run

    out.print(evaluate_run(run_dir, load(PipelineConfig, run_dir / "config.yaml"))["markdown"], markup=False)


@codebook.command("report")
@_speaks
def codebook_report(
    run_dir: Path, as_json: Annotated[bool, typer.Option("--json", help="JSON instead of Markdown")] = False
) -> None:
    """Fidelity, usage and bytes of a run's codebook."""
    from hymirec.artifacts import read_json
    from hymirec.codebook import to_markdown

    report = read_json(run_dir / "codebook" / "report.json")
    if as_json:
        _print_json(report)
    else:
        out.print(to_markdown(report), markup=False)


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
    from hymirec.artifacts import verify

    manifest = verify(directory)
    out.print(f"{len(manifest.files)} files are whole; id {manifest.id}")


def _service(path: Path) -> Any:
    """The service of a Serve YAML (its first application's `args`) or of plain values."""
    import yaml

    from hymirec.config import ServiceConfig, load, parse
    from hymirec.errors import ConfigError

    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as e:
        raise ConfigError(f"{path}: cannot be read as YAML: {e}") from e
    if isinstance(values, dict) and values.get("applications"):
        return parse(ServiceConfig, values["applications"][0].get("args", {}), str(path))
    return load(ServiceConfig, path)


@history.command("show")
@_speaks
def history_show(user_id: str, service: ServiceFile, limit: int = 20) -> None:
    """A user's newest events, oldest first."""
    from hymirec.catalog.events import action_name
    from hymirec.history import open_store

    store = open_store(_service(service).history)
    found = store.read(user_id, limit)
    for key, ts, action in zip(found.keys, found.ts, found.actions, strict=True):
        out.print(f"{int(ts)}  {action_name(int(action)):10s}  key {int(key)}", markup=False)
    out.print(f"({len(found)} of {found.count} events)")
    store.close()


@history.command("verify")
@_speaks
def history_verify(service: ServiceFile) -> None:
    """Compare the store's positions with the log; exit 1 when a partition cannot go on."""
    from hymirec.history import open_store
    from hymirec.streaming import open_log

    settings = _service(service)
    store, source = open_store(settings.history), open_log(settings.stream).source(group=False)
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
    source.close()
    store.close()
    if wrong:
        raise typer.Exit(1)


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
    offset: Annotated[int, typer.Option(help="the next offset to apply")],
    service: ServiceFile,
) -> None:
    """Decide where a partition that stands still goes on. What lies between is skipped, by your decision."""
    from hymirec.history import Position, open_store
    from hymirec.streaming import open_log

    settings = _service(service)
    store, source = open_store(settings.history), open_log(settings.stream).source(group=False)
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

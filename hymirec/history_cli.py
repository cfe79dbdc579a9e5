"""`hymirec history ...`: histories in a store, read and compared beside a running service, or put right without it.

A store is named by the service's YAML (`--config`), which also names its log, or alone by a place (`--store`): the
directory of a RocksDB, or redis://host:port/db. Where a service is meant that bounds its histories otherwise than the
defaults, only its YAML knows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hymirec.config import HistoryConfig, ServiceConfig, StreamConfig
from hymirec.errors import ConfigError
from hymirec.terminal import out, say, speaks

if TYPE_CHECKING:
    from hymirec.history import Position, RawStore
    from hymirec.history.audit import Rebuilt
    from hymirec.streaming.source import EventSource

history = typer.Typer(no_args_is_help=True, help="Histories in a store. Reads go on beside a running service.")
ServiceFile = Annotated[Path | None, typer.Option("--config", help="Serve YAML (or the plain values of a service)")]
StorePlace = Annotated[
    str | None, typer.Option("--store", help="instead: directory of a RocksDB, or redis://host:port/db; no log")
]
Past = Annotated[
    Path | None, typer.Option("--parquet", help="interactions (file or directory) that were applied before the log")
]
Starts = Annotated[
    list[str] | None,
    typer.Option("--from", help="with --parquet: P=OFFSET, where the log began; once a partition"),
]
Topic = Annotated[str, typer.Option(help="with --store: the topic whose positions are meant")]
EVENTS = "events"


@dataclass(frozen=True)
class Place:
    """A store, and the log that it is made from where one is known."""

    history: HistoryConfig
    stream: StreamConfig | None

    @property
    def log(self) -> StreamConfig:
        """The log. Raises ConfigError when only a store was named."""
        if self.stream is None:
            raise ConfigError("--store names no log; give the service's YAML with --config")
        return self.stream


def _place(config: Path | None, store: str | None) -> Place:
    if (config is None) == (store is None):
        raise ConfigError("name the store: the service's YAML with --config FILE, or --store DIRECTORY or redis://...")
    if config is not None:
        service = service_of(config)
        return Place(service.history, service.stream)
    assert store is not None
    if "://" in store:
        return Place(HistoryConfig(store="redis", url=store), None)
    return Place(HistoryConfig(store="rocksdb", path=str(Path(store).expanduser().absolute())), None)


def service_of(path: Path) -> ServiceConfig:
    """The service of a Serve YAML (its first application's `args`) or of plain values, with absolute paths."""
    import yaml

    from hymirec.config import parse

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


def _reader(history: HistoryConfig) -> RawStore:
    """The store, to be read: RocksDB beside its writer, as of now."""
    from hymirec.history import open_store
    from hymirec.history.rocksdb import RocksDBStore

    if history.store != "rocksdb":
        return open_store(history)
    if not Path(str(history.path)).is_dir():
        raise ConfigError(f"{history.path}: there is no store")
    return RocksDBStore(history, read_only=True)


def _writer(history: HistoryConfig) -> RawStore:
    """The store, to be changed: RocksDB only while no service has it open."""
    from hymirec.history import open_store

    return open_store(history)


@history.command("show")
@speaks
def history_show(user_id: str, config: ServiceFile = None, store: StorePlace = None, limit: int = 20) -> None:
    """A user's newest events, oldest first."""
    from hymirec.catalog.events import action_name

    with closing(_reader(_place(config, store).history)) as opened:
        found = opened.read(user_id, limit)
    for key, ts, action in zip(found.keys, found.ts, found.actions, strict=True):
        say(f"{int(ts)}  {action_name(int(action)):10s}  key {int(key)}")
    out.print(f"({len(found)} of {found.count} events)")


@history.command("verify")
@speaks
def history_verify(
    config: ServiceFile = None,
    store: StorePlace = None,
    replay: Annotated[bool, typer.Option("--replay", help="also read the log again and compare every history")] = False,
    parquet: Past = None,
    start: Starts = None,
) -> None:
    """Compare the store's positions with the log; exit 1 when a partition cannot go on or a history is wrong.

    With --replay (or --parquet) every history is made again from its sources and compared byte for byte, event ids and
    tombstones included. With Redis, let no events in meanwhile: a history that moves on differs.
    """
    place = _place(config, store)
    with closing(_reader(place.history)) as opened:
        positions, wrong = {}, 0
        if place.stream is not None:
            with _source(place.stream) as source:
                positions = opened.positions(place.stream.topic)
                wrong = _out_of_step(source, positions)
        if (replay or parquet is not None) and not wrong:
            with _rebuilt(place, positions, parquet, start or ()) as made:
                for difference in made.differences(opened):
                    say(difference.text)
                    wrong += 1
                out.print(f"{len(made) - min(wrong, len(made))} of {len(made)} histories are what the log makes them")
    if wrong:
        raise typer.Exit(1)


@contextmanager
def _source(stream: StreamConfig) -> Iterator[EventSource]:
    from hymirec.streaming import open_log

    with closing(open_log(stream).source(group=False)) as source:
        yield source


def _out_of_step(source: EventSource, positions: dict[int, Position]) -> int:
    """Print where each partition is; returns how many cannot go on."""
    topic_id, wrong = source.topic_id(), 0
    for partition in source.assigned():
        low, high, position = source.beginning(partition), source.end(partition), positions.get(partition)
        if position is None:
            state = "nothing applied yet"
        elif position.topic_id != topic_id:
            state, wrong = "the topic was deleted and created again", wrong + 1
        elif not low <= position.offset <= high:
            state, wrong = f"position {position.offset} is outside of the log", wrong + 1
        else:
            state = f"position {position.offset}, {high - position.offset} behind"
        say(f"partition {partition}: log {low}..{high}, {state}")
    return wrong


@contextmanager
def _rebuilt(
    place: Place, positions: dict[int, Position], parquet: Path | None, start: Sequence[str]
) -> Iterator[Rebuilt]:
    """The histories that Parquet and log make, the log up to the store's positions."""
    from hymirec.history.audit import Rebuilt
    from hymirec.history.interactions import entries_of, placed, read_interactions
    from hymirec.streaming.replay import replay

    begin = offsets_of(start)
    if place.stream is None and parquet is None:
        raise ConfigError("there is nothing to compare with: name the log with --config, or give --parquet")
    with Rebuilt(place.history) as made:
        if parquet is not None:
            made.add(placed(entries_of(read_interactions(parquet))))
        if place.stream is not None:
            with _source(place.stream) as source:
                made.add(replay(source, positions, begin))
        yield made


def offsets_of(pairs: Iterable[str]) -> dict[int, int]:
    """Offsets by partition. Raises ConfigError for what is not PARTITION=OFFSET."""
    found = {}
    for pair in pairs:
        partition, _, offset = pair.partition("=")
        if not (partition.isdecimal() and offset.isdecimal()):
            raise ConfigError(f"{pair!r}: expected PARTITION=OFFSET, as 0=1200")
        found[int(partition)] = int(offset)
    return found


@history.command("repair")
@speaks
def history_repair(
    config: ServiceFile = None,
    store: StorePlace = None,
    parquet: Past = None,
    start: Starts = None,
    user: Annotated[list[str] | None, typer.Option(help="only this user; may be given again")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only tell who would be rebuilt")] = False,
) -> None:
    """Rebuild the histories that are not what the log (and Parquet) make them. Positions stay.

    The history writer must be stopped. Somebody whom neither log nor Parquet knows loses the history.
    """
    place = _place(config, store)
    opening = _reader if dry_run else _writer
    with closing(opening(place.history)) as opened:
        positions = {} if place.stream is None else opened.positions(place.stream.topic)
        with _rebuilt(place, positions, parquet, start or ()) as made:
            found = [d for d in made.differences(opened) if not user or d.user_id in user]
            for difference in found:
                say(difference.text)
                if not dry_run:
                    made.repair(opened, difference)
    out.print(f"{len(found)} histories {'would be ' if dry_run else ''}rebuilt")


@history.command("erase")
@speaks
def history_erase(user_id: str, config: ServiceFile = None) -> None:
    """Erase a user: an event of the log, applied in order by the history writer."""
    from hymirec.streaming import erase_message, open_log

    with closing(open_log(_place(config, None).log).producer()) as producer:
        producer.send([erase_message(user_id)])
    say(f"the erasure of {user_id!r} is in the log")


@history.command("export")
@speaks
def history_export(
    target: Annotated[Path, typer.Argument(help="directory to be made")],
    config: ServiceFile = None,
    store: StorePlace = None,
    topic: Topic = EVENTS,
) -> None:
    """Write all histories as Parquet, with tombstones and positions: a copy that `import` reads, losing nothing.

    With Redis, stop the history writer meanwhile.
    """
    from hymirec.history.archive import export_store

    place = _place(config, store)
    if target.exists():
        raise ConfigError(f"{target} is there already; name another directory or remove it")
    with closing(_reader(place.history)) as opened:
        users = export_store(opened, topic if place.stream is None else place.stream.topic, target)
    say(f"{users} histories in {target}")


@history.command("import")
@speaks
def history_import(
    directory: Annotated[Path, typer.Argument(help="what `export` wrote")],
    config: ServiceFile = None,
    store: StorePlace = None,
) -> None:
    """Put an export into a store that holds nothing. The history writer then goes on at the export's positions."""
    from hymirec.history.archive import import_store, is_empty

    place = _place(config, store)
    # Closing the store puts it on disk; until then a crash leaves one to be thrown away.
    with closing(_writer(place.history.model_copy(update={"sync": False}))) as opened:
        if not is_empty(opened):
            raise ConfigError("the store holds histories; import into an empty one (another history.path or Redis db)")
        users = import_store(directory, opened)
    say(f"{users} histories imported from {directory}")


@history.command("reset-position")
@speaks
def history_reset_position(
    partition: Annotated[int, typer.Option()],
    offset: Annotated[int, typer.Option(help="the next offset to apply", min=0)],
    config: ServiceFile = None,
) -> None:
    """Decide where a partition that stands still goes on. What lies between is skipped, by your decision.

    The service must be stopped where the store is RocksDB.
    """
    from hymirec.history import Position

    place = _place(config, None)
    with _source(place.log) as source:
        if partition not in source.assigned():
            raise ConfigError(f"--partition {partition}: the topic has {sorted(source.assigned())}")
        with closing(_writer(place.history)) as opened:
            opened.reset_position(place.log.topic, partition, Position(source.topic_id(), offset))
    say(f"partition {partition} goes on at offset {offset}")

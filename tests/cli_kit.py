"""Calling `hymirec` in tests, and a small service whose store and log its commands work on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import Result
from patience import happens
from typer.testing import CliRunner

from hymirec.catalog.events import Event
from hymirec.cli import app
from hymirec.config import ServiceConfig, load
from hymirec.errors import SourceUnavailableError
from hymirec.history import open_store
from hymirec.streaming import HistoryConsumer, event_message, open_log


def hymirec(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def refused(result: Result, *words: str) -> None:
    """Exit 2, one line on stderr that names the words, nothing on stdout."""
    assert (result.exit_code, result.stdout) == (2, ""), result.output
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    for word in words:
        assert word in result.stderr


class Shop:
    """A service's store and log, and its YAML."""

    def __init__(self, home: Path) -> None:
        self.home = home
        args = {
            "bundle": "bundle",
            "history": {"store": "rocksdb", "path": "history", "sync": False},
            "stream": {"source": "file", "path": "log", "partitions": 2, "poll_seconds": 0.02},
        }
        self.yaml = home / "serve.yaml"
        self.yaml.write_text(yaml.safe_dump({"applications": [{"name": "shop", "args": args}]}))
        self.config = load(ServiceConfig, self._plain(args)).placed(home)

    def _plain(self, args: dict[str, Any]) -> Path:
        path = self.home / "plain.yaml"
        path.write_text(yaml.safe_dump(args))
        return path

    def act(self, user: str, items: list[str]) -> None:
        events = [
            Event(event_id=f"{user}-{item}", user_id=user, item_id=item, ts=1_700_000_000 + n, action="click")
            for n, item in enumerate(items)
        ]
        producer = open_log(self.config.stream).producer()
        producer.send([event_message(event) for event in events])
        producer.close()

    def apply(self) -> None:
        """Run the history writer's consumer until it has caught up."""
        store, log = open_store(self.config.history), open_log(self.config.stream)
        consumer = HistoryConsumer(log, store, self.config.stream)
        consumer.start()
        try:
            source = log.source(group=False)
            ends = {partition: source.end(partition) for partition in source.assigned()}
            source.close()
            wait(
                lambda: (
                    {p: x for p, x in consumer.status().positions.items() if x} == {p: e for p, e in ends.items() if e}
                )
            )
        finally:
            consumer.stop()
            store.close()


def small_shop(home: Path, monkeypatch: pytest.MonkeyPatch) -> Shop:
    """A shop whose relative places lie under `home`, with three events of ann and one of bob applied."""
    monkeypatch.setenv("HYMIREC_HOME", str(home))
    shop = Shop(home)
    shop.act("ann", ["pen", "ink", "mug"])
    shop.act("bob", ["mug"])
    shop.apply()
    return shop


def wait(done: Callable[[], bool]) -> None:
    if not happens(done):
        raise SourceUnavailableError("the consumer did not catch up")

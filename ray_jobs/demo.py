"""The whole system on a laptop: train on a real shop's history, serve it, and watch answers move as events arrive.

`make demo` runs this. On a terminal it stays up until Ctrl-C; elsewhere it exits when it has shown everything.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from hymirec.catalog.prepared import Catalog, Sequences
from hymirec.config import HistoryConfig, PipelineConfig, ServiceConfig, StreamConfig, load
from hymirec.errors import HyMiRecError
from ray_jobs.cluster import connect, placed
from ray_jobs.console import Screen, log_to_file, mute, spoken_errors
from ray_jobs.pipeline import run_pipeline
from ray_jobs.summary import print_summary
from serve_apps.local import run_local, stop_local

HELD_OUT = 5
SHOWN = 8
USERS = 3
VISIBLE_SECONDS = 30.0


class Client:
    """The HTTP interface, as any program would use it."""

    def __init__(self, url: str) -> None:
        self.url = url

    def call(self, method: str, path: str, body: Any = None) -> Any:
        """One request; returns the JSON of the answer. Raises HyMiRecError with the service's own words."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            self.url + path, data=data, method=method, headers={"content-type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=30) as reply:
                return json.loads(reply.read())
        except urllib.error.HTTPError as e:
            raise HyMiRecError(f"{method} {path}: {e.code} {e.read().decode(errors='replace')[:300]}") from e

    def send(self, user: str, events: Iterable[dict[str, Any]], expected: int) -> float:
        """Post events and wait until the user's history holds `expected` of them; returns the seconds it took."""
        start = time.monotonic()
        self.call("POST", "/v1/events", list(events))
        while True:
            seen = self.call("GET", f"/v1/users/{user}/history")["count"]
            waited = time.monotonic() - start
            if seen >= expected:
                return waited
            if waited > VISIBLE_SECONDS:
                raise HyMiRecError(f"user {user}: {seen} of {expected} events arrived in {VISIBLE_SECONDS:.0f} s")
            time.sleep(0.02)


class Shopper:
    """A real user of the data set: everything but the last items is the past, the last items are replayed live."""

    def __init__(self, number: int, catalog: Catalog, sequences: Sequences) -> None:
        items, ts = sequences.history(number, "test")
        target, target_ts = sequences.targets(number, "test")
        self.id = str(sequences.users[number].as_py())
        self.titles = catalog.titles
        self._ids = [str(catalog.item_ids[int(i)].as_py()) for i in [*items, *target]]
        self._ts = [int(t) for t in [*ts, *target_ts]]
        self.past = len(self._ids) - HELD_OUT
        self.bought = [catalog.titles[int(i)].as_py() for i in [*items, *target]][self.past :]
        self.next_item = self._ids[self.past]

    def events(self, start: int, stop: int) -> list[dict[str, Any]]:
        """Events `start` to `stop` of the user's real history, as the log takes them."""
        return [
            {
                "event_id": f"{self.id}-{i}",
                "user_id": self.id,
                "item_id": self._ids[i],
                "ts": self._ts[i],
                "action": "purchase",
            }
            for i in range(start, stop)
        ]

    def now(self, length: int) -> int:
        """The moment of the next event after `length` of them."""
        return self._ts[min(length, len(self._ts) - 1)]


def choose(sequences: Sequences, count: int) -> list[int]:
    """Users with a long, but not the longest, history: spread over the upper half of lengths."""
    lengths = [(int(sequences.offsets[u + 1] - sequences.offsets[u]), u) for u in range(len(sequences))]
    lengths.sort()
    spots = [0.55 + 0.35 * i / max(1, count - 1) for i in range(count)]
    return [lengths[int(spot * (len(lengths) - 1))][1] for spot in spots]


def show_shopper(console: Console, client: Client, shopper: Shopper) -> None:
    """Send a user's past, ask, replay what the user really bought next, ask again."""
    client.send(shopper.id, shopper.events(0, shopper.past), shopper.past)
    ask = {"user_id": shopper.id, "k": SHOWN}
    before = client.call("POST", "/v1/recommend", ask | {"now": shopper.now(shopper.past)})
    total = shopper.past + HELD_OUT
    seconds = client.send(shopper.id, shopper.events(shopper.past, total), total)
    after = client.call("POST", "/v1/recommend", ask | {"now": shopper.now(total)})
    known = {item["item_id"] for item in before["items"]}
    table = Table(title=f"user {shopper.id}: {shopper.past} purchases, then {HELD_OUT} more", title_justify="left")
    table.add_column("before (interest)")
    table.add_column("after (interest; * is new)")
    for old, new in zip(before["items"], after["items"], strict=False):
        bought = " <- bought next" if old["item_id"] == shopper.next_item else ""
        star = "" if new["item_id"] in known else "* "
        table.add_row(
            f"{old['title'].title()} ({old['interest']}){bought}", f"{star}{new['title'].title()} ({new['interest']})"
        )
    console.print(table)
    fresh = sum(item["item_id"] not in known for item in after["items"])
    names = "; ".join(title.title() for title in shopper.bought)
    console.print(f"  bought in between: {names}", markup=False)
    console.print(f"  {fresh} of {SHOWN} recommendations changed; the events were visible after {seconds:.2f} s\n")


def show_interests(console: Console, client: Client, user: str, now: int) -> None:
    """What stands behind a user's recommendations: each interest, what of the history is near, what it finds alone."""
    ask = {"user_id": user, "k": SHOWN, "now": now, "nearest": 3, "finds": 5}
    reply = client.call("POST", "/v1/explain", ask)
    interests = reply["interests"]
    table = Table(title=f"user {user}: what each interest finds alone", title_justify="left")
    for interest in interests:
        table.add_column(f"interest {interest['number']} (strength {interest['strength']:.2f})")
    for kind, name in (("nearest", "near: "), ("finds", "")):
        cells = [[name + item["title"].title() for item in interest[kind]] for interest in interests]
        for row in zip(*cells, strict=True):
            table.add_row(*row)
        table.add_section()
    console.print(table)
    console.print("  near: of the history; below: of the catalogue; the list of a user takes the best of all of them\n")


def main(
    config: Annotated[Path, typer.Option(help="YAML of the run")] = Path("ray_jobs/configs/demo.yaml"),
    assignments: Annotated[list[str] | None, typer.Option("--set", help="change one key: a.b=value")] = None,
    port: Annotated[int, typer.Option(help="HTTP port on 127.0.0.1; 0 takes a free one")] = 8000,
) -> None:
    """Train, serve, replay, show."""
    screen = Screen()
    console = screen.console
    started = time.monotonic()
    with spoken_errors(screen, Path("the run's logs/demo.log")):
        settings = placed(load(PipelineConfig, config, assignments or ()))
        log_to_file(settings.directory / "logs" / "demo.log")
        console.print(f"HyMiRec demo: {settings.data.kind}, everything under {settings.directory}", markup=False)
        connect(settings.compute)
        bundle = run_pipeline(settings, screen)
        print_summary(console, settings.directory)
        state = settings.directory / "serve"
        # A demo tells the same story each time it is run: it starts from an empty log.
        shutil.rmtree(state, ignore_errors=True)
        with screen.step(1, 1, "start the service"):
            url = run_local(
                ServiceConfig(
                    bundle=str(bundle),
                    history=HistoryConfig(path=str(state / "history")),
                    stream=StreamConfig(path=str(state / "log")),
                ),
                port,
            )
        client = Client(url)
        data = settings.directory / "data"
        catalog, sequences = Catalog.open(data), Sequences.open(data)
        shoppers = [Shopper(number, catalog, sequences) for number in choose(sequences, USERS)]
        for shopper in shoppers:
            show_shopper(console, client, shopper)
        show_interests(console, client, shoppers[0].id, shoppers[0].now(shoppers[0].past + HELD_OUT))
    console.print(f"all of it took {time.monotonic() - started:.0f} s; the service is at {url}", markup=False)
    user = shoppers[0].id
    console.print(f"look: {url}/console/#{user}", markup=False, soft_wrap=True)
    body = json.dumps({"user_id": user, "k": 5})
    curl = f"curl -s {url}/v1/recommend -H 'content-type: application/json' -d '{body}'"
    console.print(f"try: {curl}", markup=False, soft_wrap=True)
    if sys.stdin.isatty() and console.is_terminal:
        console.print("Ctrl-C stops it.")
        try:
            while True:
                time.sleep(3600)
        except KeyboardInterrupt:
            console.print("stopping ...")
    mute()
    stop_local()


if __name__ == "__main__":
    typer.run(main)

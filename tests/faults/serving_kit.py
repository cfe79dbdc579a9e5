"""What the fault runs of the service have in common: users with a past, a load in the background, a running service."""

from __future__ import annotations

import asyncio
import itertools
import os
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import numpy as np
from serve_kit import Application
from service_kit import BASE_TS, event, service_config
from serving_releases import Histories

from hymirec import HyMiRec
from hymirec.load import Load, LoadPlan, Samples, Traffic
from hymirec.load.check import wrong
from hymirec.load.driver import Check

USERS, EVENTS = 24, 30
NOW = BASE_TS + 10_000


def item_ids(bundle: Path) -> list[str]:
    """Every item of a bundle."""
    catalog = HyMiRec.from_pretrained(bundle).bundle.catalog
    return [str(catalog.item_id(index)) for index in range(catalog.size)]


def histories(items: list[str], users: int = USERS) -> Histories:
    """Users who have read different items, some of them more than the recommender reads."""
    return {
        f"u{user}": [(items[(11 * user + 3 * n) % len(items)], BASE_TS + n) for n in range(EVENTS + user % 7)]
        for user in range(users)
    }


def traffic(past: Histories, items: list[str]) -> Traffic:
    """Everybody comes in turn, again and again."""
    users = list(past)
    place = {item: number for number, item in enumerate(items)}
    rows = [(number, place[item], ts) for number, user in enumerate(users) for item, ts in past[user]]
    rows += [(number, (7 * number) % len(items), NOW) for number in range(len(users))]
    user_N, item_N, ts_N = (np.array(column, np.int64) for column in zip(*rows, strict=True))
    return Traffic(users, items, user_N, item_N, ts_N, len(rows) - len(users))


@contextmanager
def running(bundle: Path, directory: Path, **changes: Any) -> Iterator[Application]:
    """The application with two recommenders, on RocksDB and a file log."""
    settings = {"recommender_replicas": 2, "max_recommender_replicas": 2} | changes
    application = Application(service_config(bundle, directory, **settings))
    application.start()
    try:
        yield application
    finally:
        application.stop()


@contextmanager
def small_ray() -> Iterator[None]:
    """A local Ray for a run of its own."""
    import ray

    from ray_jobs.cluster import start_local

    # At Ray's own nice 15 the service would starve beside the load.
    os.environ.setdefault("RAY_worker_niceness", "0")
    path = os.pathsep.join(str(folder) for folder in (Path(__file__).parents[2], Path(__file__).parents[1]))
    variables = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "DS_ACCELERATOR": "cpu", "PYTHONPATH": path}
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as place:
        start_local(
            num_cpus=4,
            object_store_memory=256 << 20,
            configure_logging=False,
            _temp_dir=place,
            runtime_env={"env_vars": variables},
        )
        try:
            yield
        finally:
            ray.shutdown()


class Loading:
    """A load on a thread of its own, for as long as the block lasts."""

    def __init__(self, plan: LoadPlan, traffic: Traffic, check: Check = wrong, past: bool = False) -> None:
        self.load = Load(plan, traffic, check)
        self._past = past
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        try:
            asyncio.run(self.load.run(self._past))
        except BaseException as e:  # noqa: BLE001
            self._error = e

    @property
    def samples(self) -> Samples:
        """What has been measured until now."""
        return self.load.samples

    def elapsed(self) -> float:
        """Seconds since the load began, as samples have them."""
        return self.load.elapsed()

    def alive(self) -> bool:
        """True while it goes on; raises what ended it."""
        if self._error is not None:
            raise self._error
        return True

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.load.stop()
        self._thread.join(120)
        if self._error is not None:
            raise self._error


class Poster:
    """Posts events of users of its own on a thread, each event twice as a client without an answer does, until it ends.

    Their times lie in the past, so they move nobody's idea of what is popular now. `sent` is what was accepted.
    """

    def __init__(self, application: Application, items: list[str], pause: float = 0.2, name: str = "p") -> None:
        self._application, self._items, self._pause, self._name = application, items, pause, name
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.sent: dict[str, list[str]] = {}
        self.refused: Counter[int] = Counter()

    def _run(self) -> None:
        for number in itertools.count():
            user = f"{self._name}{number % 5}"
            item = self._items[number % len(self._items)]
            body = event(number, user, item, ts=BASE_TS + number)
            while not self._stop.is_set():
                reply = self._application.call("POST", "/v1/events", [body, body])
                if reply.status == 202:
                    self.sent.setdefault(user, []).append(item)
                    break
                # Not accepted, or nobody knows: the same event again.
                self.refused[reply.status] += 1
                self._stop.wait(1.0)
            if self._stop.wait(self._pause):
                return

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join(60)


def judged(samples: Samples) -> Counter[str]:
    """Requests that should not have ended as they did."""
    bad: Counter[str] = Counter()
    for sample in list(samples.asked):
        if sample.outcome == "wrong":
            bad["mixed" if sample.reason.startswith("mixed") else "wrong"] += 1
        elif sample.outcome in ("failed", "shed"):
            bad[sample.outcome] += 1
    return bad

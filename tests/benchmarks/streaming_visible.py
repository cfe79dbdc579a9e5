"""From an event's acceptance to the first recommendation that has seen it: a real Kafka, Ray Serve, RocksDB.

First as many events are posted as the service takes (its peak); then half as many, evenly, while one client posts an
event of a user of its own and asks for that user's recommendations until `as_of` covers it. Everything shares this
machine: broker, service and clients.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import numpy as np
import ray
from bench_kit import Figure, main, value
from service_kit import tiny_bundle
from services import KafkaBroker

from hymirec.config import HistoryConfig, ServiceConfig, StreamConfig
from ray_jobs.cluster import start_local
from serve_apps.local import run_local, stop_local

CLIENTS, POST_EVENTS, USERS = 4, 100, 1_000
PEAK_SECONDS, PROBES, PROBE_SECONDS = 10.0, 100, 0.2
PATIENCE_SECONDS = 120.0
CLIENT = "kafka-python"


class Service:
    """What a client sees of it."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._number = 0
        self._lock = threading.Lock()

    def _call(self, path: str, body: Any) -> tuple[int, Any]:
        request = urllib.request.Request(self._url + path, json.dumps(body).encode())
        try:
            with urllib.request.urlopen(request, timeout=30) as reply:
                return reply.status, json.loads(reply.read())
        except urllib.error.HTTPError as e:
            return e.code, None

    def post(self, count: int, user: str | None = None) -> tuple[int, int]:
        """Post new events; returns how many were taken, and the time of the last one."""
        with self._lock:
            start = self._number
            self._number += count
        now = int(time.time())
        events = [
            {
                "event_id": f"e{i}",
                "user_id": user or f"u{i % USERS}",
                "item_id": str(i % 150),
                "ts": now,
                "action": "click",
            }
            for i in range(start, start + count)
        ]
        return count if self._call("/v1/events", events)[0] == 202 else 0, now

    def seconds_to_see(self, user: str) -> float:
        """Seconds from the acceptance of a new event of the user to the reply whose `as_of` covers it."""
        taken, ts = self.post(1, user)
        begun = time.perf_counter()
        while not taken:
            taken, ts = self.post(1, user)
            begun = time.perf_counter()
        while True:
            status, reply = self._call("/v1/recommend", {"user_id": user, "k": 10})
            seconds = time.perf_counter() - begun
            if status == 200 and (reply["as_of"]["ts"] or 0) >= ts:
                return seconds
            assert seconds < PATIENCE_SECONDS, f"an event is not seen after {seconds:.0f} s: {reply}"

    def flood(self) -> float:
        """Events a second that it takes of some clients that wait for nothing."""
        end = time.perf_counter() + PEAK_SECONDS

        def client(_: int) -> int:
            taken = 0
            while time.perf_counter() < end:
                taken += self.post(POST_EVENTS)[0]
            return taken

        begun = time.perf_counter()
        with ThreadPoolExecutor(CLIENTS) as pool:
            return sum(pool.map(client, range(CLIENTS))) / (time.perf_counter() - begun)

    def stream(self, rate: float, stop: threading.Event) -> int:
        """Post so many events a second until told to stop; returns how many were taken."""
        begun, turns, taken = time.perf_counter(), 0, 0
        with ThreadPoolExecutor(CLIENTS) as pool:
            waiting = []
            while not stop.is_set():
                waiting.append(pool.submit(self.post, POST_EVENTS))
                turns += 1
                stop.wait(max(0.0, begun + turns * POST_EVENTS / rate - time.perf_counter()))
            for future in waiting:
                taken += future.result()[0]
        return taken


def measured(service: Service) -> Iterator[Figure]:
    """The peak; then how long events take at half of it."""
    service.seconds_to_see("first")
    peak = service.flood()
    behind = service.seconds_to_see("behind")
    stop = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        begun = time.perf_counter()
        streaming = pool.submit(service.stream, peak / 2, stop)
        found = []
        for probe in range(PROBES):
            found.append(service.seconds_to_see(f"probe-{probe}"))
            time.sleep(PROBE_SECONDS)
        stop.set()
        rate = streaming.result() / (time.perf_counter() - begun)
    name = f"event to visible at {rate:.0f} events/s (peak {peak:.0f}, then {behind:.1f} s behind), {CLIENT}"
    for percent in (50, 99):
        yield value(f"{name}, p{percent}", float(np.percentile(found, percent)), 0, 1.0, "s", at_least=False)


def figures() -> Iterator[Figure]:
    """Start everything, measure, stop everything."""
    with tempfile.TemporaryDirectory() as directory, tempfile.TemporaryDirectory(prefix="ray-") as session:
        place = Path(directory)
        broker = KafkaBroker(place / "kafka")
        paths = os.pathsep.join(str(folder) for folder in (Path(__file__).parents[2], Path(__file__).parents[1]))
        try:
            broker.start()
            broker.create_topic("events", 4)
            broker.create_topic("events.dead-letters", 1)
            config = ServiceConfig(
                bundle=str(tiny_bundle(place)),
                history=HistoryConfig(path=str(place / "history")),
                stream=StreamConfig(source=CLIENT, brokers=broker.bootstrap),
            )
            start_local(
                num_cpus=4,
                object_store_memory=256 << 20,
                configure_logging=False,
                _temp_dir=session,
                runtime_env={"env_vars": {"OMP_NUM_THREADS": "1", "PYTHONPATH": paths}},
            )
            yield from measured(Service(run_local(config, 0)))
            stop_local()
        finally:
            ray.shutdown()
            broker.kill()


if __name__ == "__main__":
    main(figures)

"""The service without Ray: ranker, writer, front end and HTTP interface, real ones, in one event loop of a thread."""

from __future__ import annotations

import asyncio
import functools
import shutil
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

import httpx
import uvicorn
from patience import until
from tiny_run import build_tiny_run

from hymirec.artifacts import write_manifest
from hymirec.config import HistoryConfig, LimitsConfig, ServiceConfig, StreamConfig
from hymirec.service.api import create_api
from hymirec.service.frontend import Frontend
from hymirec.service.ranker import Ranker
from hymirec.service.stages import RankerStage
from hymirec.service.writer import Writer
from hymirec.telemetry import Metric, Observe, unobserved

T = TypeVar("T")
BASE_TS = 1_700_000_000


@functools.cache
def tiny_bundle(directory: Path) -> Path:
    """The bundle of a tiny run, built once for each directory."""
    return build_tiny_run(directory / "run") / "bundle"


def another_release(bundle: Path, target: Path, word: str = "second") -> Path:
    """A bundle with the same model and another id: only its card differs."""
    shutil.copytree(bundle, target)
    (target / "README.md").write_text(f"# {word} release\n")
    write_manifest(target, "bundle")
    return target


def service_config(bundle: Path, directory: Path, **changes: Any) -> ServiceConfig:
    """RocksDB and a file log under `directory`."""
    values: dict[str, Any] = {
        "bundle": str(bundle),
        "history": HistoryConfig(path=str(directory / "history"), sync=False),
        "stream": StreamConfig(path=str(directory / "log"), partitions=2, poll_seconds=0.01),
        "limits": LimitsConfig(),
    }
    return ServiceConfig(**(values | changes))


def event(number: int, user: str, item: str, ts: int | None = None) -> dict[str, Any]:
    """An event as clients send it."""
    at = BASE_TS + number if ts is None else ts
    return {"event_id": f"{user}-{number}", "user_id": user, "item_id": item, "ts": at, "action": "click"}


class Recorder:
    """An `Observe` that keeps every value. Refuses what Ray would: other labels than the metric has."""

    def __init__(self) -> None:
        self.values: list[tuple[Metric, float, dict[str, str]]] = []

    def __call__(self, metric: Metric, value: float, **labels: str) -> None:
        assert set(labels) == set(metric.labels), (metric.name, labels)
        self.values.append((metric, value, labels))

    def of(self, metric: Metric, **labels: str) -> list[float]:
        """The values of one series, in order."""
        return [value for found, value, given in list(self.values) if found == metric and given == labels]

    def labels(self, metric: Metric, name: str) -> set[str]:
        """What a label was."""
        return {given[name] for found, _, given in list(self.values) if found == metric}


class LocalService:
    """A running service. `wrap` puts something between the front end and the ranker, a delay for instance."""

    def __init__(
        self,
        config: ServiceConfig,
        base: Path,
        wrap: Callable[[RankerStage], RankerStage] = lambda ranker: ranker,
        client: str = "127.0.0.1",
        observe: Observe = unobserved,
    ) -> None:
        self.config, self._base, self._wrap, self._client_host = config, base, wrap, client
        self._observe = observe
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.run(self._start())

    async def _start(self) -> None:
        self.ranker = Ranker(self.config, self._observe)
        self.writer = Writer(self.config, self.ranker, self._observe)
        self.frontend = Frontend(self.config, self._wrap(self.ranker), self.writer, self._base, self._observe)
        self.api: Any = create_api(self.frontend, self.config, self._observe)
        await self.frontend.start()
        transport = httpx.ASGITransport(self.api, raise_app_exceptions=False, client=(self._client_host, 1))
        self.client = httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8000", timeout=30)

    def listen(self) -> str:
        """Serve on a free port of 127.0.0.1 until `close`; returns the URL."""
        # The front end runs already.
        self._server = uvicorn.Server(uvicorn.Config(self.api, port=0, log_level="warning", lifespan="off"))
        self._listening = asyncio.run_coroutine_threadsafe(self._server.serve(), self._loop)
        until(lambda: self._server.started)
        return f"http://127.0.0.1:{self._server.servers[0].sockets[0].getsockname()[1]}"

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine in the service's loop and wait for it."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(60)

    def call(self, method: str, path: str, **options: Any) -> httpx.Response:
        """One HTTP request."""
        return self.run(self.client.request(method, path, **options))

    def recommend(self, **body: Any) -> dict[str, Any]:
        """The reply of a recommendation, which must be a 200."""
        reply = self.call("POST", "/v1/recommend", json=body)
        assert reply.status_code == 200, reply.text
        found: dict[str, Any] = reply.json()
        return found

    def post(self, *events: dict[str, Any]) -> None:
        """Put events into the log."""
        assert self.call("POST", "/v1/events", json=list(events)).status_code == 202

    def history(self, user: str, count: int) -> dict[str, Any]:
        """The user's history once it holds `count` events."""

        def look() -> dict[str, Any] | None:
            found: dict[str, Any] = self.call("GET", f"/v1/users/{user}/history").json()
            return found if found["count"] == count else None

        return until(look)

    def close(self) -> None:
        """Stop everything, as Serve stops replicas."""
        if hasattr(self, "_server"):
            self._server.should_exit = True
            self._listening.result(30)
        self.run(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    async def _stop(self) -> None:
        await self.client.aclose()
        await self.frontend.stop()
        self.writer.close()
        await asyncio.to_thread(self.ranker.close)
        await asyncio.sleep(0)

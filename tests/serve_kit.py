"""The application on real Ray Serve, as tests and fault runs handle it: HTTP, its processes, their memory."""

from __future__ import annotations

import json
import re
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import ray
from patience import until

from hymirec.config import ServiceConfig
from serve_apps.local import run_local, stop_local

DEPLOYMENTS = ("Ingress", "Recommender", "HistoryWriter")


class Reply(NamedTuple):
    status: int
    kind: str
    body: Any


class Application:
    """The running application, and its processes."""

    def __init__(self, config: ServiceConfig) -> None:
        self.config = config
        self.url = ""

    def start(self) -> None:
        self.url = run_local(self.config, 0)

    def call(self, method: str, path: str, body: Any = None, **headers: str) -> Reply:
        data = None if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=30) as reply:
                return Reply(reply.status, reply.headers["content-type"], json.loads(reply.read()))
        except urllib.error.HTTPError as e:
            return Reply(e.code, e.headers["content-type"], json.loads(e.read()))

    def recommend(self, **body: Any) -> dict[str, Any]:
        reply = self.call("POST", "/v1/recommend", body)
        assert reply.status == 200, reply
        found: dict[str, Any] = reply.body
        return found

    def post(self, *events: dict[str, Any]) -> None:
        assert self.call("POST", "/v1/events", list(events)).status == 202

    def history(self, user: str, count: int) -> list[str]:
        """Item ids, once there are `count` of them."""

        def look() -> Any:
            reply = self.call("GET", f"/v1/users/{user}/history?limit=1000")
            return reply.status == 200 and reply.body["count"] >= count and reply.body

        found = until(look, 90)
        assert found["count"] == count
        return [e["item_id"] for e in found["events"]]

    def stop(self) -> None:
        stop_local()

    @staticmethod
    def spans() -> list[dict[str, Any]]:
        """Spans of all that was traced by now: OpenTelemetry's console exporter writes to the output of the workers."""
        logs = Path(ray.get_runtime_context().get_temp_dir()) / "session_latest" / "logs"
        found = []
        for path in logs.glob("worker-*.out"):
            text = path.read_text()
            for begin in re.finditer(r"^\{$", text, re.MULTILINE):
                # The last one may be half written.
                with suppress(json.JSONDecodeError):
                    found.append(json.JSONDecoder().raw_decode(text, begin.start())[0])
        return found

    @staticmethod
    def processes(deployment: str) -> list[int]:
        """Replicas of a deployment, among the processes that this test run has started."""
        found = []
        for process in psutil.Process().children(recursive=True):
            try:
                if f"ServeReplica:hymirec:{deployment}" in " ".join(process.cmdline()):
                    found.append(process.pid)
            except psutil.Error:
                continue
        return found

    def memory(self) -> dict[str, float]:
        """Bytes that the replicas of each deployment have for themselves."""
        found = {}
        for deployment in DEPLOYMENTS:
            found[deployment] = 0.0
            for pid in self.processes(deployment):
                with suppress(psutil.Error):
                    found[deployment] += float(psutil.Process(pid).memory_full_info().uss)
        return found

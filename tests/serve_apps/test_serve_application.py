"""The application on real Ray Serve, RocksDB and file log: HTTP, swaps over replicas, kills, a restart."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import threading
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import ray
from patience import until
from ray import serve
from serve_kit import Application
from service_kit import BASE_TS, another_release, event, service_config

from hymirec import HyMiRec
from hymirec.artifacts import read_manifest
from hymirec.telemetry import COARSE_FORGOTTEN, DEGRADED, DROPPED, METRICS, RATE_LIMITED, SHED
from serve_apps.local import stop_local

pytestmark = [pytest.mark.ray, pytest.mark.timeout(1800)]
NOW = BASE_TS + 1_000


@pytest.fixture(scope="module")
def model(bundle: Path) -> HyMiRec:
    return HyMiRec.from_pretrained(bundle)


@pytest.fixture(scope="module")
def items(model: HyMiRec) -> list[str]:
    return [str(model.bundle.catalog.item_id(i)) for i in range(model.bundle.catalog.size)]


@pytest.fixture(scope="module")
def application(bundle: Path, ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Application]:
    directory = tmp_path_factory.mktemp("application")
    served = another_release(bundle, directory / "served", "first")
    config = service_config(served, directory, recommender_replicas=2, max_recommender_replicas=2, tracing=True)
    application = Application(config)
    application.start()
    yield application
    stop_local()


def test_a_user_gets_over_http_what_the_library_gives_for_the_same_history(
    application: Application, model: HyMiRec, items: list[str]
) -> None:
    cold = application.recommend(user_id="ada", k=10, now=NOW)
    assert cold["reason"] == "cold_start"
    application.post(*(event(i, "ada", item) for i, item in enumerate(items[:20])))
    assert application.history("ada", 20) == items[:20]
    warm = application.recommend(user_id="ada", k=10, now=NOW)
    assert (warm["reason"], warm["degraded"], warm["as_of"]["ts"]) == ("full", False, BASE_TS + 19)
    assert warm["items"] != cold["items"]
    history = [(item, BASE_TS + i) for i, item in enumerate(items[:20])]
    expected = model.recommend(history, k=10, now=NOW)
    for reply in (warm, application.recommend(history=[list(pair) for pair in history], k=10, now=NOW)):
        assert [i["item_id"] for i in reply["items"]] == [i.item_id for i in expected.items]
        assert [i["score"] for i in reply["items"]] == pytest.approx([i.score for i in expected.items], abs=1e-6)
        assert [i["interest"] for i in reply["items"]] == [i.interest for i in expected.items]


def test_what_is_measured_arrives_where_prometheus_reads(application: Application, items: list[str]) -> None:
    application.post(*(event(i, "mia", item) for i, item in enumerate([*items[:9], "unheard of"])))
    application.history("mia", 10)
    # These count trouble, of which there is none.
    trouble = (SHED, RATE_LIMITED, DEGRADED, DROPPED, COARSE_FORGOTTEN)
    wanted = {metric.name for metric in METRICS} - {metric.name for metric in trouble}
    port = ray.nodes()[0]["MetricsExportPort"]

    def look() -> str | None:
        application.recommend(user_id="mia")
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as reply:
            text: str = reply.read().decode()
        names = re.findall(r"^ray_(hymirec_\w+?)(?:_bucket|_sum|_count)?\{", text, re.MULTILINE)
        return text if wanted <= set(names) else None

    text = until(look, 120)
    (info, *_) = re.findall(r"^ray_hymirec_bundle_info\{(.*)\} 1\.0", text, re.MULTILINE)
    labels = dict(re.findall(r'(\w+)="([^"]*)"', info))
    assert (labels["application"], labels["deployment"]) == ("hymirec", "Recommender")
    assert labels["bundle"] == application.recommend(user_id="mia")["bundle"]
    assert labels["replica"]


def test_a_crowd_is_turned_away_in_the_proxy(application: Application) -> None:
    """The door refuses the first of those who are too many, and the proxy the next, in the door's words."""
    crowd = 4 * (application.config.limits.max_ongoing_requests + application.config.limits.max_queued_requests)
    port = ray.nodes()[0]["MetricsExportPort"]

    async def come() -> list[httpx.Response]:
        """Everybody at once; who is turned away comes again at once."""
        limits = httpx.Limits(max_connections=crowd)
        async with httpx.AsyncClient(base_url=application.url, limits=limits, timeout=60) as http:

            async def one() -> list[httpx.Response]:
                return [await http.post("/v1/recommend", json={"user_id": "ada", "k": 5}) for _ in range(3)]

            return [reply for own in await asyncio.gather(*(one() for _ in range(crowd))) for reply in own]

    def turned_away() -> bool:
        replies = asyncio.run(come())
        assert {reply.status_code for reply in replies} <= {200, 503}
        for reply in replies:
            assert len(reply.headers.get_list("x-request-id")) == 1
            if reply.status_code == 503:
                assert reply.headers["retry-after"] == "1"
                assert reply.json()["status"] == 503
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as metrics:
            return re.search(r'^ray_hymirec_shed_total\{.*where="proxy".*\}', metrics.read().decode(), re.M) is not None

    until(turned_away, 120)
    assert until(lambda: application.recommend(user_id="ada", now=NOW)["reason"] == "full")


def test_a_request_is_one_trace_its_callers_from_the_ingress_to_the_models_thread(
    application: Application, items: list[str]
) -> None:
    application.post(*(event(i, "a-user-named-tess", item) for i, item in enumerate(items[:9])))
    application.history("a-user-named-tess", 9)
    caller, unsampled = "00f067aa0ba902b7", uuid.uuid4().hex

    def ask(trace: str, flags: str) -> dict[str, Any]:
        body = {"user_id": "a-user-named-tess", "k": 7, "now": NOW}
        return application.call("POST", "/v1/recommend", body, traceparent=f"00-{trace}-{caller}-{flags}").body

    def full() -> tuple[str, dict[str, Any]] | None:
        reply = ask(trace := uuid.uuid4().hex, "01")
        return (trace, reply) if reply["reason"] == "full" else None

    ask(unsampled, "00")
    trace, reply = until(full)
    model, store = (
        [f"replica_handle_request {call}", f"route_to_replica {call}"]
        for call in ("Recommender recommend", "HistoryWriter snapshot")
    )
    wanted = {"POST /v1/recommend", "history", *store, "recommender", *model, "wait", "model", "index"}

    def look() -> dict[str, dict[str, Any]] | None:
        found = [span for span in application.spans() if span["context"]["trace_id"] == f"0x{trace}"]
        named = {span["name"]: span for span in found}
        return named if wanted <= set(named) else None

    named = until(look)
    by_id = {span["context"]["span_id"]: name for name, span in named.items()}

    def above(name: str) -> list[str]:
        names = []
        while (parent := named[name]["parent_id"]) in by_id:
            names.append(name := by_id[parent])
        return [*names, parent]

    outside = ["POST /v1/recommend", f"0x{caller}"]
    for part in ("wait", "model", "index"):
        assert above(part) == [*model, "recommender", *outside]
    assert above(store[0]) == [store[1], "history", *outside]
    told = named["POST /v1/recommend"]["attributes"]
    assert (told["hymirec.bundle"], told["hymirec.reason"], told["hymirec.k"]) == (reply["bundle"], "full", 7)
    everything = application.spans()
    assert "tess" not in json.dumps(everything)
    assert unsampled not in json.dumps(everything)
    # Without a caller that samples, nothing begins a trace here: no request, no refresh, no question how it stands.
    assert [span["name"] for span in everything if span["parent_id"] is None] == []


def test_nothing_of_this_application_listens_beyond_loopback(application: Application) -> None:
    port = int(application.url.rpartition(":")[2])
    listening: dict[int, set[tuple[str, int]]] = {}
    for process in psutil.Process().children(recursive=True):
        try:
            ports = {tuple(c.laddr) for c in process.net_connections("tcp") if c.status == psutil.CONN_LISTEN}
        except psutil.Error:
            continue
        listening[process.pid] = {(str(host), int(number)) for host, number in ports}
    assert {host for ports in listening.values() for host, number in ports if number == port} == {"127.0.0.1"}

    @serve.deployment(ray_actor_options={"num_cpus": 0})
    class Bare:
        """What Ray itself opens for any replica."""

        def listeners(self) -> int:
            return sum(c.status == psutil.CONN_LISTEN for c in psutil.Process().net_connections("tcp"))

    own = serve.run(Bare.bind(), name="bare", route_prefix=None).listeners.remote().result(timeout_s=60)
    serve.delete("bare")
    replicas = [pid for name in ("Recommender", "HistoryWriter") for pid in application.processes(name)]
    assert len(replicas) == 3
    assert {len(listening[pid]) for pid in replicas} == {own}


def test_bad_requests_are_problems_and_cost_nothing(application: Application, items: list[str]) -> None:
    for status, method, path, body in (
        (400, "POST", "/v1/recommend", b"{"),
        (422, "POST", "/v1/recommend", {"user_id": "ada", "k": 0}),
        (422, "POST", "/v1/recommend", {"user_id": "ada", "k": 10_000}),
        (413, "POST", "/v1/events", b" " * (1 << 21)),
        (404, "GET", "/v1/items/none", None),
        (404, "GET", "/v2/anything", None),
        (405, "PUT", "/v1/recommend", b"{}"),
        (409, "POST", "/v1/admin/bundle", {"path": "nowhere"}),
    ):
        reply = application.call(method, path, body)
        assert (reply.status, reply.kind) == (status, "application/problem+json"), (path, reply)
        assert reply.body["status"] == status
    everything = application.recommend(history=items[:2], k=500)
    assert len(everything["items"]) == len(items) - 2
    assert application.call("GET", "/readyz").status == 200


def test_an_erased_user_is_gone(application: Application, items: list[str]) -> None:
    application.post(*(event(i, "eve", item) for i, item in enumerate(items[:9])))
    application.history("eve", 9)
    assert application.call("DELETE", "/v1/users/eve").status == 202
    assert application.history("eve", 0) == []
    assert application.recommend(user_id="eve")["reason"] == "cold_start"


def test_a_swap_reaches_every_replica_and_a_damaged_bundle_none(
    application: Application, bundle: Path, tmp_path: Path
) -> None:
    old = application.recommend(user_id="ada")["bundle"]
    damaged = another_release(bundle, tmp_path / "damaged", "damaged")
    with (damaged / "recommender" / "model.safetensors").open("r+b") as f:
        f.seek(-1, os.SEEK_END)
        f.write(b"\x7f")
    refused = application.call("POST", "/v1/admin/bundle", {"path": str(damaged)})
    assert (refused.status, refused.kind) == (409, "application/problem+json")
    assert "model.safetensors is damaged" in refused.body["detail"]
    assert {application.recommend(user_id="ada")["bundle"] for _ in range(10)} == {old}
    release = another_release(bundle, Path(application.config.bundle).parent / "released")
    new = read_manifest(release).id
    swapped = application.call("POST", "/v1/admin/bundle", {"path": str(release)})
    assert (swapped.status, swapped.body) == (200, {"bundle": new, "previous": old})
    assert {application.recommend(user_id="ada")["bundle"] for _ in range(20)} == {new}


def test_killed_replicas_fail_no_request_and_lose_and_double_no_event(
    application: Application, items: list[str]
) -> None:
    assert len(application.processes("Recommender")) == 2
    bundle = application.recommend(user_id="ada")["bundle"]
    stop, replies = threading.Event(), []

    def keep_asking() -> None:
        while not stop.is_set():
            replies.append(application.call("POST", "/v1/recommend", {"user_id": "ada", "k": 5, "now": NOW}))

    asking = threading.Thread(target=keep_asking)
    asking.start()
    try:
        application.post(*(event(i, "kim", item) for i, item in enumerate(items[:30])))
        os.kill(application.processes("HistoryWriter")[0], signal.SIGKILL)
        os.kill(application.processes("Recommender")[0], signal.SIGKILL)
        for i in range(30, 60, 5):
            # Each event twice, as a client sends it that got no answer.
            for _ in range(2):
                application.post(*(event(j, "kim", items[j]) for j in range(i, i + 5)))
        assert application.history("kim", 60) == items[:60]
        until(lambda: len(application.processes("Recommender")) == 2, 120)
    finally:
        stop.set()
        asking.join()
    assert {reply.status for reply in replies} == {200}
    assert {reply.body["reason"] for reply in replies} <= {"full", "cached_coarse", "popular"}
    assert {reply.body["bundle"] for reply in replies} == {bundle}
    assert until(lambda: application.recommend(user_id="ada", now=NOW)["reason"] == "full")


def test_a_restart_loses_and_doubles_nothing_and_keeps_the_release(application: Application, items: list[str]) -> None:
    bundle = application.recommend(user_id="ada")["bundle"]
    application.post(*(event(i, "lea", item) for i, item in enumerate(items[:8])))
    application.history("lea", 8)
    # Not waited for: what is in the log when the service stops is applied when it is back.
    application.post(*(event(i, "lea", items[i]) for i in range(4, 16)))
    stop_local()
    application.start()
    assert application.history("lea", 16) == items[:16]
    assert application.history("ada", 20) == items[:20]
    assert application.recommend(user_id="ada")["bundle"] == bundle

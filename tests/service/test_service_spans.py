"""One trace a request: its parts, what they are called, and what they never hold."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import subprocess
import sys
import threading
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode, format_span_id, format_trace_id
from service_kit import BASE_TS, LocalService, Recorder, event, service_config

from hymirec import HyMiRec
from hymirec.answers import Query, Recommendations
from hymirec.catalog.keys import item_keys
from hymirec.errors import StageUnavailableError
from hymirec.service import spans
from hymirec.service.line import Line
from hymirec.service.logs import JsonFormatter
from hymirec.service.stages import RankerStage
from hymirec.telemetry import BATCH_REQUESTS

NOW = BASE_TS + 1_000
TRACE, CALLER = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SAMPLED, UNSAMPLED = (f"00-{TRACE}-{CALLER}-{flag}" for flag in ("01", "00"))


class Broken:
    """A ranker that dies with every call for a recommendation, after the first ones."""

    def __init__(self, ranker: RankerStage) -> None:
        self._ranker, self.dies = ranker, False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ranker, name)

    async def recommend(self, query: Query) -> Recommendations:
        if self.dies:
            raise StageUnavailableError("it died with the history of a-user-named-ada")
        return await self._ranker.recommend(query)


@pytest.fixture(scope="module")
def exporter() -> Iterator[InMemorySpanExporter]:
    """What was told, while tracing is on in this process."""
    kept, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(kept))
    spans.start_spans(provider)
    yield kept
    spans.start_spans(None)


@pytest.fixture(scope="module")
def items(bundle: Path) -> list[str]:
    catalog = HyMiRec.from_pretrained(bundle).bundle.catalog
    return [str(catalog.item_id(i)) for i in range(catalog.size)]


@pytest.fixture(scope="module")
def traced(
    exporter: InMemorySpanExporter, bundle: Path, items: list[str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LocalService]:
    directory = tmp_path_factory.mktemp("traced")
    service = LocalService(service_config(bundle, directory), directory, wrap=Broken)
    service.post(*(event(i, "a-user-named-ada", item) for i, item in enumerate(items[:9])))
    service.history("a-user-named-ada", 9)
    yield service
    service.close()


@pytest.fixture
def told(exporter: InMemorySpanExporter) -> InMemorySpanExporter:
    exporter.clear()
    return exporter


def ask(service: LocalService, parent: str | None = SAMPLED, **body: Any) -> dict[str, Any]:
    asked = {"user_id": "a-user-named-ada", "k": 4, "now": NOW} | body
    headers = {} if parent is None else {"traceparent": parent}
    reply = service.call("POST", "/v1/recommend", json=asked, headers=headers)
    assert reply.status_code == 200
    found: dict[str, Any] = reply.json()
    return found


def named(told: InMemorySpanExporter) -> dict[str, ReadableSpan]:
    found = told.get_finished_spans()
    assert len({span.name for span in found}) == len(found)
    return {span.name: span for span in found}


def above(found: dict[str, ReadableSpan]) -> dict[str, str | None]:
    """Which span each is a part of."""
    names = {span.context.span_id: span.name for span in found.values() if span.context}
    return {name: names.get(span.parent.span_id) if span.parent else None for name, span in found.items()}


def test_a_request_is_one_trace_that_its_caller_began(
    traced: LocalService, told: InMemorySpanExporter, items: list[str]
) -> None:
    request, parts = "POST /v1/recommend", dict.fromkeys(("wait", "coarse", "model", "index"), "recommender")
    ask(traced, user_id=None, history=["an item that is not known", *items[:20]])
    assert above(named(told)) == {request: None, "recommender": request, **parts}
    told.clear()
    reply = ask(traced)
    found = named(told)
    # Coarse interests that are cached are not computed.
    assert above(found) | parts == {request: None, "history": request, "recommender": request, **parts}
    assert {format_trace_id(span.context.trace_id) for span in found.values() if span.context} == {TRACE}
    assert found[request].parent is not None
    assert format_span_id(found[request].parent.span_id) == CALLER
    assert dict(found[request].attributes or {}) == {
        "http.request.method": "POST",
        "http.route": "/v1/recommend",
        "http.response.status_code": 200,
        "hymirec.k": 4,
        "hymirec.bundle": reply["bundle"],
        "hymirec.reason": "full",
        "hymirec.degraded": False,
    }
    assert dict(found["model"].attributes or {}) == {"hymirec.bundle": reply["bundle"], "hymirec.batch_requests": 1}


def test_the_parts_lie_within_the_request_one_after_the_other(traced: LocalService, told: InMemorySpanExporter) -> None:
    ask(traced)
    found = named(told)
    order = [found[name] for name in ("history", "wait", "model", "index")]
    times = [time for span in order for time in (span.start_time or 0, span.end_time or 0)]
    # Parts of a pass are dated back from their end, by two clocks.
    assert all(earlier <= later + 10_000_000 for earlier, later in pairwise(times))
    assert (found["POST /v1/recommend"].start_time or 0) <= times[0]
    assert times[-1] <= (found["POST /v1/recommend"].end_time or 0)


@pytest.mark.parametrize("parent", [None, "", "00-zero-zero-01", f"00-{'0' * 32}-{CALLER}-01"])
def test_without_a_fit_traceparent_a_request_begins_a_trace(
    traced: LocalService, told: InMemorySpanExporter, parent: str | None
) -> None:
    ask(traced, parent)
    found = told.get_finished_spans()
    assert len({span.context.trace_id for span in found if span.context}) == 1
    assert [span.name for span in found if span.parent is None] == ["POST /v1/recommend"]


def test_what_the_caller_does_not_sample_is_not_told(
    traced: LocalService, told: InMemorySpanExporter, lines: io.StringIO
) -> None:
    ask(traced, UNSAMPLED)
    assert told.get_finished_spans() == ()
    assert {line["trace_id"] for line in written(lines, "recommended", "request")} == {TRACE}


def test_lines_of_a_request_carry_the_id_of_its_trace_beside_its_own(
    traced: LocalService, told: InMemorySpanExporter, lines: io.StringIO
) -> None:
    ask(traced, None)
    (trace,) = {format_trace_id(span.context.trace_id) for span in told.get_finished_spans() if span.context}
    found = written(lines, "recommended", "request")
    assert [line["trace_id"] for line in found] == [trace, trace]
    assert all(line["request_id"] for line in found)


def test_no_span_holds_a_user_a_token_or_a_text(traced: LocalService, told: InMemorySpanExporter) -> None:
    ask(traced)
    secret = {"authorization": "Bearer a-token-named-ada"}
    for method, path in (
        ("GET", "/v1/users/a-user-named-ada/history"),
        ("GET", "/v1/items?q=a-text-named-ada"),
        ("GET", "/v1/items/an-item-named-ada"),
        ("DELETE", "/v1/users/another-user-named-ada"),
    ):
        traced.call(method, path, headers=secret)
    found = told.get_finished_spans()
    assert {"GET /v1/users", "GET /v1/items", "DELETE /v1/users"} <= {span.name for span in found}
    assert [span.name for span in found if "named-ada" in span.to_json()] == []


def test_a_lesser_answer_says_why_and_an_error_its_type_alone(traced: LocalService, told: InMemorySpanExporter) -> None:
    ranker: Any = traced.frontend._ranker
    ranker.dies = True
    try:
        assert ask(traced)["reason"] == "popular"
    finally:
        ranker.dies = False
    attributes = named(told)["POST /v1/recommend"].attributes or {}
    assert (attributes["hymirec.reason"], attributes["hymirec.degraded"]) == ("popular", True)
    told.clear()
    assert (
        traced.call("POST", "/v1/events", json={"event_id": "e", "user_id": "ada", "item_id": "i"}).status_code == 422
    )
    assert named(told)["POST /v1/events"].status.status_code is StatusCode.UNSET
    told.clear()
    with pytest.raises(StageUnavailableError), spans.span("history"):
        raise StageUnavailableError("it died with the history of a-user-named-ada")
    (failed,) = told.get_finished_spans()
    assert (failed.attributes or {})["error.type"] == "StageUnavailableError"
    assert failed.status.status_code is StatusCode.ERROR
    assert "named-ada" not in failed.to_json()


def test_requests_of_one_pass_are_told_of_it_each_in_its_own_trace(
    exporter: InMemorySpanExporter, told: InMemorySpanExporter, bundle: Path
) -> None:
    model, heard, go = HyMiRec.from_pretrained(bundle), Recorder(), threading.Event()
    model.meter = spans.traced(heard)
    keys = item_keys(model.bundle.catalog.item_id(i) for i in range(9))
    line = Line(10_000, observe=heard)
    held = threading.Thread(target=lambda: line.first(go.wait))
    held.start()

    async def one(number: int) -> Recommendations:
        with spans.request_span(f"request {number}", {}):
            return await line.recommend(model, Query(keys, np.arange(9) + BASE_TS, 3, NOW, keys[:0]))

    async def all_of_them() -> None:
        tasks = [asyncio.ensure_future(one(number)) for number in range(3)]
        # Work of no request, as a near-line refresh is.
        tasks.append(asyncio.ensure_future(line.run(lambda: model.coarse_keys(keys, np.arange(9), NOW), 60)))
        await asyncio.sleep(0.05)
        go.set()
        held.join()
        await asyncio.gather(*tasks)

    asyncio.run(all_of_them())
    line.close()
    assert heard.of(BATCH_REQUESTS) == [3]
    by_trace: dict[int, dict[str, ReadableSpan]] = {}
    for span in told.get_finished_spans():
        assert span.context is not None
        by_trace.setdefault(span.context.trace_id, {})[span.name] = span
    assert len(by_trace) == 3
    for parts in by_trace.values():
        assert set(parts) >= {"wait", "coarse", "model", "index"}
        assert (parts["model"].attributes or {})["hymirec.batch_requests"] == 3
        assert (parts["model"].start_time, parts["model"].end_time) == (
            by_trace[next(iter(by_trace))]["model"].start_time,
            by_trace[next(iter(by_trace))]["model"].end_time,
        )


OFF = """
import sys
from hymirec.config import ServiceConfig
# Not `api`: FastAPI itself imports it.
from hymirec.service import frontend, guard, logs, ranker, trace, writer
from hymirec.service.spans import annotate, behalf, here, past, request_span, span, trace_id, traced
from hymirec.telemetry import unobserved
with request_span("r", {b"traceparent": b"00-x"}), span("s"), behalf([here()]):
    annotate(k=1)
    past("wait", 1.0, [here()])
assert traced(unobserved) is unobserved
assert trace_id() == ""
from serve_apps.tracing import start_tracing, traced_replicas
config = ServiceConfig(bundle="b", history={"path": "h"}, stream={"path": "l"})
start_tracing(config)
assert traced_replicas(config) == {}
print(sorted(name for name in sys.modules if name.startswith("opentelemetry")))
"""


def test_off_nothing_is_told_and_opentelemetry_is_not_imported() -> None:
    ran = subprocess.run([sys.executable, "-c", OFF], capture_output=True, text=True, timeout=300, check=False)
    assert (ran.returncode, ran.stdout) == (0, "[]\n"), ran.stderr


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    """Lines of JSON of this library, while a test runs."""
    logger, handler = logging.getLogger("hymirec"), logging.StreamHandler(kept := io.StringIO())
    handler.setFormatter(JsonFormatter())
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield kept
    logger.removeHandler(handler)
    logger.setLevel(level)


def written(lines: io.StringIO, *messages: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in lines.getvalue().splitlines()]
    return [line for line in found if line["message"] in messages]

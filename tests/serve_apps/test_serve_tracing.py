"""What is switched on in replicas, where spans go, and what is taken out of Ray's own."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode
from ray.serve._private import constants, tracing_utils

from hymirec.config import ServiceConfig
from hymirec.errors import ConfigError
from serve_apps import exporters
from serve_apps.app import build
from serve_apps.exporters import Discreet, provider, span_processors
from serve_apps.tracing import EXPORTER, RATIO, start_tracing, trace_proxies, traced_replicas

ARGS: dict[str, Any] = {"bundle": "b", "history": {"path": "h"}, "stream": {"path": "l"}}


@pytest.fixture
def variables(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """`OTEL_*` as a test sets them, read anew."""
    for name in ("OTEL_TRACES_EXPORTER", "OTEL_EXPORTER_OTLP_PROTOCOL", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"):
        monkeypatch.delenv(name, raising=False)
    cached = (exporters._processors, exporters.provider)
    for found in cached:
        found.cache_clear()
    yield monkeypatch
    for processor in exporters._processors() if exporters._processors.cache_info().currsize else ():
        processor.shutdown()
    for found in cached:
        found.cache_clear()


def test_every_deployment_is_traced_by_ray_where_it_is_configured_and_none_where_it_is_not() -> None:
    environments = {}
    for tracing in (True, False):
        ingress = build(ARGS | {"tracing": tracing})
        bound = ingress._bound_deployment
        recommender, writer = bound.init_args[2:]
        for deployment in (bound, recommender._bound_deployment, writer._bound_deployment):
            found = (deployment.ray_actor_options or {}).get("runtime_env", {}).get("env_vars", {})
            environments[deployment.name, tracing] = found
    for name in ("Ingress", "Recommender", "HistoryWriter"):
        assert environments[name, True] == dict([EXPORTER, (RATIO, "0")])
        assert environments[name, False] == {}


def test_the_variables_are_those_that_this_ray_reads_and_name_a_function_that_it_takes(
    variables: pytest.MonkeyPatch,
) -> None:
    source = Path(constants.__file__).read_text()
    assert all(f'"{name}"' in source for name in (EXPORTER[0], RATIO))
    variables.setenv("OTEL_TRACES_EXPORTER", "console")
    assert tracing_utils._load_span_processors(EXPORTER[1], "unused.json") == span_processors()


def test_a_ray_that_is_started_here_traces_its_proxies_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    told = {EXPORTER[0]: "another:exporter", RATIO: "0.5"}
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    trace_proxies()
    assert {name: os.environ[name] for name in told} == told
    for name in told:
        monkeypatch.delenv(name)
    trace_proxies()
    assert {name: os.environ[name] for name in told} == dict([EXPORTER, (RATIO, "1")])


def test_spans_of_ours_and_of_ray_go_through_the_same_processors(variables: pytest.MonkeyPatch) -> None:
    variables.setenv("OTEL_TRACES_EXPORTER", "console, none")
    (processor,) = span_processors()
    assert span_processors() == [processor]
    assert list(provider()._active_span_processor._span_processors) == [processor]


def test_an_exporter_that_is_not_installed_is_named_with_what_to_install(variables: pytest.MonkeyPatch) -> None:
    variables.setenv("OTEL_TRACES_EXPORTER", "carrier-pigeon")
    with pytest.raises(ConfigError, match=r"no exporter carrier-pigeon is installed; pip install 'hymirec\[tracing\]'"):
        span_processors()
    variables.setenv("OTEL_TRACES_EXPORTER", "otlp")
    variables.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "smoke-signals")
    with pytest.raises(ConfigError, match="no exporter smoke-signals is installed"):
        start_tracing(ServiceConfig(**ARGS, tracing=True))


def test_without_the_sdk_a_traced_application_is_refused_before_anything_starts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(ConfigError, match=r"pip install 'hymirec\[tracing\]'"):
        traced_replicas(ServiceConfig(**ARGS, tracing=True))


def test_what_ray_tells_of_a_request_ends_at_its_route() -> None:
    kept, source = InMemorySpanExporter(), TracerProvider()
    source.add_span_processor(SimpleSpanProcessor(Discreet(kept)))
    path = "/v1/users/ada of\nlondon/history"
    tracer = source.get_tracer("ray")
    attributes = {"request_route_path": path, "http.route": path, "http.status_code": 500, "app": "hymirec"}
    with tracer.start_as_current_span(f"proxy_http_request Ingress GET {path}", attributes=attributes) as span:
        span.record_exception(ValueError("ada has no history"))
        span.set_status(StatusCode.ERROR, "ada has no history")
    (found,) = kept.get_finished_spans()
    assert isinstance(found, ReadableSpan)
    assert "ada " not in found.to_json()
    assert found.name == "proxy_http_request Ingress GET /v1/users"
    assert dict(found.attributes or {}) == {
        "request_route_path": "/v1/users",
        "http.route": "/v1/users",
        "http.status_code": 500,
        "app": "hymirec",
    }
    assert found.status.status_code is StatusCode.ERROR
    assert [dict(event.attributes or {}) for event in found.events] == [{"exception.type": "ValueError"}]
    (ids, told) = (json.loads(found.to_json())["context"], span.get_span_context())
    assert int(ids["trace_id"], 16) == told.trace_id

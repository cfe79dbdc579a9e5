"""Where spans go: exporters of OpenTelemetry, chosen by its own variables (`OTEL_*`), for Ray's spans and for ours."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Sequence
from importlib.metadata import entry_points

from opentelemetry.sdk.trace import Event, ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import Status

from hymirec.errors import ConfigError

GROUP = "opentelemetry_traces_exporter"
PROTOCOLS = {"grpc": "otlp_proto_grpc", "http/protobuf": "otlp_proto_http"}
EXCEPTION_TYPE = "exception.type"
# The first two parts of a path name the route; what follows may name a user.
BEYOND_ROUTE = re.compile(r"(/[^/\s]+/[^/\s]+)/.*", re.DOTALL)


def span_processors() -> list[SpanProcessor]:
    """What Ray calls in each process that it traces. Raises ConfigError for an exporter that is not installed."""
    return list(_processors())


@functools.cache
def provider() -> TracerProvider:
    """For spans of ours. Sampled as `OTEL_TRACES_SAMPLER` says, else as the caller decided, and all of its own."""
    # Ray's provider, which has the same processors, ends them.
    made = TracerProvider(shutdown_on_exit=False)
    for processor in _processors():
        made.add_span_processor(processor)
    return made


@functools.cache
def _processors() -> tuple[SpanProcessor, ...]:
    names = os.environ.get("OTEL_TRACES_EXPORTER", "otlp").split(",")
    return tuple(BatchSpanProcessor(Discreet(_exporter(name.strip()))) for name in names if name.strip() != "none")


def _exporter(name: str) -> SpanExporter:
    protocol = os.environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or os.environ.get("OTEL_EXPORTER_OTLP_PROTOCOL")
    wanted = PROTOCOLS.get(protocol or "http/protobuf", protocol) if name == "otlp" else name
    found = list(entry_points(group=GROUP, name=str(wanted)))
    if not found:
        raise ConfigError(
            f"OTEL_TRACES_EXPORTER={name}: no exporter {wanted} is installed; pip install 'hymirec[tracing]' brings "
            "otlp over http/protobuf, and console is always there"
        )
    made: SpanExporter = found[0].load()()
    return made


class Discreet(SpanExporter):
    """Takes out what spans of Ray tell of a request: the path beyond its route, messages and tracebacks of errors."""

    def __init__(self, exporter: SpanExporter) -> None:
        self._exporter = exporter

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """See `SpanExporter`."""
        return self._exporter.export([discreet(span) for span in spans])

    def shutdown(self) -> None:
        """See `SpanExporter`."""
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """See `SpanExporter`."""
        return self._exporter.force_flush(timeout_millis)


def discreet(span: ReadableSpan) -> ReadableSpan:
    """The same span, less what may name a user or hold a text."""
    attributes = span.attributes or {}
    events = [
        Event(event.name, {EXCEPTION_TYPE: (event.attributes or {}).get(EXCEPTION_TYPE, "")}, event.timestamp)
        for event in span.events
    ]
    return ReadableSpan(
        name=_route(span.name),
        context=span.get_span_context(),
        parent=span.parent,
        resource=span.resource,
        attributes={name: _route(value) if isinstance(value, str) else value for name, value in attributes.items()},
        events=events,
        links=span.links,
        kind=span.kind,
        status=Status(span.status.status_code),
        start_time=span.start_time,
        end_time=span.end_time,
        instrumentation_scope=span.instrumentation_scope,
    )


def _route(text: str) -> str:
    return BEYOND_ROUTE.sub(r"\1", text)

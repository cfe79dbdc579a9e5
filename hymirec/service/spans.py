"""Spans: where the time of a request goes, told to OpenTelemetry where `tracing` is on. Off, nothing is imported.

Ray Serve makes the spans of proxy, handles and replicas and hands the trace from one to the next; here are the parts
within them, and the join to what the caller sent (W3C `traceparent`). Who exports them comes from outside, as with
metrics. The requests of one pass of the model are in as many traces, so its parts are told to each of them, afterwards.

No attribute holds an id of a user, a token or a text, and an error is told by its type alone.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import TYPE_CHECKING

from hymirec.telemetry import STAGE_SECONDS, Metric, Observe

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import Span, Tracer, TracerProvider

Value = str | bool | int | float
SCOPE = "hymirec"
JOINED = ("traceparent", "tracestate")
_tracer: Tracer | None = None
# Whom the model's thread works for, and what is to be said of the pass.
_pass: ContextVar[tuple[Sequence[Context | None], Mapping[str, Value]]] = ContextVar("pass", default=((), {}))


def start_spans(provider: TracerProvider | None) -> None:
    """From now on this process gives its spans to a provider; None: to nobody."""
    global _tracer
    _tracer = None if provider is None else provider.get_tracer(SCOPE)


def span(name: str) -> AbstractContextManager[None]:
    """A part of what is going on here."""
    return nullcontext() if _tracer is None else _within(_tracer, name)


def request_span(name: str, headers: Mapping[bytes, bytes]) -> AbstractContextManager[None]:
    """A request of HTTP: part of the trace that is going on here, else of its caller's, else a trace of its own."""
    return nullcontext() if _tracer is None else _within(_tracer, name, _callers(headers), served=True)


def annotate(**attributes: Value) -> None:
    """Say something of the span that is going on here, as `hymirec.NAME`."""
    if _tracer is not None:
        _current().set_attributes(_named(attributes))


def annotate_http(method: str, route: str, status: int) -> None:
    """Say of a request what OpenTelemetry has names for; `status` 0 is none, a caller who went."""
    if _tracer is None:
        return
    from opentelemetry.trace import StatusCode

    found = _current()
    found.set_attributes({"http.request.method": method, "http.route": route})
    if status:
        found.set_attribute("http.response.status_code", status)
    if status >= 500:
        found.set_status(StatusCode.ERROR)


def trace_id() -> str:
    """Id of the trace that is going on here, 32 hexadecimal digits; empty where there is none."""
    if _tracer is None:
        return ""
    from opentelemetry.trace import format_trace_id

    context = _current().get_span_context()
    return format_trace_id(context.trace_id) if context.is_valid else ""


def here() -> Context | None:
    """What another thread needs to tell of its work for the request that is going on here."""
    if _tracer is None or not _current().is_recording():
        return None
    from opentelemetry.context import get_current

    return get_current()


def past(name: str, seconds: float, contexts: Sequence[Context | None], **attributes: Value) -> None:
    """A part, over just now, of each of these requests."""
    if _tracer is None:
        return
    end = time.time_ns()
    for context in contexts:
        if context is not None:
            begun = end - int(seconds * 1e9)
            _tracer.start_span(name, context, attributes=_named(attributes), start_time=begun).end(end)


def behalf(contexts: Sequence[Context | None], **attributes: Value) -> AbstractContextManager[None]:
    """What `traced` tells within is told to these requests."""
    return nullcontext() if _tracer is None else _for(contexts, attributes)


def traced(observe: Observe) -> Observe:
    """Tells as spans, too, how long the parts of a pass took, to those on whose behalf it is (`behalf`)."""
    if _tracer is None:
        return observe

    def both(metric: Metric, value: float, **labels: str) -> None:
        observe(metric, value, **labels)
        if metric is STAGE_SECONDS:
            contexts, attributes = _pass.get()
            past(labels["stage"], value, contexts, **attributes)

    return both


def _current() -> Span:
    from opentelemetry.trace import get_current_span

    return get_current_span()


def _named(attributes: Mapping[str, Value]) -> dict[str, Value]:
    return {f"{SCOPE}.{name}": value for name, value in attributes.items()}


def _callers(headers: Mapping[bytes, bytes]) -> Context | None:
    """What the caller's headers say, unless this request is in a trace already."""
    if _current().get_span_context().is_valid:
        return None
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carrier = {name: headers[name.encode()].decode("latin-1") for name in JOINED if name.encode() in headers}
    return TraceContextTextMapPropagator().extract(carrier)


@contextmanager
def _for(contexts: Sequence[Context | None], attributes: Mapping[str, Value]) -> Iterator[None]:
    before = _pass.set((contexts, attributes))
    try:
        yield
    finally:
        _pass.reset(before)


@contextmanager
def _within(tracer: Tracer, name: str, parent: Context | None = None, served: bool = False) -> Iterator[None]:
    from opentelemetry.trace import SpanKind, StatusCode

    kind = SpanKind.SERVER if served else SpanKind.INTERNAL
    with tracer.start_as_current_span(name, parent, kind, record_exception=False, set_status_on_exception=False) as own:
        try:
            yield
        except Exception as e:
            # Its message may hold what the request said.
            own.set_attribute("error.type", type(e).__name__)
            own.set_status(StatusCode.ERROR)
            raise

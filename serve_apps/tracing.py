"""Tracing of the application: Ray Serve's own, switched on in the replicas, and spans of ours within it.

Ray 2.60 reads its tracing from two environment variables, in every process of Serve for itself. Replicas get them with
the application; a proxy has them only when they are in the environment of its node (Ray's `TracingConfig` reaches
replicas, not proxies). So the ingress joins what the caller sent by itself, and a proxy is one span more where it can.
"""

from __future__ import annotations

import os
from typing import Any

from hymirec.config import ServiceConfig
from hymirec.errors import ConfigError
from hymirec.service.spans import start_spans

# Not an import: it needs OpenTelemetry's SDK.
EXPORTER = "RAY_SERVE_TRACING_EXPORTER_IMPORT_PATH", "serve_apps.exporters:span_processors"
RATIO = "RAY_SERVE_TRACING_SAMPLING_RATIO"


def traced_replicas(config: ServiceConfig) -> dict[str, Any]:
    """What goes into `ray_actor_options`. Raises ConfigError where OpenTelemetry's SDK is not installed.

    A replica begins no trace by itself, hence the ratio: what has no parent there is a request whose proxy is not
    traced, or was not sampled, and which the ingress decides about; or work of no request.
    """
    if not config.tracing:
        return {}
    try:
        import opentelemetry.sdk.trace  # noqa: F401
    except ImportError as e:
        raise ConfigError(f"tracing needs OpenTelemetry ({e}); pip install 'hymirec[tracing]'") from e
    return {"runtime_env": {"env_vars": {EXPORTER[0]: EXPORTER[1], RATIO: "0"}}}


def trace_proxies() -> None:
    """Let a Ray that this process starts from now on trace proxies, all their requests, unless told otherwise."""
    os.environ.setdefault(*EXPORTER)
    os.environ.setdefault(RATIO, "1")


def start_tracing(config: ServiceConfig) -> None:
    """In a replica, before anything else: spans of ours go where Ray's go."""
    if config.tracing:
        from serve_apps.exporters import provider

        start_spans(provider())

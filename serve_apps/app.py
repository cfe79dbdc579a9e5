"""The Serve application. `import_path: serve_apps.app:build`, `args:` are a ServiceConfig as plain values."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ray.serve import Application

from hymirec.config import ServiceConfig, parse
from hymirec.service.guard import read_tokens
from serve_apps.history_writer import HistoryWriter
from serve_apps.ingress import Ingress
from serve_apps.recommender import Recommender
from serve_apps.scaling import recommenders, writers
from serve_apps.tracing import traced_replicas

HEALTH = {"health_check_period_s": 5, "health_check_timeout_s": 15, "graceful_shutdown_timeout_s": 15}
# The ingress and the writer mostly wait; the recommender computes.
LITTLE = {"num_cpus": 0.1}


def build(args: dict[str, Any]) -> Application:
    """Wire the three deployments. Raises ConfigError before anything starts."""
    base = home()
    config = placed(parse(ServiceConfig, args, "args of the application"), base)
    if config.token_file:
        read_tokens(config.token_file)
    limits, traced = config.limits, traced_replicas(config)
    queue = {
        "max_ongoing_requests": limits.max_ongoing_requests,
        "max_queued_requests": limits.max_queued_requests,
    }
    recommender = Recommender.options(
        **queue,
        **HEALTH,
        ray_actor_options={"num_cpus": config.threads, **traced},
        num_replicas=None,
        autoscaling_config=recommenders(config),
    ).bind(config)
    scaled = writers(config)
    writer = HistoryWriter.options(
        **queue,
        **HEALTH,
        ray_actor_options={**LITTLE, **traced},
        num_replicas=config.writer_replicas if scaled is None else None,
        autoscaling_config=scaled,
    ).bind(config, recommender)
    # The guard inside the ingress turns requests away, with Retry-After, well before Serve would without it.
    most = 4 * (limits.max_ongoing_requests + limits.max_queued_requests)
    ingress = Ingress.options(
        **HEALTH,
        ray_actor_options={**LITTLE, **traced},
        max_ongoing_requests=most,
        max_queued_requests=most,
    )
    return ingress.bind(config, str(base), recommender, writer)


def home() -> Path:
    """What relative paths are relative to: $HYMIREC_HOME, else the current directory."""
    return Path(os.environ.get("HYMIREC_HOME", Path.cwd())).expanduser().absolute()


def placed(config: ServiceConfig, base: Path) -> ServiceConfig:
    """The config with absolute paths: replicas run in other directories than the one they were deployed from."""

    def absolute(path: str | None) -> str | None:
        return None if path is None else str(base / Path(path).expanduser())

    history = config.history.model_copy(update={"path": absolute(config.history.path)})
    stream = config.stream.model_copy(update={"path": absolute(config.stream.path)})
    moved = {"bundle": absolute(config.bundle), "token_file": absolute(config.token_file)}
    return config.model_copy(update={"history": history, "stream": stream, **moved})

"""The Serve application. `import_path: serve_apps.app:build`, `args:` are a ServiceConfig as plain values."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ray.serve import Application
from ray.serve.config import AutoscalingConfig

from hymirec.config import HistoryConfig, ServiceConfig, StreamConfig, parse
from serve_apps.history_writer import HistoryWriter
from serve_apps.ingress import Ingress
from serve_apps.recommender import Recommender

HEALTH = {"health_check_period_s": 5, "health_check_timeout_s": 10, "graceful_shutdown_timeout_s": 10}


def build(args: dict[str, Any]) -> Application:
    """Wire the three deployments. Raises ConfigError before anything starts."""
    config = placed(parse(ServiceConfig, args, "args of the application"))
    limits = config.limits
    queue = {
        "max_ongoing_requests": limits.max_ongoing_requests,
        "max_queued_requests": limits.max_queued_requests,
    }
    recommender = Recommender.options(
        **queue,
        **HEALTH,
        num_replicas="auto" if config.max_recommender_replicas > config.recommender_replicas else None,
        autoscaling_config=_autoscaling(config),
    )
    writer = HistoryWriter.options(num_replicas=config.writer_replicas, **queue, **HEALTH)
    ingress = Ingress.options(
        **HEALTH,
        # The ingress only waits; what it may have in flight is what those behind it take, run or queued.
        max_ongoing_requests=2 * (limits.max_ongoing_requests + limits.max_queued_requests),
        max_queued_requests=limits.max_queued_requests,
    )
    ranked = recommender.bind(config)
    return ingress.bind(config, ranked, writer.bind(config, ranked))


def _autoscaling(config: ServiceConfig) -> AutoscalingConfig | None:
    if config.max_recommender_replicas == config.recommender_replicas == 1:
        return None
    return AutoscalingConfig(
        min_replicas=config.recommender_replicas,
        max_replicas=config.max_recommender_replicas,
        target_ongoing_requests=max(1, config.limits.max_ongoing_requests // 2),
        upscale_delay_s=5,
        downscale_delay_s=60,
    )


def placed(config: ServiceConfig) -> ServiceConfig:
    """Relative paths lie under $HYMIREC_HOME, else under the current directory; replicas run elsewhere."""
    base = Path(os.environ.get("HYMIREC_HOME", Path.cwd()))

    def absolute(path: str | None) -> str | None:
        return None if path is None else str(base / Path(path).expanduser())

    history: HistoryConfig = config.history.model_copy(update={"path": absolute(config.history.path)})
    stream: StreamConfig = config.stream.model_copy(update={"path": absolute(config.stream.path)})
    return config.model_copy(
        update={
            "bundle": absolute(config.bundle),
            "history": history,
            "stream": stream,
            "token_file": absolute(config.token_file),
        }
    )

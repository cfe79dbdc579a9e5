"""The ingress deployment: HTTP in, two deployments behind it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ray import serve
from ray.serve import metrics
from ray.serve.handle import DeploymentHandle

from hymirec.config import ServiceConfig
from hymirec.service.api import create_api
from hymirec.service.frontend import Frontend
from serve_apps.stages import RankerHandle, WriterHandle

BOUNDARIES_MS = [2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0, 5000.0]


@serve.deployment
@serve.ingress()
class Ingress:
    """Thin, so that it does not die: state and model are elsewhere, and calls that died with a replica are repeated."""

    def __init__(
        self, config: ServiceConfig, base: str, recommender: DeploymentHandle, writer: DeploymentHandle
    ) -> None:
        self._config = config
        self._latency = metrics.Histogram(
            "hymirec_recommend_latency_ms",
            "Time of a recommendation, by the rung of the ladder it came from.",
            boundaries=BOUNDARIES_MS,
            tag_keys=("reason",),
        )
        ranker, histories = RankerHandle("recommender", recommender), WriterHandle("history writer", writer)
        self._frontend = Frontend(config, ranker, histories, Path(base), self._observe)

    def _observe(self, reason: str, seconds: float) -> None:
        self._latency.observe(1000 * seconds, tags={"reason": reason})

    def __serve_build_asgi_app__(self) -> Any:
        """Serve calls this in the replica, after the constructor."""
        return create_api(self._frontend, self._config)

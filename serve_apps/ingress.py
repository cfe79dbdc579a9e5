"""The ingress deployment: HTTP in, two deployments behind it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ray import serve
from ray.serve.handle import DeploymentHandle

from hymirec.config import ServiceConfig
from hymirec.service.api import create_api
from hymirec.service.frontend import Frontend
from serve_apps.meters import Meters
from serve_apps.replica import begin
from serve_apps.stages import RankerHandle, WriterHandle


@serve.deployment
@serve.ingress()
class Ingress:
    """Thin, so that it does not die: state and model are elsewhere, and calls that died with a replica are repeated."""

    def __init__(
        self, config: ServiceConfig, base: str, recommender: DeploymentHandle, writer: DeploymentHandle
    ) -> None:
        begin(config)
        self._config, self._meters = config, Meters()
        ranker, histories = RankerHandle("recommender", recommender), WriterHandle("history writer", writer)
        self._frontend = Frontend(config, ranker, histories, Path(base), self._meters)

    def __serve_build_asgi_app__(self) -> Any:
        """Serve calls this in the replica, after the constructor."""
        # Serve's proxy answers with the request's id itself.
        return create_api(self._frontend, self._config, self._meters, answer_request_id=False)

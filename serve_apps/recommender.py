"""The recommender deployment: a bundle in memory."""

from __future__ import annotations

import asyncio

from ray import serve

from hymirec.config import ServiceConfig
from hymirec.service.ranker import Ranker
from serve_apps.meters import Meters
from serve_apps.replica import begin


@serve.deployment
class Recommender(Ranker):
    """Stateless but for the bundle; any number of replicas."""

    def __init__(self, config: ServiceConfig) -> None:
        begin(config)
        super().__init__(config, Meters())
        self._following: asyncio.Task[None] | None = None

    async def check_health(self) -> None:
        """Called every few seconds: a replica that missed a swap (it was starting, say) makes up for it beside."""
        self.report()
        if self._following is None or self._following.done():
            self._following = asyncio.create_task(asyncio.to_thread(self.follow))

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Called by Serve every few seconds."""
        return self.stats()

    def __del__(self) -> None:
        # Serve calls this once on an ordinary stop; it also runs for a replica whose constructor failed.
        if hasattr(self, "_pulse"):
            self.close()

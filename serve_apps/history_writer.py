"""The history writer deployment: consumer thread, store, and near-line coarse interests."""

from __future__ import annotations

from ray import serve
from ray.serve.handle import DeploymentHandle

from hymirec.config import ServiceConfig
from hymirec.service.writer import Writer
from serve_apps.meters import Meters
from serve_apps.replica import begin
from serve_apps.stages import RankerHandle


@serve.deployment
class HistoryWriter(Writer):
    """Owns the partitions it is given. Starts where the store says it is, so it may be killed at any time."""

    def __init__(self, config: ServiceConfig, recommender: DeploymentHandle) -> None:
        begin(config)
        rank = serve.get_replica_context().rank.rank
        super().__init__(config.for_writer(rank), RankerHandle("recommender", recommender), Meters())

    async def check_health(self) -> None:
        """A dead or stuck consumer: Serve replaces this replica, and the new one starts at the stored position."""
        self.report()
        self.check()

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Called by Serve every few seconds where the number of writers follows the lag."""
        return self.stats()

    def __del__(self) -> None:
        # Serve calls this once on an ordinary stop; it also runs for a replica whose constructor failed.
        if hasattr(self, "_refresher"):
            self.close()

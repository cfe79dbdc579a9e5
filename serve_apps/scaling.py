"""The autoscalers of `hymirec.service.scaling` as policies of Ray Serve, fed by what replicas record."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

from ray.serve.config import AutoscalingConfig, AutoscalingContext, AutoscalingPolicy

from hymirec.config import ServiceConfig
from hymirec.service.scaling import BUSY, LAG, RecommenderScaling, Work, WriterScaling

# Replicas report every 10 s; older than this they have stopped to.
STALE_SECONDS = 45.0
# Serve asks ten times a second.
STEP_SECONDS = 1.0


def newest(ctx: AutoscalingContext, name: str) -> list[Mapping[str, float]] | None:
    """What each running replica told last; None where one has not told `name`, or not for long."""
    raw = ctx.raw_metrics or {}
    told = []
    for replica in ctx.running_replicas:
        series = raw.get(name, {}).get(replica)
        if not series or series[-1].timestamp < ctx.current_time - STALE_SECONDS:
            return None
        told.append({key: by_replica[replica][-1].value for key, by_replica in raw.items() if by_replica.get(replica)})
    return told


class Policy(ABC):
    """Decides once a second; a policy of Ray Serve."""

    def __init__(self) -> None:
        self._next = 0.0

    def __call__(self, ctx: AutoscalingContext) -> tuple[int, dict[str, object]]:
        """Replicas wanted; no state of Serve's is used."""
        if ctx.current_time < self._next:
            return ctx.target_num_replicas, {}
        self._next = ctx.current_time + STEP_SECONDS
        return self.decide(ctx), {}

    @abstractmethod
    def decide(self, ctx: AutoscalingContext) -> int:
        """Replicas wanted."""


class WriterPolicy(Policy):
    """See `WriterScaling`."""

    def __init__(self, least: int, most: int, catch_up_seconds: float, calm_seconds: float) -> None:
        super().__init__()
        self._scaling = WriterScaling(least, most, catch_up_seconds, calm_seconds)

    def decide(self, ctx: AutoscalingContext) -> int:
        """See `Policy`."""
        told = newest(ctx, LAG)
        work = Work.of(told) if told else None
        return self._scaling.decide(ctx.current_time, ctx.current_num_replicas, ctx.target_num_replicas, work)


class RecommenderPolicy(Policy):
    """See `RecommenderScaling`."""

    def __init__(self, least: int, most: int, ongoing: float, calm_seconds: float) -> None:
        super().__init__()
        self._scaling = RecommenderScaling(least, most, ongoing, calm_seconds)

    def decide(self, ctx: AutoscalingContext) -> int:
        """See `Policy`."""
        busy = None
        if newest(ctx, BUSY) is not None:
            # The mean of the last half minute, of each.
            means = (ctx.aggregated_metrics or {}).get(BUSY, {})
            busy = sum(means.get(replica, 0.0) for replica in ctx.running_replicas)
        running, ongoing = ctx.current_num_replicas, ctx.total_num_requests
        return self._scaling.decide(ctx.current_time, running, ctx.target_num_replicas, busy, ongoing)


def recommenders(config: ServiceConfig) -> AutoscalingConfig:
    """Between the least and the most recommenders, by requests in hand and the time that they take."""
    ongoing = max(1, config.limits.max_ongoing_requests // 2)
    kwargs = {
        "least": config.recommender_replicas,
        "most": config.max_recommender_replicas,
        "ongoing": ongoing,
        "calm_seconds": config.scaling.calm_seconds,
    }
    return _autoscaling(RecommenderPolicy, kwargs, ongoing)


def writers(config: ServiceConfig) -> AutoscalingConfig | None:
    """Between the least and the most history writers, by lag; None where their number is fixed."""
    if config.most_writers == config.writer_replicas:
        return None
    kwargs = {
        "least": config.writer_replicas,
        "most": config.most_writers,
        "catch_up_seconds": config.scaling.catch_up_seconds,
        "calm_seconds": config.scaling.calm_seconds,
    }
    return _autoscaling(WriterPolicy, kwargs, max(1, config.limits.max_ongoing_requests // 2))


def _autoscaling(policy: type[Policy], kwargs: dict[str, float], ongoing: int) -> AutoscalingConfig:
    # The policies have delays of their own. No `initial_replicas`: Serve would go back to it when the YAML changes
    # or its controller dies, at the busiest hour too.
    return AutoscalingConfig(
        min_replicas=int(kwargs["least"]),
        max_replicas=int(kwargs["most"]),
        target_ongoing_requests=ongoing,
        upscale_delay_s=0,
        downscale_delay_s=0,
        policy=AutoscalingPolicy(policy_function=policy, policy_kwargs=kwargs),
    )

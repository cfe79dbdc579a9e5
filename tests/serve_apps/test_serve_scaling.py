"""The policies as the controller of Serve runs them: out of their pickles, on what replicas record."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ray.serve._private.common import TimeStampedValue
from ray.serve.config import AutoscalingConfig, AutoscalingContext

from hymirec.config import ServiceConfig
from hymirec.service.scaling import WriterStats
from hymirec.streaming import ConsumerStatus
from serve_apps.scaling import recommenders, writers

ARGS: dict[str, Any] = {
    "bundle": "b",
    "history": {"store": "redis", "url": "redis://127.0.0.1:1/0"},
    "stream": {"source": "kafka-python", "brokers": "127.0.0.1:1"},
    "recommender_replicas": 1,
    "max_recommender_replicas": 4,
    "max_writer_replicas": 3,
}
Told = Callable[[int, float], dict[str, float]]


def wanted(config: AutoscalingConfig, seconds: int, told: Told, ongoing: float = 0, replicas: int = 1) -> int:
    """What a policy wants in the end; what replica `n` tells at a time is new every 10 s."""
    policy = config.policy.get_policy()(**config.policy.policy_kwargs)
    names = [f"replica-{n}" for n in range(replicas)]
    target = replicas
    for tick in range(seconds * 2):
        now = 1_000 + tick / 2
        said = {name: told(n, now // 10 * 10) for n, name in enumerate(names)}
        raw: dict[str, dict[str, list[TimeStampedValue]]] = {}
        for name, numbers in said.items():
            for key, value in numbers.items():
                raw.setdefault(key, {})[name] = [TimeStampedValue(now // 10 * 10, value)]
        context = AutoscalingContext(
            deployment_id=None,
            deployment_name="any",
            app_name="hymirec",
            current_num_replicas=replicas,
            target_num_replicas=target,
            running_replicas=names,
            total_num_requests=ongoing,
            total_queued_requests=0.0,
            aggregated_metrics={key: {name: s[-1].value for name, s in by.items()} for key, by in raw.items()},
            raw_metrics=raw,
            capacity_adjusted_min_replicas=config.min_replicas,
            capacity_adjusted_max_replicas=config.max_replicas,
            policy_state={},
            last_scale_up_time=None,
            last_scale_down_time=None,
            current_time=now,
            config=config,
        )
        target, _ = policy(context)
    return int(target)


def lagging(replica: int, now: float) -> dict[str, float]:
    """As a writer tells it that falls behind by 500 a second and applies 1,000."""
    stats = WriterStats(now - 10)
    lag = int(500 * (now - 900) / 2)
    return stats.of(ConsumerStatus(handled=10_000, lag={0: lag, 1: lag}, positions={0: 1, 1: 1}), now)


def test_a_lag_that_grows_brings_as_many_writers_as_partitions_at_most() -> None:
    config = writers(ServiceConfig(**ARGS))
    assert config is not None
    assert (config.min_replicas, config.max_replicas, config.initial_replicas) == (1, 3, None)
    assert wanted(config, 50, lagging) == 1
    assert wanted(config, 120, lagging) == 2


def test_a_writer_without_its_store_brings_none() -> None:
    config = writers(ServiceConfig(**ARGS))
    assert config is not None
    status = ConsumerStatus(lag={0: 10**6}, positions={0: 1}, problems={"store": "Redis does not answer"})
    assert wanted(config, 300, lambda n, now: WriterStats(now - 10).of(status, now)) == 1


def test_a_replica_that_tells_nothing_stops_all_decisions() -> None:
    config = writers(ServiceConfig(**ARGS))
    assert config is not None
    assert wanted(config, 300, lambda n, now: lagging(n, now) if n else {}, replicas=2) == 2


def test_a_number_that_is_fixed_is_not_scaled() -> None:
    assert writers(ServiceConfig(**ARGS | {"writer_replicas": 3})) is None
    assert writers(ServiceConfig(**ARGS | {"max_writer_replicas": None})) is None


def test_recommenders_come_for_work_and_for_requests_in_hand_and_go_one_by_one() -> None:
    config = recommenders(ServiceConfig(**ARGS))
    assert wanted(config, 60, lambda n, now: {"busy_ratio": 0.7}) == 1
    assert wanted(config, 60, lambda n, now: {"busy_ratio": 0.95}) == 2
    assert wanted(config, 60, lambda n, now: {"busy_ratio": 0.5}, ongoing=20) == 2
    assert wanted(config, 320, lambda n, now: {"busy_ratio": 0.1}, replicas=3) == 3
    assert wanted(config, 335, lambda n, now: {"busy_ratio": 0.1}, replicas=3) == 2
    # Two would be at work for .67 of the time.
    assert wanted(config, 400, lambda n, now: {"busy_ratio": 0.45}, replicas=3) == 3

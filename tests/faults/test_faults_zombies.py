"""Writers that were taken for dead, on real Kafka and Redis, in short; `make faults` is the long form."""

from __future__ import annotations

from pathlib import Path

import pytest
from fault_zombies import PARTITIONS, SESSION_SECONDS, ZombieRun
from services import KafkaBroker, RedisServer
from stream_logs import LogUnderTest

from hymirec.config import HistoryConfig

pytestmark = [pytest.mark.kafka, pytest.mark.redis]


def zombie_run(
    tmp_path: Path,
    kind: str,
    broker: KafkaBroker,
    server: RedisServer,
    seed: int,
    bug: str | None = None,
    protocol: str = "classic",
) -> ZombieRun:
    """Two writers of a group on a topic of their own."""
    server.flush()
    tmp_path.mkdir(exist_ok=True)
    log = LogUnderTest(kind, tmp_path, broker, partitions=PARTITIONS)
    log.config = log.config.model_copy(
        update={
            "batch_events": 16,
            "poll_seconds": 0.05,
            "session_timeout_seconds": SESSION_SECONDS,
            "group_protocol": protocol,
        }
    )
    history = HistoryConfig(store="redis", url=server.url, shards=4, max_events=500, dedup_horizon=4)
    return ZombieRun(log, history, seed, bug)


@pytest.mark.parametrize(
    ("kind", "protocol", "stops", "rebalances"),
    [("kafka-python", "classic", 1, 3), ("confluent", "classic", 1, 2), ("confluent", "consumer", 1, 2)],
)
def test_writers_taken_for_dead_and_rebalances_double_nothing(
    tmp_path: Path,
    kafka_broker: KafkaBroker,
    redis_server: RedisServer,
    kind: str,
    protocol: str,
    stops: int,
    rebalances: int,
) -> None:
    run = zombie_run(tmp_path, kind, kafka_broker, redis_server, seed=1, protocol=protocol)
    report = run.run_zombies(stops, rebalances)
    assert set(report.faults) <= {"letters doubled"}, report.notes
    assert report.kills.total() >= stops + rebalances


def test_the_harness_finds_a_store_without_a_fence(
    tmp_path: Path, kafka_broker: KafkaBroker, redis_server: RedisServer
) -> None:
    bug = "stale position after reconnect"
    report = zombie_run(tmp_path, "kafka-python", kafka_broker, redis_server, 2, bug).run_zombies(2, 0)
    assert report.faults["doubled"] + report.faults["lost"] > 0


def test_a_letter_of_a_killed_member_is_not_stored_again_by_the_one_that_takes_over(
    tmp_path: Path, kafka_broker: KafkaBroker, redis_server: RedisServer
) -> None:
    run = zombie_run(tmp_path, "kafka-python", kafka_broker, redis_server, seed=3)
    assert run.run_killed_after_a_letter().notes == []

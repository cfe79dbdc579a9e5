"""Partitions added to a topic of real Kafka under SIGKILL, in short; `make faults` is the long form."""

from __future__ import annotations

from pathlib import Path

import pytest
from fault_growth import GrowingRun
from fault_run import Report
from services import KafkaBroker
from stream_logs import LogUnderTest

from hymirec.config import HistoryConfig

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(1800)]


def growing_run(
    tmp_path: Path, broker: KafkaBroker, seed: int, kills: int, additions: int, bug: str | None = None
) -> Report:
    """One run on a topic of its own that begins with one partition."""
    (tmp_path / "log").mkdir(parents=True)
    log = LogUnderTest("kafka-python", tmp_path / "log", broker, partitions=1)
    log.config = log.config.model_copy(update={"batch_events": 16, "poll_seconds": 0.01})
    history = HistoryConfig(store="rocksdb", path=str(tmp_path / "store"))
    run = GrowingRun(log, history, seed, bug, reach=1.5, two_writers=0.0)
    return run.run_growing(kills, additions)


def test_partitions_added_while_writers_are_killed_lose_double_and_reorder_nothing(
    tmp_path: Path, kafka_broker: KafkaBroker
) -> None:
    report = growing_run(tmp_path, kafka_broker, 1, kills=3, additions=2)
    assert report.notes == []
    assert report.kills.total() == 4


def test_the_harness_finds_events_that_are_not_deduplicated_over_added_partitions(
    tmp_path: Path, kafka_broker: KafkaBroker
) -> None:
    report = growing_run(tmp_path, kafka_broker, 2, kills=3, additions=1, bug="no dedup")
    assert report.faults["doubled"] > 0

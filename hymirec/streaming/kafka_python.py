"""The default Kafka client: kafka-python."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

import kafka
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition
from kafka.codec import has_lz4, has_snappy, has_zstd
from kafka.errors import KafkaError, NoOffsetForPartitionError, OffsetOutOfRangeError, UnsupportedCodecError
from kafka.structs import OffsetAndMetadata

from hymirec.config import StreamConfig
from hymirec.errors import CodecMissingError, PositionOutOfRangeError, SourceUnavailableError
from hymirec.streaming.source import DeadLetters, EventProducer, EventSource, Message, dead_letter_headers

SEND_SECONDS = 30.0


class KafkaPythonLog:
    """See `EventLog`."""

    def __init__(self, config: StreamConfig) -> None:
        assert config.brokers is not None
        missing = [name for name, has in (("lz4", has_lz4), ("snappy", has_snappy), ("zstd", has_zstd)) if not has()]
        if missing:
            # With a codec missing, one poll raises and the next never returns.
            raise CodecMissingError(f"kafka-python lacks {missing}; run pip install 'kafka-python[lz4,snappy,zstd]'")
        self.topic = config.topic
        self._config = config
        self._brokers = config.brokers.split(",")

    def source(self, group: bool) -> EventSource:
        """A reader."""
        return _Source(self._config, self._brokers, group)

    def producer(self) -> EventProducer:
        """A writer of the topic."""
        return _Producer(self._config.topic, self._brokers)

    def dead_letters(self) -> DeadLetters:
        """A writer of the dead-letter topic."""
        return _DeadLetterTopic(self._config, self._brokers)


def _unavailable(brokers: Sequence[str], error: Exception) -> SourceUnavailableError:
    return SourceUnavailableError(f"Kafka at {','.join(brokers)}: {type(error).__name__}: {error}")


class _Source:
    def __init__(self, config: StreamConfig, brokers: Sequence[str], group: bool) -> None:
        self._topic, self._brokers, self._group = config.topic, brokers, group
        milliseconds = int(config.session_timeout_seconds * 1000)
        try:
            self._consumer = KafkaConsumer(
                bootstrap_servers=list(brokers),
                group_id=config.group,
                enable_auto_commit=False,
                auto_offset_reset="none",
                allow_auto_create_topics=False,
                check_crcs=True,
                session_timeout_ms=milliseconds,
                heartbeat_interval_ms=milliseconds // 3,
                metadata_max_age_ms=10_000,
            )
            self._admin = KafkaAdminClient(bootstrap_servers=list(brokers))
            if group:
                self._consumer.subscribe([config.topic])
            else:
                self._assign_all()
        except KafkaError as e:
            raise _unavailable(brokers, e) from e

    def _assign_all(self) -> None:
        numbers = self._consumer.partitions_for_topic(self._topic)
        if not numbers:
            raise SourceUnavailableError(f"topic {self._topic} is not there; create it (the client never does)")
        current = {tp.partition for tp in self._consumer.assignment()}
        if numbers - current:
            # Assigning again keeps the positions of partitions that stay.
            places = {p: self._consumer.position(TopicPartition(self._topic, p)) for p in current}
            self._consumer.assign([TopicPartition(self._topic, p) for p in sorted(numbers)])
            for p in sorted(numbers):
                self._consumer.seek(TopicPartition(self._topic, p), places.get(p) or 0)

    def assigned(self) -> list[int]:
        """Partitions of this member; without a group all, those added later included."""
        try:
            if not self._group:
                self._assign_all()
            return sorted(tp.partition for tp in self._consumer.assignment())
        except KafkaError as e:
            raise _unavailable(self._brokers, e) from e

    def topic_id(self) -> str:
        """The broker's id of the topic, as 32 hexadecimal digits."""
        try:
            (described,) = self._admin.describe_topics([self._topic])
        except KafkaError as e:
            raise _unavailable(self._brokers, e) from e
        if described.get("error_code"):
            raise SourceUnavailableError(f"topic {self._topic} is not there (error {described['error_code']})")
        return uuid.UUID(str(described["topic_id"])).hex

    def beginning(self, partition: int) -> int:
        """Oldest offset."""
        place = TopicPartition(self._topic, partition)
        return self._ask(lambda: self._consumer.beginning_offsets([place])[place])

    def end(self, partition: int) -> int:
        """Next offset."""
        place = TopicPartition(self._topic, partition)
        return self._ask(lambda: self._consumer.end_offsets([place])[place])

    def _ask(self, question: Any) -> int:
        try:
            return int(question())
        except KafkaError as e:
            raise _unavailable(self._brokers, e) from e

    def seek(self, partition: int, offset: int) -> None:
        """Continue at an offset."""
        place = TopicPartition(self._topic, partition)
        self._consumer.resume(place)
        self._consumer.seek(place, offset)

    def pause(self, partition: int) -> None:
        """Until the next seek."""
        place = TopicPartition(self._topic, partition)
        if place in self._consumer.assignment():
            self._consumer.pause(place)

    def poll(self, timeout: float, most: int) -> list[Message]:
        """See `EventSource.poll`."""
        try:
            found = self._consumer.poll(timeout_ms=int(timeout * 1000), max_records=most)
        except OffsetOutOfRangeError as e:
            raise self._out_of_range(e) from e
        except NoOffsetForPartitionError:
            # A new assignment whose position was not sought yet.
            return []
        except UnsupportedCodecError as e:
            raise CodecMissingError(f"{e}; install the codec and restart the history writer") from e
        except KafkaError as e:
            raise _unavailable(self._brokers, e) from e
        return [
            Message(place.partition, record.offset, record.key, record.value)
            for place, records in found.items()
            for record in records
        ]

    def _out_of_range(self, error: Exception) -> PositionOutOfRangeError:
        places = error.args[0] if error.args and isinstance(error.args[0], dict) else {}
        place, offset = next(iter(places.items()), (TopicPartition(self._topic, -1), None))
        return PositionOutOfRangeError(
            f"{self._topic}[{place.partition}]: position {offset} is not in the log any more, or not yet",
            place.partition,
        )

    def commit(self, offsets: Mapping[int, int]) -> None:
        """For dashboards."""
        places = {TopicPartition(self._topic, p): OffsetAndMetadata(o, "", -1) for p, o in offsets.items()}
        self._consumer.commit_async(places)

    def close(self) -> None:
        """Leave the group."""
        self._consumer.close(autocommit=False)
        self._admin.close()


class _Producer:
    def __init__(self, topic: str, brokers: Sequence[str]) -> None:
        self._topic, self._brokers = topic, brokers
        self._lock = threading.Lock()
        try:
            self._producer = KafkaProducer(
                bootstrap_servers=list(brokers), acks="all", linger_ms=1, allow_auto_create_topics=False
            )
        except (KafkaError, TypeError, AssertionError) as e:
            raise _unavailable(brokers, e) from e

    def send(self, messages: Sequence[tuple[str, bytes]]) -> None:
        """Send all, then wait for all."""
        try:
            with self._lock:
                futures = [self._producer.send(self._topic, value, key.encode()) for key, value in messages]
            for future in futures:
                future.get(timeout=SEND_SECONDS)
        except KafkaError as e:
            raise _unavailable(self._brokers, e) from e

    def close(self) -> None:
        """Flush and close."""
        self._producer.close(timeout=SEND_SECONDS)


class _DeadLetterTopic:
    def __init__(self, config: StreamConfig, brokers: Sequence[str]) -> None:
        self._topic, self._source, self._brokers = config.dead_letter_topic, config.topic, brokers
        try:
            self._producer = KafkaProducer(bootstrap_servers=list(brokers), acks="all")
        except KafkaError as e:
            raise _unavailable(brokers, e) from e

    def send(self, message: Message, reason: str, detail: str) -> None:
        """Send one letter and wait for it."""
        headers = dead_letter_headers(self._source, message, reason, detail)
        try:
            self._producer.send(self._topic, message.value, message.key, headers=headers).get(timeout=SEND_SECONDS)
        except KafkaError as e:
            raise _unavailable(self._brokers, e) from e

    def close(self) -> None:
        """Flush and close."""
        self._producer.close(timeout=SEND_SECONDS)


CLIENT = f"kafka-python {kafka.__version__}"

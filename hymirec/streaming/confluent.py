"""The fast Kafka client, as an extra: confluent-kafka (librdkafka)."""

from __future__ import annotations

import base64
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from hymirec.config import StreamConfig
from hymirec.errors import PositionOutOfRangeError, SourceUnavailableError
from hymirec.streaming.source import (
    DeadLetters,
    EventProducer,
    EventSource,
    Message,
    dead_letter_headers,
    letter_of,
    named_otherwise,
    recent_letters,
)

try:
    from confluent_kafka import (
        OFFSET_BEGINNING,
        TIMESTAMP_NOT_AVAILABLE,
        Consumer,
        KafkaError,
        KafkaException,
        Producer,
        TopicCollection,
        TopicPartition,
    )
    from confluent_kafka.admin import AdminClient
except ImportError as e:
    raise SourceUnavailableError("stream.source=confluent needs the extra: pip install 'hymirec[kafka-fast]'") from e

ASK_SECONDS = 10.0
SEND_SECONDS = 10.0
REFRESH_SECONDS = 4.0
# What fails is raised. While a broker is away, librdkafka would also write to stderr 20 times a second and client.
CRITICAL = 2


class ConfluentLog:
    """See `EventLog`."""

    def __init__(self, config: StreamConfig) -> None:
        assert config.brokers is not None
        self.topic = config.topic
        self._config = config

    def source(self, group: bool) -> EventSource:
        """A reader."""
        return _Source(self._config, group, self._give_name_up)

    def _give_name_up(self) -> None:
        """Two of one name would shut each other out again and again."""
        self._config = self._config.model_copy(update={"member": None})

    def producer(self) -> EventProducer:
        """A writer of the topic."""
        return _Producer(self._config)

    def dead_letters(self) -> DeadLetters:
        """A writer of the dead-letter topic."""
        return _DeadLetterTopic(self._config)


class _Source:
    """All calls come from one thread: librdkafka's Python client hangs when another one asks while it consumes."""

    def __init__(self, config: StreamConfig, group: bool, give_name_up: Callable[[], None] = lambda: None) -> None:
        self._topic, self._brokers, self._group = config.topic, config.brokers, group
        self._config, self._give_name_up = config, give_name_up
        # Where the broker says who reads what it hands over single partitions, and keeps the time itself.
        self._incremental = group and config.group_protocol == "consumer"
        self._consumer = Consumer(
            {
                "bootstrap.servers": config.brokers or "",
                "log_level": CRITICAL,
                "group.id": config.group,
                "enable.auto.commit": False,
                "enable.auto.offset.store": False,
                "auto.offset.reset": "error",
                "check.crcs": True,
                "allow.auto.create.topics": False,
                "topic.metadata.refresh.interval.ms": int(REFRESH_SECONDS * 1000),
            }
            | _membership(config, group)
        )
        self._admin = AdminClient({"bootstrap.servers": config.brokers or "", "log_level": CRITICAL})
        self._assigned: set[int] = set()
        self._waiting: set[int] = set()
        self._checked = 0.0
        if group:
            self._consumer.subscribe([config.topic], on_assign=self._on_assign, on_revoke=self._on_revoke)
        else:
            self._assign_all()

    def _on_assign(self, consumer: Any, partitions: Sequence[Any]) -> None:
        """Assigned but paused: nothing is read before its position was sought."""
        places = [TopicPartition(self._topic, tp.partition, OFFSET_BEGINNING) for tp in partitions]
        if self._incremental:
            consumer.incremental_assign(places)
        else:
            consumer.assign(places)
            self._assigned, self._waiting = set(), set()
        consumer.pause(places)
        self._assigned |= {tp.partition for tp in partitions}
        self._waiting |= {tp.partition for tp in partitions}

    def _on_revoke(self, consumer: Any, partitions: Sequence[Any]) -> None:
        self._assigned -= {tp.partition for tp in partitions}
        self._waiting &= self._assigned

    def _assign_all(self) -> None:
        self._checked = time.monotonic()
        try:
            metadata = self._consumer.list_topics(self._topic, timeout=ASK_SECONDS).topics[self._topic]
        except KafkaException as e:
            raise self._unavailable(e) from e
        if metadata.error is not None or not metadata.partitions:
            raise SourceUnavailableError(f"topic {self._topic} is not there; create it (the client never does)")
        added = sorted(set(metadata.partitions) - self._assigned)
        if added:
            places = [TopicPartition(self._topic, p, OFFSET_BEGINNING) for p in added]
            self._consumer.incremental_assign(places)
            self._consumer.pause(places)
            self._assigned |= set(added)
            self._waiting |= set(added)

    def _unavailable(self, error: Exception) -> SourceUnavailableError:
        return SourceUnavailableError(f"Kafka at {self._brokers}: {error}")

    def assigned(self) -> list[int]:
        """Partitions of this member; without a group all, those added later included (looked up every few seconds)."""
        if not self._group and time.monotonic() - self._checked > REFRESH_SECONDS:
            self._assign_all()
        return sorted(self._assigned)

    def waiting(self) -> set[int]:
        """Assigned, but not sought yet."""
        return set(self._waiting)

    def topic_id(self) -> str:
        """The broker's id of the topic, as 32 hexadecimal digits."""
        try:
            future = self._admin.describe_topics(TopicCollection([self._topic]), request_timeout=ASK_SECONDS)[
                self._topic
            ]
            text = str(future.result(timeout=ASK_SECONDS).topic_id)
        except KafkaException as e:
            raise self._unavailable(e) from e
        return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)).hex()

    def beginning(self, partition: int) -> int:
        """Oldest offset."""
        return self._watermarks(partition)[0]

    def end(self, partition: int) -> int:
        """Next offset."""
        return self._watermarks(partition)[1]

    def _watermarks(self, partition: int) -> tuple[int, int]:
        try:
            low, high = self._consumer.get_watermark_offsets(TopicPartition(self._topic, partition), ASK_SECONDS)
        except KafkaException as e:
            raise self._unavailable(e) from e
        return int(low), int(high)

    def seek(self, partition: int, offset: int) -> None:
        """Continue at an offset; a fresh assignment takes a moment before it can be sought."""
        place = TopicPartition(self._topic, partition, offset)
        deadline = time.monotonic() + ASK_SECONDS
        while True:
            try:
                self._consumer.seek(place)
                self._consumer.resume([place])
                self._waiting.discard(partition)
                return
            except KafkaException as e:
                if time.monotonic() > deadline:
                    raise self._unavailable(e) from e
                # Never poll here: a message of another partition would be lost.
                time.sleep(0.02)

    def pause(self, partition: int) -> None:
        """Until the next seek."""
        if partition in self._assigned:
            self._consumer.pause([TopicPartition(self._topic, partition)])
            self._waiting.add(partition)

    def poll(self, timeout: float, most: int) -> list[Message]:
        """See `EventSource.poll`."""
        found: list[Message] = []
        append, waiting, make = found.append, self._waiting, tuple.__new__
        for message in self._consumer.consume(num_messages=most, timeout=timeout):
            error = message.error()
            if error is None:
                partition = message.partition()
                if partition in waiting:
                    continue
                kind, log_ms = message.timestamp()
                if kind == TIMESTAMP_NOT_AVAILABLE:
                    log_ms = 0
                headers = message.headers()
                named = _named(headers) if headers else ()
                # As `Message(...)` makes it, in half the time.
                append(make(Message, (partition, message.offset(), message.key(), message.value(), log_ms, named)))
            elif error.code() in (KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE):
                # Said once and never again: whoever swallows it stands still for ever.
                raise PositionOutOfRangeError(
                    f"{self._topic}[{message.partition()}]: {error.str()}", int(message.partition() or 0)
                )
            elif error.code() == KafkaError._FATAL and self._group and self._config.member is not None:
                # What was fatal is told in words only: another one has the name.
                self._give_name_up()
                raise named_otherwise(self._config) from KafkaException(error)
            elif error.code() != KafkaError._PARTITION_EOF and not error.retriable():
                raise self._unavailable(KafkaException(error))
        return found

    def commit(self, offsets: Mapping[int, int]) -> None:
        """For dashboards."""
        # A failed one costs nothing: nobody believes it.
        with suppress(KafkaException):
            places = [TopicPartition(self._topic, p, o) for p, o in offsets.items()]
            self._consumer.commit(offsets=places, asynchronous=True)

    def close(self) -> None:
        """Leave the group."""
        self._consumer.close()


def _membership(config: StreamConfig, group: bool) -> dict[str, Any]:
    """How a consumer takes part in its group."""
    settings: dict[str, Any] = {"group.protocol": config.group_protocol if group else "classic"}
    if settings["group.protocol"] == "classic":
        milliseconds = int(config.session_timeout_seconds * 1000)
        settings["session.timeout.ms"] = milliseconds
        # librdkafka's default of 3 s would let a shorter session end between two heartbeats.
        settings["heartbeat.interval.ms"] = milliseconds // 3
    if group and config.member is not None:
        settings["group.instance.id"] = config.member
    return settings


def _named(headers: Any) -> tuple[tuple[str, bytes], ...]:
    return tuple((name, value or b"") for name, value in headers)


class _Sender:
    """Sends and waits for the broker's answer of each message."""

    def __init__(self, brokers: str | None) -> None:
        self._brokers = brokers
        self._lock = threading.Lock()
        self._producer = Producer(
            {
                "bootstrap.servers": brokers,
                "log_level": CRITICAL,
                "acks": "all",
                "enable.idempotence": True,
                "partitioner": "murmur2_random",
                "linger.ms": 1,
                "message.timeout.ms": int(SEND_SECONDS * 1000),
                "allow.auto.create.topics": False,
            }
        )

    def send_all(self, topic: str, messages: Sequence[tuple[bytes | None, bytes | None, Any]]) -> list[tuple[int, int]]:
        """(key, value, headers) messages. Raises SourceUnavailableError unless all were stored."""
        errors: list[str] = []
        places = [(-1, -1)] * len(messages)

        def done(error: Any, message: Any, i: int) -> None:
            if error is not None:
                errors.append(error.str())
            else:
                places[i] = (message.partition(), message.offset())

        with self._lock:
            for i, (key, value, headers) in enumerate(messages):
                self._producer.produce(topic, value=value, key=key, headers=headers, on_delivery=partial(done, i=i))
            left = self._producer.flush(SEND_SECONDS)
        if errors or left:
            raise SourceUnavailableError(
                f"Kafka at {self._brokers}: {len(errors) + left} of {len(messages)} messages were not stored: "
                f"{errors[:1] or 'no answer'}"
            )
        return places

    def close(self) -> None:
        """Flush."""
        self._producer.flush(SEND_SECONDS)


class _Producer(_Sender):
    def __init__(self, config: StreamConfig) -> None:
        super().__init__(config.brokers)
        self._topic = config.topic

    def send(self, messages: Sequence[tuple[str, bytes]]) -> list[tuple[int, int]]:
        """Send all, then wait for all."""
        return self.send_all(self._topic, [(key.encode(), value, None) for key, value in messages])


class _DeadLetterTopic(_Sender):
    def __init__(self, config: StreamConfig) -> None:
        super().__init__(config.brokers)
        self._topic, self._source = config.dead_letter_topic, config.topic
        letters = _Source(config.model_copy(update={"topic": config.dead_letter_topic}), group=False)
        try:
            self._recent = recent_letters(letters)
        finally:
            letters.close()

    def send(self, message: Message, reason: str, detail: str) -> None:
        """Send one letter and wait for it."""
        letter = letter_of(self._source, message)
        if letter not in self._recent:
            headers = dead_letter_headers(self._source, message, reason, detail)
            self.send_all(self._topic, [(message.key, message.value, headers)])
            self._recent.add(letter)

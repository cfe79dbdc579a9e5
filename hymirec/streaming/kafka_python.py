"""The default Kafka client: kafka-python."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from kafka import ConsumerRebalanceListener, KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition
from kafka.codec import has_lz4, has_snappy, has_zstd
from kafka.coordinator.base import MemberState
from kafka.errors import (
    FencedInstanceIdError,
    KafkaError,
    NoOffsetForPartitionError,
    OffsetOutOfRangeError,
    UnsupportedCodecError,
)
from kafka.structs import OffsetAndMetadata

from hymirec.config import StreamConfig
from hymirec.errors import CodecMissingError, PositionOutOfRangeError, SourceUnavailableError
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

ASK_SECONDS = 10.0
# A broker that does not answer a question for so long is gone.
ANSWER_SECONDS = 5.0
SEND_SECONDS = 10.0
REFRESH_SECONDS = 4.0


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
        return _Source(self._config, self._brokers, group, self._give_name_up)

    def _give_name_up(self) -> None:
        """Two of one name would shut each other out again and again."""
        self._config = self._config.model_copy(update={"member": None})

    def producer(self) -> EventProducer:
        """A writer of the topic."""
        return _Producer(self._config.topic, self._brokers)

    def dead_letters(self) -> DeadLetters:
        """A writer of the dead-letter topic."""
        return _DeadLetterTopic(self._config, self._brokers)


def _unavailable(brokers: Sequence[str], error: Exception) -> SourceUnavailableError:
    return SourceUnavailableError(f"Kafka at {','.join(brokers)}: {type(error).__name__}: {error}")


class _Assigned(ConsumerRebalanceListener):  # type: ignore[misc]
    """What a group assigns is held until it is sought, also when it comes back in the same rebalance."""

    def __init__(self, source: _Source) -> None:
        self._source = source

    def on_partitions_revoked(self, revoked: Sequence[TopicPartition]) -> None:
        """Stay a member: what the group answers is waited for over as many polls as it takes."""
        self._source.await_group()

    def on_partitions_assigned(self, assigned: Sequence[TopicPartition]) -> None:
        """Hold all of them."""
        for place in assigned:
            self._source.hold(place)


class _Source:
    def __init__(
        self,
        config: StreamConfig,
        brokers: Sequence[str],
        group: bool,
        give_name_up: Callable[[], None] = lambda: None,
    ) -> None:
        self._topic, self._brokers, self._group = config.topic, brokers, group
        self._config, self._give_name_up = config, give_name_up
        self._waiting: set[int] = set()
        milliseconds = int(config.session_timeout_seconds * 1000)
        try:
            self._consumer = KafkaConsumer(
                bootstrap_servers=list(brokers),
                bootstrap_timeout_ms=int(ASK_SECONDS * 1000),
                group_id=config.group,
                group_instance_id=config.member if group else None,
                enable_auto_commit=False,
                auto_offset_reset="none",
                allow_auto_create_topics=False,
                check_crcs=True,
                session_timeout_ms=milliseconds,
                heartbeat_interval_ms=milliseconds // 3,
                metadata_max_age_ms=int(REFRESH_SECONDS * 1000),
            )
            self._admin = KafkaAdminClient(
                bootstrap_servers=list(brokers),
                bootstrap_timeout_ms=int(ASK_SECONDS * 1000),
                request_timeout_ms=int(ANSWER_SECONDS * 1000),
            )
            if group:
                # A leader that joins before it knows the topic assigns nothing. Subscribed first: otherwise the
                # partitions seem to appear after the join, and everybody joins once more.
                self._consumer.subscribe([config.topic], listener=_Assigned(self))
                self._known_partitions()
            else:
                self._assign_all()
        except KafkaError as e:
            raise _unavailable(brokers, e) from e

    def _known_partitions(self) -> set[int]:
        numbers: set[int] = self._consumer.partitions_for_topic(self._topic)
        if not numbers:
            raise SourceUnavailableError(f"topic {self._topic} is not there; create it (the client never does)")
        return numbers

    def _assign_all(self) -> None:
        numbers = self._known_partitions()
        current = {tp.partition for tp in self._consumer.assignment()}
        if numbers - current:
            # Assigning again keeps the positions of partitions that stay.
            self._consumer.assign([TopicPartition(self._topic, p) for p in sorted(numbers | current)])
            for p in sorted(numbers - current):
                self.hold(TopicPartition(self._topic, p))

    def hold(self, place: TopicPartition) -> None:
        """Deliver nothing of a partition until it is sought."""
        # Without a position the client would ask the group for one.
        self._consumer.seek(place, 0)
        self._consumer.pause(place)
        self._waiting.add(place.partition)

    def await_group(self) -> None:
        """Ask for an assignment until one comes.

        The batch in hand was applied before the poll that begins to join. A leader joins again when its topic's
        partitions change, and kafka-python (3.0.12) forgets such a join when the poll that began it ends before the
        group answers: no heartbeat follows, the group drops the member, and it reads on without knowing.
        """
        self._consumer._coordinator.request_rejoin()

    def _check_name(self) -> None:
        """kafka-python (3.0.12) ends the heartbeats of a member whose name another one has, and reads on."""
        coordinator = self._consumer._coordinator
        with coordinator._lock:
            shut_out = coordinator.state is MemberState.STABLE and not coordinator._heartbeat_enabled
        if shut_out:
            raise self._shut_out()

    def _shut_out(self) -> SourceUnavailableError:
        self._give_name_up()
        return named_otherwise(self._config)

    def waiting(self) -> set[int]:
        """Held partitions that are still assigned."""
        self._waiting &= {place.partition for place in self._consumer.assignment()}
        return set(self._waiting)

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
        return self._ask(lambda: self._consumer.beginning_offsets([place], ANSWER_SECONDS * 1000)[place])

    def end(self, partition: int) -> int:
        """Next offset."""
        place = TopicPartition(self._topic, partition)
        return self._ask(lambda: self._consumer.end_offsets([place], ANSWER_SECONDS * 1000)[place])

    def _ask(self, question: Any) -> int:
        try:
            return int(question())
        except KafkaError as e:
            raise _unavailable(self._brokers, e) from e

    def seek(self, partition: int, offset: int) -> None:
        """Continue at an offset."""
        place = TopicPartition(self._topic, partition)
        try:
            self._consumer.seek(place, offset)
            self._consumer.resume(place)
        except (KafkaError, AssertionError, ValueError) as e:
            raise _unavailable(self._brokers, e) from e
        self._waiting.discard(partition)

    def pause(self, partition: int) -> None:
        """Until the next seek."""
        place = TopicPartition(self._topic, partition)
        if place in self._consumer.assignment():
            self.hold(place)

    def poll(self, timeout: float, most: int) -> list[Message]:
        """See `EventSource.poll`."""
        if self._group and self._config.member is not None:
            self._check_name()
        try:
            found = self._consumer.poll(timeout_ms=int(timeout * 1000), max_records=most)
        except OffsetOutOfRangeError as e:
            raise self._out_of_range(e) from e
        except NoOffsetForPartitionError:
            # A new assignment whose position was not sought yet.
            return []
        except FencedInstanceIdError as e:
            raise self._shut_out() from e
        except UnsupportedCodecError as e:
            raise CodecMissingError(f"{e}; install the codec and restart the history writer") from e
        except KafkaError as e:
            raise _unavailable(self._brokers, e) from e
        return [
            Message(place.partition, r.offset, r.key, r.value, max(0, r.timestamp), tuple(r.headers))
            for place, records in found.items()
            if place.partition not in self._waiting
            for r in records
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
        # A failed one costs nothing: nobody believes it.
        with suppress(KafkaError):
            self._consumer.commit_async(places)

    def close(self) -> None:
        """Leave the group."""
        self._consumer.close(autocommit=False)
        self._admin.close()


class _Sender:
    """Sends and waits for the broker's answer of each message."""

    def __init__(self, topic: str, brokers: Sequence[str]) -> None:
        self._topic, self._brokers = topic, brokers
        self._lock = threading.Lock()
        try:
            self._producer = KafkaProducer(
                bootstrap_servers=list(brokers),
                bootstrap_timeout_ms=int(ASK_SECONDS * 1000),
                acks="all",
                enable_idempotence=True,
                linger_ms=1,
                max_block_ms=int(SEND_SECONDS * 1000),
                allow_auto_create_topics=False,
            )
        except KafkaError as e:
            raise _unavailable(brokers, e) from e

    def send_all(self, messages: Sequence[tuple[bytes | None, bytes | None, Any]]) -> list[tuple[int, int]]:
        """(key, value, headers) messages. Raises SourceUnavailableError unless all were stored."""
        try:
            with self._lock:
                futures = [
                    self._producer.send(self._topic, value, key, headers=headers) for key, value, headers in messages
                ]
            found = [future.get(timeout=SEND_SECONDS) for future in futures]
        except KafkaError as e:
            raise _unavailable(self._brokers, e) from e
        return [(stored.partition, stored.offset) for stored in found]

    def close(self) -> None:
        """Flush and close."""
        self._producer.close(timeout=SEND_SECONDS)


class _Producer(_Sender):
    def send(self, messages: Sequence[tuple[str, bytes]]) -> list[tuple[int, int]]:
        """Send all, then wait for all."""
        return self.send_all([(key.encode(), value, None) for key, value in messages])


class _DeadLetterTopic(_Sender):
    def __init__(self, config: StreamConfig, brokers: Sequence[str]) -> None:
        super().__init__(config.dead_letter_topic, brokers)
        self._source = config.topic
        letters = _Source(config.model_copy(update={"topic": config.dead_letter_topic}), brokers, group=False)
        try:
            self._recent = recent_letters(letters)
        finally:
            letters.close()

    def send(self, message: Message, reason: str, detail: str) -> None:
        """Send one letter and wait for it."""
        letter = letter_of(self._source, message)
        if letter not in self._recent:
            headers = dead_letter_headers(self._source, message, reason, detail)
            self.send_all([(message.key, message.value, headers)])
            self._recent.add(letter)

"""The log protocol: what Kafka and the embedded file log have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Message:
    """One message of a partition."""

    partition: int
    offset: int
    key: bytes | None
    value: bytes | None


class EventSource(Protocol):
    """Reads a topic. One thread only."""

    def assigned(self) -> list[int]:
        """Partitions that this member reads now; may change between polls when there is a group."""
        ...

    def topic_id(self) -> str:
        """Identity of the topic: another one after it was deleted and created again.

        Raises SourceUnavailableError when the log does not answer or the topic is not there.
        """
        ...

    def beginning(self, partition: int) -> int:
        """Oldest offset that can still be read."""
        ...

    def end(self, partition: int) -> int:
        """Offset that the next message will get."""
        ...

    def seek(self, partition: int, offset: int) -> None:
        """Continue a partition at an offset."""
        ...

    def pause(self, partition: int) -> None:
        """Stop reading a partition until it is sought again."""
        ...

    def poll(self, timeout: float, most: int) -> list[Message]:
        """Next messages of all partitions that are not paused, at most `most`; empty after `timeout` seconds.

        Raises SourceUnavailableError, or PositionOutOfRangeError naming partition and offset.
        """
        ...

    def commit(self, offsets: Mapping[int, int]) -> None:
        """Publish positions for lag dashboards. Nothing of ours ever reads them."""
        ...

    def close(self) -> None:
        """Leave the group and close connections."""
        ...


class EventProducer(Protocol):
    """Writes messages. Safe to call from several threads."""

    def send(self, messages: Sequence[tuple[str, bytes]]) -> None:
        """Append (key, value) messages; returns when all of them are stored.

        Raises SourceUnavailableError when any was not.
        """
        ...

    def close(self) -> None:
        """Close connections."""
        ...


class DeadLetters(Protocol):
    """Where messages go that cannot be used."""

    def send(self, message: Message, reason: str, detail: str) -> None:
        """Store one message with reason, topic, partition and offset; returns when it is stored."""
        ...

    def close(self) -> None:
        """Close connections."""
        ...


class EventLog(Protocol):
    """A topic of one kind of log."""

    topic: str

    def source(self, group: bool) -> EventSource:
        """A reader: of its share of the partitions as a member of the group, or (`group` False) of all."""
        ...

    def producer(self) -> EventProducer:
        """A writer of the topic."""
        ...

    def dead_letters(self) -> DeadLetters:
        """A writer of the dead-letter topic."""
        ...


def dead_letter_headers(topic: str, message: Message, reason: str, detail: str) -> list[tuple[str, bytes]]:
    """Headers of a dead letter."""
    return [
        ("reason", reason.encode()),
        ("detail", detail[:500].encode()),
        ("topic", topic.encode()),
        ("partition", str(message.partition).encode()),
        ("offset", str(message.offset).encode()),
    ]

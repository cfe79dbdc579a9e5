"""The log protocol: what Kafka and the embedded file log have in common."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

import xxhash

from hymirec.config import StreamConfig
from hymirec.errors import SourceUnavailableError

# Dead letters a partition that a writer looks back at when it starts.
RECENT_LETTERS = 1_000
RECENT_SECONDS = 20.0

Letter = tuple[bytes, bytes, bytes, int]


class Message(NamedTuple):
    """One message of a partition. `log_ms`: when the log took it, milliseconds since 1970; 0 when it does not say."""

    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    log_ms: int = 0
    headers: tuple[tuple[str, bytes], ...] = ()


class EventSource(Protocol):
    """Reads a topic. One thread only.

    A partition that was assigned, assigned again or paused is `waiting`: it delivers nothing until it is sought.
    """

    def assigned(self) -> list[int]:
        """Partitions that this member reads now; may change between polls when there is a group."""
        ...

    def waiting(self) -> set[int]:
        """Assigned partitions that deliver nothing before they are sought: whatever was known of them is void."""
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
        """Next messages of all partitions that do not wait, at most `most`; empty after `timeout` seconds.

        Raises SourceUnavailableError, or PositionOutOfRangeError or LogDamagedError naming the partition. After an
        error other partitions may have been read past what was returned: seek all of them.
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

    def send(self, messages: Sequence[tuple[str, bytes]]) -> list[tuple[int, int]]:
        """Append (key, value) messages; returns partition and offset of each when all of them are stored.

        Raises SourceUnavailableError when any was not. Sending all again is safe: an event id counts once.
        """
        ...

    def close(self) -> None:
        """Close connections."""
        ...


class DeadLetters(Protocol):
    """Where messages go that cannot be used."""

    def send(self, message: Message, reason: str, detail: str) -> None:
        """Store one message with reason, topic, partition and offset; returns when it is stored.

        A message that is among the newest letters already is not stored again.
        """
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


def named_otherwise(config: StreamConfig) -> SourceUnavailableError:
    """What to raise when another member of the group has this one's name."""
    return SourceUnavailableError(
        f"another history writer is {config.member} in the group {config.group} (stream.member); this one goes on "
        "there without a name"
    )


def dead_letter_headers(topic: str, message: Message, reason: str, detail: str) -> list[tuple[str, bytes]]:
    """Headers of a dead letter."""
    return [
        ("reason", reason.encode()),
        ("detail", detail[:500].encode()),
        ("topic", topic.encode()),
        ("partition", str(message.partition).encode()),
        ("offset", str(message.offset).encode()),
    ]


def letter_of(topic: str, message: Message) -> Letter:
    """What makes two dead letters the same: where the message stood, and its bytes (a topic may be created again)."""
    place = (topic.encode(), str(message.partition).encode(), str(message.offset).encode())
    return (*place, xxhash.xxh3_64_intdigest(message.value or b""))


def recent_letters(source: EventSource) -> set[Letter]:
    """The newest letters of a dead-letter topic.

    A writer that was killed after a letter and before its position reads the message again, and finds it here.
    Raises SourceUnavailableError when they cannot be read in time.
    """
    found: set[Letter] = set()
    ends = {partition: source.end(partition) for partition in source.assigned()}
    pending: set[int] = set()
    for partition, end in ends.items():
        start = max(source.beginning(partition), end - RECENT_LETTERS)
        if start < end:
            source.seek(partition, start)
            pending.add(partition)
    deadline = time.monotonic() + RECENT_SECONDS
    while pending:
        for message in source.poll(0.2, RECENT_LETTERS):
            headers = dict(message.headers)
            place = (headers.get("topic", b""), headers.get("partition", b""), headers.get("offset", b""))
            found.add((*place, xxhash.xxh3_64_intdigest(message.value or b"")))
            if message.offset + 1 >= ends.get(message.partition, 0):
                pending.discard(message.partition)
        if time.monotonic() > deadline:
            raise SourceUnavailableError(
                f"the dead letters were not read in {RECENT_SECONDS:.0f} s; the log is too slow"
            )
    return found

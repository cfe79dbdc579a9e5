"""An embedded log: one directory a topic, one file a partition. What the demo and a single machine use.

A frame is (length u32, crc of the body u32, body), body = (key length u16, key, value). Offsets count messages.
Writers of all processes take a file lock, append whole batches, and fsync; a torn tail (a crash in the middle of an
append) is cut off by the next writer and never seen by a reader, because it ends before the first broken frame.
"""

from __future__ import annotations

import fcntl
import json
import os
import struct
import threading
import time
import uuid
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import xxhash

from hymirec.artifacts import read_json, write_json
from hymirec.config import StreamConfig
from hymirec.errors import PositionOutOfRangeError, SourceUnavailableError
from hymirec.streaming.source import DeadLetters, EventProducer, EventSource, Message

_FRAME = struct.Struct("<II")
_KEY = struct.Struct("<H")
MAX_BODY = 1 << 22
# Bytes a read; more than one frame, so that a read always makes progress.
READ_BYTES = 1 << 23
POLL_SECONDS = 0.005


class FileLog:
    """See `EventLog`."""

    def __init__(self, config: StreamConfig) -> None:
        assert config.path is not None
        self.topic = config.topic
        self._root = Path(config.path)
        self._dead = config.dead_letter_topic
        _Topic(self._root / self.topic, config.partitions)

    def source(self, group: bool) -> EventSource:
        """Reads all partitions; a file log has one reader."""
        return _Source(_Topic(self._root / self.topic))

    def producer(self) -> EventProducer:
        """A writer of the topic."""
        return _Producer(_Topic(self._root / self.topic))

    def dead_letters(self) -> DeadLetters:
        """A JSON line a letter."""
        return _DeadLetterFile(self._root / f"{self._dead}.jsonl", self.topic)


class _Topic:
    """Directory with `topic.json` (id, number of partitions) and `N.log` files."""

    def __init__(self, directory: Path, create_partitions: int | None = None) -> None:
        self.directory = directory
        self._meta = directory / "topic.json"
        if create_partitions is not None and not self._meta.exists():
            directory.mkdir(parents=True, exist_ok=True)
            with _locked(directory / "topic.lock"):
                if not self._meta.exists():
                    for partition in range(create_partitions):
                        self.path(partition).touch()
                    write_json(self._meta, {"id": uuid.uuid4().hex, "partitions": create_partitions})

    def path(self, partition: int) -> Path:
        return self.directory / f"{partition}.log"

    def meta(self) -> tuple[str, int]:
        """Id and number of partitions."""
        if not self._meta.exists():
            raise SourceUnavailableError(f"{self._meta} is not there; the log was removed. Restore it, or start afresh")
        value = read_json(self._meta)
        return str(value["id"]), int(value["partitions"])


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("ab") as f:
        fcntl.flock(f, fcntl.LOCK_EX)
        yield


def _frames(data: bytes, start: int = 0) -> Iterator[tuple[int, bytes]]:
    """(end position, body) of each whole frame; ends before the first torn one."""
    position = start
    while position + _FRAME.size <= len(data):
        length, crc = _FRAME.unpack_from(data, position)
        body = data[position + _FRAME.size : position + _FRAME.size + length]
        if length > MAX_BODY or len(body) < length or zlib.crc32(body) != crc:
            return
        position += _FRAME.size + length
        yield position, body


def _message(partition: int, offset: int, body: bytes) -> Message:
    (size,) = _KEY.unpack_from(body)
    return Message(partition, offset, body[_KEY.size : _KEY.size + size], body[_KEY.size + size :])


class _Producer:
    def __init__(self, topic: _Topic) -> None:
        self._topic = topic
        self._lock = threading.Lock()
        self._ends: dict[int, int] = {}

    def send(self, messages: Sequence[tuple[str, bytes]]) -> None:
        """Append, grouped by partition; a key's messages keep their order."""
        _, partitions = self._topic.meta()
        frames: dict[int, list[bytes]] = {}
        for key, value in messages:
            encoded = key.encode()
            body = _KEY.pack(len(encoded)) + encoded + value
            frame = _FRAME.pack(len(body), zlib.crc32(body)) + body
            frames.setdefault(xxhash.xxh3_64_intdigest(encoded) % partitions, []).append(frame)
        for partition, parts in frames.items():
            self._append(partition, b"".join(parts))

    def _append(self, partition: int, data: bytes) -> None:
        path = self._topic.path(partition)
        try:
            with self._lock, _locked(path.with_suffix(".lock")), path.open("r+b") as f:
                f.seek(self._whole_end(partition, f.fileno()))
                f.truncate()
                f.write(data)
                f.flush()
                os.fsync(f.fileno())
                self._ends[partition] = f.tell()
        except OSError as e:
            raise SourceUnavailableError(f"{path} cannot be written: {e}") from e

    def _whole_end(self, partition: int, fd: int) -> int:
        """Where the last whole frame ends; what this writer knows already is not read again."""
        known = self._ends.get(partition, 0)
        size = os.fstat(fd).st_size
        if size == known:
            return known
        end = known
        for stop, _ in _frames(os.pread(fd, size - known, known)):
            end = known + stop
        return end

    def close(self) -> None:
        """Nothing is held open."""


class _Source:
    def __init__(self, topic: _Topic) -> None:
        self._topic = topic
        self._topic_id, partitions = topic.meta()
        self._place: dict[int, tuple[int, int]] = dict.fromkeys(range(partitions), (0, 0))
        self._paused: set[int] = set()

    def assigned(self) -> list[int]:
        """All of them."""
        _, partitions = self._topic.meta()
        for partition in range(partitions):
            self._place.setdefault(partition, (0, 0))
        return list(range(partitions))

    def topic_id(self) -> str:
        """The id in `topic.json`."""
        return self._topic.meta()[0]

    def beginning(self, partition: int) -> int:
        """Nothing is ever removed."""
        return 0

    def end(self, partition: int) -> int:
        """Whole messages in the file: those read so far and those behind them."""
        return sum(1 for _ in self._walk(partition, *self._place[partition])) + self._place[partition][0]

    def seek(self, partition: int, offset: int) -> None:
        """Count frames from the start. Raises PositionOutOfRangeError behind the end."""
        self._paused.discard(partition)
        if offset == 0:
            self._place[partition] = (0, 0)
            return
        count = 0
        for count, stop in self._walk(partition, 0, 0):
            if count == offset:
                self._place[partition] = (offset, stop)
                return
        raise PositionOutOfRangeError(
            f"partition {partition} of {self._topic.directory} ends at offset {count}, the position is {offset}: "
            "messages that were applied are gone from the log. Restore the log or reset the position",
            partition,
        )

    def pause(self, partition: int) -> None:
        """Until the next seek."""
        self._paused.add(partition)

    def poll(self, timeout: float, most: int) -> list[Message]:
        """Read what was appended; wait in small steps when there is nothing."""
        deadline = time.monotonic() + timeout
        while True:
            found: list[Message] = []
            for partition in self.assigned():
                if partition not in self._paused:
                    found += self._next(partition, most - len(found))
            if found or time.monotonic() >= deadline:
                return found
            time.sleep(POLL_SECONDS)

    def _next(self, partition: int, most: int) -> list[Message]:
        offset, position = self._place[partition]
        messages: list[Message] = []
        if most <= 0:
            return messages
        end = position
        for stop, body in _frames(self._read(partition, position)):
            messages.append(_message(partition, offset + len(messages), body))
            end = position + stop
            if len(messages) == most:
                break
        self._place[partition] = (offset + len(messages), end)
        return messages

    def _walk(self, partition: int, offset: int, position: int) -> Iterator[tuple[int, int]]:
        """(next offset, byte position) behind each whole frame from a place on."""
        while True:
            start = position
            for stop, _ in _frames(self._read(partition, start)):
                offset, position = offset + 1, start + stop
                yield offset, position
            if position == start:
                return

    def _read(self, partition: int, position: int) -> bytes:
        try:
            with self._topic.path(partition).open("rb") as f:
                if os.fstat(f.fileno()).st_size == position:
                    return b""
                f.seek(position)
                return f.read(READ_BYTES)
        except OSError as e:
            raise SourceUnavailableError(f"{self._topic.path(partition)} cannot be read: {e}") from e

    def commit(self, offsets: Mapping[int, int]) -> None:
        """There is no dashboard."""

    def close(self) -> None:
        """Nothing is held open."""


class _DeadLetterFile:
    def __init__(self, path: Path, topic: str) -> None:
        self._path = path
        self._topic = topic

    def send(self, message: Message, reason: str, detail: str) -> None:
        """Append one JSON line and fsync, unless the same message is there already."""
        line = json.dumps(
            {
                "reason": reason,
                "detail": detail,
                "topic": self._topic,
                "partition": message.partition,
                "offset": message.offset,
                "key": (message.key or b"").decode(errors="replace"),
                "value": (message.value or b"").decode(errors="replace"),
            }
        )
        with _locked(self._path.with_suffix(".lock")), self._path.open("a+") as f:
            f.seek(0)
            if any(line == old.rstrip("\n") for old in f):
                return
            f.write(line + "\n")
            f.flush()
            os.fsync(f.fileno())

    def close(self) -> None:
        """Nothing is held open."""

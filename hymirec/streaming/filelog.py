"""An embedded log: one directory a topic, two files a partition. What the demo and a single machine use.

`N.log` holds frames: (length of the body u32, CRC-32 of the body u32, body), the body is (time in ms i64, length of the
key u16, key, value). Offsets count messages. `N.end` holds how many messages and bytes are stored; readers read up to
there. Writers of all processes take a file lock, append a whole batch, fsync, and then move `N.end`. What lies behind
it after a crash is looked through by the next who opens the log: whole frames are taken, a torn tail is cut off. A
broken frame before `N.end` is damage, never a tail.
"""

from __future__ import annotations

import fcntl
import os
import struct
import threading
import time
import uuid
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import xxhash

from hymirec.artifacts import read_json, write_json
from hymirec.config import StreamConfig
from hymirec.errors import LogDamagedError, PositionOutOfRangeError, SourceUnavailableError
from hymirec.streaming.letters import LetterFile
from hymirec.streaming.source import DeadLetters, EventProducer, EventSource, Message

_FRAME = struct.Struct("<II")
_HEAD = struct.Struct("<qH")
_END = struct.Struct("<QQI")
MAX_BODY = 1 << 22
# Bytes a read; more than one frame, so that a read always makes progress.
READ_BYTES = MAX_BODY + _FRAME.size
# Frames between two remembered places of a reader.
STRIDE = 4_096
POLL_SECONDS = 0.01


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("ab") as f:
        fcntl.flock(f, fcntl.LOCK_EX)
        yield


def _frames(data: bytes) -> Iterator[tuple[int, bytes]]:
    """(end position, body) of each whole frame; ends before the first that is not."""
    position = 0
    while position + _FRAME.size <= len(data):
        length, crc = _FRAME.unpack_from(data, position)
        start = position + _FRAME.size
        body = data[start : start + length]
        if not _HEAD.size <= length <= MAX_BODY or len(body) < length or zlib.crc32(body) != crc:
            return
        position = start + length
        yield position, body


@dataclass(frozen=True)
class _Place:
    """So many messages, so many bytes."""

    offset: int = 0
    position: int = 0


class _Partition:
    """The two files of a partition. Each call opens them: another process may have replaced the topic."""

    def __init__(self, directory: Path, number: int) -> None:
        self.number = number
        self.path = directory / f"{number}.log"
        self._end = directory / f"{number}.end"
        self._lock = directory / f"{number}.lock"

    def create(self) -> None:
        self.path.touch()

    def end(self) -> _Place:
        """What is stored, as far as was made known."""
        for _ in range(3):
            try:
                value = self._end.read_bytes()
            except FileNotFoundError:
                return _Place()
            if len(value) == _END.size:
                offset, position, crc = _END.unpack(value)
                if zlib.crc32(value[:16]) == crc:
                    return _Place(offset, position)
            # Read in the middle of a write.
            time.sleep(0.001)
        return _Place()

    def _publish(self, place: _Place) -> None:
        counts = struct.pack("<QQ", place.offset, place.position)
        fd = os.open(self._end, os.O_WRONLY | os.O_CREAT, 0o644)
        try:
            os.pwrite(fd, counts + struct.pack("<I", zlib.crc32(counts)), 0)
        finally:
            os.close(fd)

    def recover(self) -> None:
        """Take whole frames behind the known end and cut off the torn rest. Costs nothing when there is none."""
        with _locked(self._lock):
            self._recover()

    def _recover(self) -> _Place:
        end = self.end()
        size = self.path.stat().st_size
        if size < end.position:
            raise LogDamagedError(
                f"{self.path} has {size} bytes, {end.position} were stored; restore the log from a copy", self.number
            )
        if size > end.position:
            while (after := self._next_place(end)) != end:
                end = after
            os.truncate(self.path, end.position)
            self._publish(end)
        return end

    def _next_place(self, place: _Place) -> _Place:
        stops = [stop for stop, _ in _frames(self.read(place.position))]
        return _Place(place.offset + len(stops), place.position + stops[-1]) if stops else place

    def append(self, frames: Sequence[bytes]) -> int:
        """Store frames; returns the offset of the first."""
        data = b"".join(frames)
        with _locked(self._lock):
            end = self._recover()
            with self.path.open("ab") as f:
                f.write(data)
                f.flush()
                os.fsync(f.fileno())
            self._publish(_Place(end.offset + len(frames), end.position + len(data)))
        return end.offset

    def read(self, position: int, most: int = READ_BYTES) -> bytes:
        with self.path.open("rb") as f:
            f.seek(position)
            return f.read(most)


class _Topic:
    """Directory with `topic.json` (id, number of partitions) and the partitions' files."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._meta = directory / "topic.json"

    def create(self, partitions: int) -> None:
        """Create the topic, or give it more partitions; fewer are ignored."""
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            with _locked(self.directory / "topic.lock"):
                topic_id, have = self.meta() if self._meta.exists() else (uuid.uuid4().hex, 0)
                if partitions > have:
                    for number in range(have, partitions):
                        self.partition(number).create()
                    write_json(self._meta, {"id": topic_id, "partitions": partitions})
        except OSError as e:
            raise SourceUnavailableError(f"the log at {self.directory} cannot be created: {e}") from e

    def partition(self, number: int) -> _Partition:
        return _Partition(self.directory, number)

    def meta(self) -> tuple[str, int]:
        """Id and number of partitions."""
        if not self._meta.exists():
            raise SourceUnavailableError(f"{self._meta} is not there; the log was removed. Restore it, or start afresh")
        value = read_json(self._meta)
        return str(value["id"]), int(value["partitions"])

    @contextmanager
    def guarded(self) -> Iterator[None]:
        try:
            yield
        except OSError as e:
            raise SourceUnavailableError(f"the log at {self.directory} cannot be used: {e}") from e


class FileLog:
    """See `EventLog`. A new log gets `config.partitions` partitions; an old one keeps what it has."""

    def __init__(self, config: StreamConfig) -> None:
        assert config.path is not None
        self.topic = config.topic
        root = Path(config.path)
        self._topic = _Topic(root / self.topic)
        self._letters = root / f"{config.dead_letter_topic}.jsonl"
        if not (root / self.topic / "topic.json").exists():
            self._topic.create(config.partitions)

    def add_partitions(self, total: int) -> None:
        """Give the topic more partitions."""
        self._topic.create(total)

    def source(self, group: bool) -> EventSource:
        """Reads all partitions; a file log has one reader."""
        return _Source(self._topic)

    def producer(self) -> EventProducer:
        """A writer of the topic."""
        return _Producer(self._topic)

    def dead_letters(self) -> DeadLetters:
        """A JSON line a letter."""
        return LetterFile(self._letters, self.topic)


class _Producer:
    def __init__(self, topic: _Topic) -> None:
        self._topic = topic
        self._lock = threading.Lock()

    def send(self, messages: Sequence[tuple[str, bytes]]) -> list[tuple[int, int]]:
        """Append, grouped by partition; a key's messages keep their order."""
        now = int(time.time() * 1000)
        places = [(-1, -1)] * len(messages)
        with self._lock, self._topic.guarded():
            _, partitions = self._topic.meta()
            frames: dict[int, list[bytes]] = {}
            indices: dict[int, list[int]] = {}
            for i, (key, value) in enumerate(messages):
                encoded = key.encode()
                body = _HEAD.pack(now, len(encoded)) + encoded + value
                if len(body) > MAX_BODY:
                    raise SourceUnavailableError(f"a message of {len(body)} bytes; the log takes {MAX_BODY} at most")
                partition = xxhash.xxh3_64_intdigest(encoded) % partitions
                frames.setdefault(partition, []).append(_FRAME.pack(len(body), zlib.crc32(body)) + body)
                indices.setdefault(partition, []).append(i)
            for partition, parts in frames.items():
                first = self._topic.partition(partition).append(parts)
                for n, i in enumerate(indices[partition]):
                    places[i] = (partition, first + n)
        return places

    def close(self) -> None:
        """Nothing is held open."""


@dataclass
class _Reader:
    """Where a source is in a partition, and places it passed, one every STRIDE messages."""

    partition: _Partition
    place: _Place = field(default_factory=_Place)
    passed: list[_Place] = field(default_factory=lambda: [_Place()])
    waiting: bool = True

    def read(self, most: int) -> list[Message]:
        """Messages up to the end that was made known. Raises LogDamagedError for a broken one among them."""
        end = self.partition.end()
        if end.offset <= self.place.offset:
            return []
        messages: list[Message] = []
        number, offset, stop = self.partition.number, self.place.offset, 0
        for enough in (max(1 << 16, most * 512), READ_BYTES):
            data = self.partition.read(self.place.position, min(enough, end.position - self.place.position))
            for position, body in _frames(data):
                log_ms, key_bytes = _HEAD.unpack_from(body)
                value = _HEAD.size + key_bytes
                messages.append(Message(number, offset + len(messages), body[_HEAD.size : value], body[value:], log_ms))
                stop = position
                if len(messages) == most:
                    break
            if messages:
                break
        if not messages:
            raise LogDamagedError(
                f"{self.partition.path}: the message at offset {offset} (byte {self.place.position}) is damaged; "
                "restore the log from a copy, or go on behind it with `hymirec history reset-position`",
                number,
            )
        self.place = _Place(offset + len(messages), self.place.position + stop)
        if self.place.offset - self.passed[-1].offset >= STRIDE:
            self.passed.append(self.place)
        return messages

    def seek(self, offset: int) -> None:
        """Go to an offset, from the nearest place known before it."""
        end = self.partition.end()
        if not 0 <= offset <= end.offset:
            raise PositionOutOfRangeError(
                f"{self.partition.path} ends at offset {end.offset}, the position is {offset}: messages that were "
                "applied are gone from the log. Restore the log, or reset the position",
                self.partition.number,
            )
        self.waiting = False
        if offset == end.offset:
            self.place = end
            return
        self.place = max((p for p in self.passed if p.offset <= offset), key=lambda p: p.offset)
        while self.place.offset < offset:
            self.read(offset - self.place.offset)


class _Source:
    def __init__(self, topic: _Topic) -> None:
        self._topic = topic
        self._id = ""
        self._readers: dict[int, _Reader] = {}
        self._turn = 0
        self.assigned()

    def assigned(self) -> list[int]:
        """All of them, those added later included."""
        with self._topic.guarded():
            topic_id, partitions = self._topic.meta()
            if topic_id != self._id:
                # Another topic of this name: places in the old one mean nothing.
                self._id, self._readers = topic_id, {}
            for number in range(len(self._readers), partitions):
                partition = self._topic.partition(number)
                # Damage is told when that partition is read; the others go on.
                with suppress(LogDamagedError):
                    partition.recover()
                self._readers[number] = _Reader(partition)
        return list(range(partitions))

    def waiting(self) -> set[int]:
        """Partitions that were not sought yet."""
        return {number for number, reader in self._readers.items() if reader.waiting}

    def topic_id(self) -> str:
        """The id in `topic.json`."""
        with self._topic.guarded():
            return self._topic.meta()[0]

    def beginning(self, partition: int) -> int:
        """Nothing is ever removed."""
        return 0

    def end(self, partition: int) -> int:
        """Messages stored."""
        with self._topic.guarded():
            return self._topic.partition(partition).end().offset

    def seek(self, partition: int, offset: int) -> None:
        """Raises PositionOutOfRangeError behind the end."""
        with self._topic.guarded():
            self._readers[partition].seek(offset)

    def pause(self, partition: int) -> None:
        """Until the next seek."""
        self._readers[partition].waiting = True

    def poll(self, timeout: float, most: int) -> list[Message]:
        """Read what was appended; wait in small steps when there is nothing."""
        deadline = time.monotonic() + timeout
        self._turn += 1
        while True:
            found: list[Message] = []
            readers = [reader for reader in self._readers.values() if not reader.waiting]
            with self._topic.guarded():
                # Each poll begins with another partition, so that a busy one does not keep others waiting.
                for i in range(len(readers)):
                    if len(found) < most:
                        found += readers[(i + self._turn) % len(readers)].read(most - len(found))
            if found or time.monotonic() >= deadline:
                return found
            time.sleep(POLL_SECONDS)

    def commit(self, offsets: Mapping[int, int]) -> None:
        """There is no dashboard."""

    def close(self) -> None:
        """Nothing is held open."""

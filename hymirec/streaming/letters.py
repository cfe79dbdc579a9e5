"""Dead letters of the embedded log: a file of JSON lines, for people to read."""

from __future__ import annotations

import base64
import fcntl
import json
import os
from pathlib import Path
from typing import BinaryIO

from hymirec.errors import SourceUnavailableError
from hymirec.streaming.source import Message

# Bytes at the end of the file in which a letter is looked for before it is written again.
RECENT_BYTES = 1 << 20


class LetterFile:
    """See `DeadLetters`. `value` is text where it is UTF-8, else `value_base64` holds the bytes."""

    def __init__(self, path: Path, topic: str) -> None:
        self._path = path
        self._topic = topic
        self._recent: set[str] = set()
        self._read_to: int | None = None

    def send(self, message: Message, reason: str, detail: str) -> None:
        """Append one JSON line and fsync, unless the same message is there already."""
        place = {"topic": self._topic, "partition": message.partition, "offset": message.offset}
        letter = {"reason": reason, "detail": detail[:500], **place, **_text("key", message.key)}
        line = json.dumps(letter | _text("value", message.value), ensure_ascii=False)
        try:
            with self._path.open("a+b") as f:
                fcntl.flock(f, fcntl.LOCK_EX)
                self._read_on(f)
                if line in self._recent:
                    return
                f.write(line.encode() + b"\n")
                f.flush()
                os.fsync(f.fileno())
                self._read_to = f.tell()
        except OSError as e:
            raise SourceUnavailableError(f"the dead letters at {self._path} cannot be written: {e}") from e
        self._recent.add(line)

    def _read_on(self, file: BinaryIO) -> None:
        """The newest lines, then what another writer has added; a line that a crash left torn is ended."""
        size = file.seek(0, os.SEEK_END)
        start = self._read_to
        if start is None or start > size:
            start = max(0, size - RECENT_BYTES)
        file.seek(start)
        added = file.read()
        if added and not added.endswith(b"\n"):
            file.write(b"\n")
        self._recent.update(added.decode(errors="replace").splitlines())
        self._read_to = file.tell()

    def close(self) -> None:
        """Nothing is held open."""


def _text(name: str, value: bytes | None) -> dict[str, str]:
    try:
        return {name: (value or b"").decode()}
    except UnicodeDecodeError:
        return {f"{name}_base64": base64.b64encode(value or b"").decode()}

"""Dead letters of the embedded log: a file of JSON lines, for people to read."""

from __future__ import annotations

import base64
import fcntl
import json
import os
from pathlib import Path

from hymirec.errors import SourceUnavailableError
from hymirec.streaming.source import Message


class LetterFile:
    """See `DeadLetters`. `value` is text where it is UTF-8, else `value_base64` holds the bytes."""

    def __init__(self, path: Path, topic: str) -> None:
        self._path = path
        self._topic = topic

    def send(self, message: Message, reason: str, detail: str) -> None:
        """Append one JSON line and fsync, unless the same message is there already."""
        place = {"topic": self._topic, "partition": message.partition, "offset": message.offset}
        letter = {"reason": reason, "detail": detail[:500], **place, **_text("key", message.key)}
        line = json.dumps(letter | _text("value", message.value), ensure_ascii=False)
        try:
            with self._path.open("a+", encoding="utf-8") as f:
                fcntl.flock(f, fcntl.LOCK_EX)
                f.seek(0)
                old = f.read()
                if line in old.splitlines():
                    return
                # A line that a crash left torn ends here.
                f.write("\n" * bool(old and not old.endswith("\n")) + line + "\n")
                f.flush()
                os.fsync(f.fileno())
        except OSError as e:
            raise SourceUnavailableError(f"the dead letters at {self._path} cannot be written: {e}") from e

    def close(self) -> None:
        """Nothing is held open."""


def _text(name: str, value: bytes | None) -> dict[str, str]:
    try:
        return {name: (value or b"").decode()}
    except UnicodeDecodeError:
        return {f"{name}_base64": base64.b64encode(value or b"").decode()}

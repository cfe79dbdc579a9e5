"""What is popular now, kept up to date: a thread beside the model reads the event log and lets the model count.

A ranker's counts are those of its bundle and of the events since: a function of bundle and log, whichever replica asks
and however often it restarts. The log is only read; no position of it is kept anywhere.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress

import numpy as np
from numpy.typing import NDArray

from hymirec.errors import EventError, HyMiRecError
from hymirec.streaming.decode import decode
from hymirec.streaming.source import EventLog, EventSource, Message

BATCH = 5_000
POLL_SECONDS = 0.2
BACKOFF_SECONDS = 5.0
log = logging.getLogger(__name__)

Observe = Callable[[NDArray[np.uint64], NDArray[np.int64]], None]


class Pulse:
    """Calls `observe` with item keys and times (seconds) of the events, batch by batch, on a thread of its own.

    Begins `backlog` messages a partition before the end of the log, and goes on with what is written. A log that does
    not answer is asked again; what was popular stays in force meanwhile. `close` ends the thread.
    """

    def __init__(self, event_log: EventLog, backlog: int, observe: Observe) -> None:
        self._log, self._backlog, self._observe = event_log, backlog, observe
        self._next: dict[int, int] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="pulse", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Finish the batch in progress."""
        self._stop.set()
        self._thread.join(BACKOFF_SECONDS)

    def _run(self) -> None:
        source: EventSource | None = None
        while not self._stop.is_set():
            try:
                source = source or self._log.source(group=False)
                self._round(source)
            except (HyMiRecError, OSError) as e:
                log.warning("what is popular now stands still: %s", e)
                _close(source)
                source = None
                self._stop.wait(BACKOFF_SECONDS)
        _close(source)

    def _round(self, source: EventSource) -> None:
        for partition in source.waiting():
            low, high = source.beginning(partition), source.end(partition)
            wanted = self._next.get(partition, high - self._backlog)
            # Past the end: the topic was created again. Before the beginning: what is gone counts no more.
            start = low if wanted > high else max(low, wanted)
            source.seek(partition, start)
            self._next[partition] = start
        messages = source.poll(POLL_SECONDS, BATCH)
        keys, ts = _events(messages)
        if len(keys):
            self._observe(keys, ts)
        for message in messages:
            self._next[message.partition] = message.offset + 1


def _events(messages: Sequence[Message]) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """Item keys and times of the usable events; erasures name no item, and the writer tells of the unusable."""
    keys: list[int] = []
    ts: list[int] = []
    for message in messages:
        with suppress(EventError):
            entry = decode(message.value, message.offset, message.log_ms).entry
            if entry.key is not None:
                keys.append(entry.key)
                ts.append(entry.ts)
    return np.array(keys, np.uint64), np.array(ts, np.int64)


def _close(source: EventSource | None) -> None:
    if source is not None:
        with suppress(Exception):
            source.close()

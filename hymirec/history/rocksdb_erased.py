"""What was erased leaves RocksDB's files within a stated time.

A deletion in RocksDB is a mark; the bytes stay until files are merged, for one who never comes back perhaps for ever.
So half the window after the first erasure the store is written anew as a whole, by a thread of its own, while reads and
writes go on. When that is due stands in a file beside RocksDB's own, written before the erasure is.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

from hymirec.errors import HyMiRecError

log = logging.getLogger(__name__)
FILE = "erased-since"


class Erased:
    """Since when something erased may lie in a store's files.

    `rewrite` leaves nothing of it, or less and returns False when what it is given turns true.
    """

    def __init__(
        self, directory: Path, window_seconds: float | None, rewrite: Callable[[Callable[[], bool]], bool]
    ) -> None:
        self._file, self._window, self._rewrite = directory / FILE, window_seconds, rewrite
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._since = self._read()
        # The first erasure after a rewrite began.
        self._again: float | None = None
        self._thread: threading.Thread | None = None

    def _read(self) -> float | None:
        try:
            return float(self._file.read_text())
        except FileNotFoundError:
            return None
        except ValueError:
            # Cut off by a crash: it was about to be due later than this.
            return 0.0

    def note(self) -> None:
        """An erasure is about to be written. Raises OSError when that cannot be noted."""
        with self._lock:
            if self._since is None:
                self._write(time.time())
            elif self._thread is not None and self._again is None:
                self._again = time.time()

    def _write(self, since: float) -> None:
        with self._file.open("w") as file:
            file.write(repr(since))
            file.flush()
            os.fsync(file.fileno())
        self._since = since

    def begin_when_due(self) -> None:
        """Rewrite in the background when half the window is over."""
        with self._lock:
            if self._window is None or self._since is None or self._thread is not None:
                return
            if time.time() < self._since + self._window / 2:
                return
            self._again = None
            self._thread = threading.Thread(target=self._run, name="history-erased", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        begun, whole = time.monotonic(), False
        try:
            whole = self._rewrite(self._stop.is_set)
            if whole:
                log.info("what was erased has left the history store's files in %.1f s", time.monotonic() - begun)
        except HyMiRecError as e:
            log.warning("what was erased still lies in the history store's files; tried again in a while: %s", e)
        with self._lock:
            self._thread = None
            if not whole:
                self._since = time.time() if not self._stop.is_set() else self._since
            elif self._again is not None:
                self._write(self._again)
            else:
                self._since = None
                self._file.unlink(missing_ok=True)

    def stop(self) -> None:
        """Break a rewrite off, as before the store is closed; it is due again as soon as it is open."""
        thread = self._thread
        if thread is not None:
            self._stop.set()
            thread.join()
            self._stop.clear()

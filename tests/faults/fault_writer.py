"""The processes that a crash run starts: a writer, to be killed, and a producer.

They come from a fork server that has the library loaded, so that a process costs milliseconds and no thread is forked:
that of Arrow's allocator is switched off there. A few children in a thousand hung on a busy machine, probably for it.
"""

from __future__ import annotations

import faulthandler
import logging
import multiprocessing
import os
import signal
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Any

from fault_bugs import BUGS
from fault_points import Plan, Points, Watched, WatchedLog, note, watch_writes

from hymirec.config import HistoryConfig, StreamConfig
from hymirec.history import open_store
from hymirec.streaming import HistoryConsumer, open_log

os.environ.setdefault("JE_ARROW_MALLOC_CONF", "background_thread:false")
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(
    ["__main__", *(f"hymirec.{name}" for name in ("history.rocksdb", "history.redis", "streaming.filelog"))]
)
TOPIC_CHECK_SECONDS = 0.1
# On this a writer adds the stacks of its threads to its messages.
STACKS_SIGNAL = signal.SIGUSR1


def write(
    stream: StreamConfig,
    history: HistoryConfig,
    plan: Plan,
    bug: str | None,
    published: Any,
    parent: Connection,
    messages: str,
    begun: Any,
    control: Any = None,
) -> None:
    """Consume until killed. Says "there" at a planned place, and its partitions' problems whenever they change.

    With `control` it is a member of the group: `control[0]` is where it is to fall asleep (see `STOPS`), `control[1]`
    how many partitions it has.
    """
    faulthandler.register(STACKS_SIGNAL, file=open(messages, "a"), all_threads=True)  # noqa: SIM115 - until killed
    begun[0] = 1
    logging.basicConfig(filename=messages, level=logging.WARNING)
    if bug is not None:
        BUGS[bug].plant()
    points = Points(plan, parent.send, control)
    watch_writes(points)
    store: Any = Watched(open_store(history), points, apply="apply", positions="positions")
    consumers = [
        HistoryConsumer(
            WatchedLog(open_log(stream), points, published),
            store,
            stream,
            group=control is not None,
            topic_check_seconds=TOPIC_CHECK_SECONDS if stream.source == "file" else 1.0,
        )
        for _ in range(plan.writers)
    ]
    for consumer in consumers:
        consumer.start()
    known: dict[str, str] = {}
    while True:
        status = consumers[0].status()
        # Where nothing waits in memory, applied is as good as written.
        note(published, store.written(stream.topic) if history.flush_events else status.positions)
        if control is not None:
            control[1] = len(status.positions)
        if status.problems != known:
            known = status.problems
            parent.send(known)
        time.sleep(0.005)


def produce(stream: StreamConfig, parent: Connection) -> None:
    """Send what comes from the parent, in pieces; answers with the next offset of each partition."""
    producer = open_log(stream).producer()
    ends: dict[int, int] = {}
    while True:
        try:
            pieces: Sequence[Sequence[tuple[str, bytes]]] = parent.recv()
        except EOFError:
            return
        for piece in pieces:
            for partition, offset in producer.send(piece):
                ends[partition] = max(ends.get(partition, 0), offset + 1)
            time.sleep(0.003)
        parent.send(ends)
        ends = {}

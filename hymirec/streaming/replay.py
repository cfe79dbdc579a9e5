"""The log read again from its beginning, as far as a store has applied it: what a store is compared with."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping

from hymirec.errors import EventError, PositionOutOfRangeError, SourceUnavailableError
from hymirec.history import Position
from hymirec.history.verify import Placed
from hymirec.streaming.decode import decode
from hymirec.streaming.source import EventSource

BATCH = 5_000
SILENT_SECONDS = 20.0


def replay(
    source: EventSource, stored: Mapping[int, Position], start: Mapping[int, int] | None = None
) -> Iterator[Placed]:
    """Every usable message below each partition's stored position, partition by partition, in order of offset.

    `start` is where a partition begins, 0 when it is not named: what is before it came into the store in another way.
    Messages that go to the dead letters are left out, as the consumer leaves them out.
    Raises PositionOutOfRangeError when the log no longer begins there, SourceUnavailableError when it falls silent.
    """
    for partition in sorted(stored):
        stop, first = stored[partition].offset, source.beginning(partition)
        begin = (start or {}).get(partition, 0)
        if first > begin and stop > begin:
            raise PositionOutOfRangeError(
                f"partition {partition} begins at offset {first}: what came before it is no longer in the log, so the "
                "store cannot be compared with it",
                partition,
            )
        for waiting in source.assigned():
            source.pause(waiting)
        yield from _partition(source, partition, begin, stored[partition])


def _partition(source: EventSource, partition: int, offset: int, stop: Position) -> Iterator[Placed]:
    deadline = time.monotonic() + SILENT_SECONDS
    if offset >= stop.offset:
        return
    source.seek(partition, offset)
    while offset < stop.offset:
        messages = source.poll(0.2, BATCH)
        for message in messages:
            # Offsets may have holes (compaction, transactions); what counts is having come past the position.
            offset = message.offset + 1
            if offset > stop.offset:
                return
            try:
                entry = decode(message.value, message.offset, message.log_ms).entry
            except EventError:
                continue
            yield Placed(stop.topic_id, partition, entry)
        if messages:
            deadline = time.monotonic() + SILENT_SECONDS
        elif time.monotonic() > deadline:
            raise SourceUnavailableError(
                f"partition {partition}: nothing came after offset {offset} for {SILENT_SECONDS:.0f} s, but the store "
                f"is at {stop.offset}; look at the log"
            )

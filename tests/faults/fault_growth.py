"""A topic that gets partitions while its writer is killed again and again.

The order of a user's events in two partitions is not defined in the log, so the fold of the other runs says nothing.
Here every event has a time of its own: after each kill a history is what lies below the stored positions, once, in
order of time.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

from fault_check import READ_SECONDS, read_on
from fault_points import draw
from fault_run import CrashRun, Report
from fault_stream import START, LogMessage
from fault_writer import PROCESSES, produce

from hymirec.catalog.events import Event
from hymirec.streaming import decode, event_message

USERS, RECENT = 20, 30


def timed_events(seed: int) -> Iterator[LogMessage]:
    """Events without end, each with a time of its own, mostly rising; one in ten is sent again."""
    rng = random.Random(seed)
    sent: list[LogMessage] = []
    # Blocks of ten times, each in any order.
    for start in range(START, START + 1_000_000, 10):
        for ts in rng.sample(range(start, start + 10), 10):
            name = f"e{ts}"
            event = Event(event_id=name, user_id=f"u{rng.randrange(USERS)}", item_id=name, ts=ts, action="click")
            sent.append(event_message(event))
            yield sent[-1]
            if rng.random() < 0.1:
                yield rng.choice(sent[-RECENT:])


class GrowingRun(CrashRun):
    """The log is Kafka. Histories must be bounded by more than what is sent."""

    def run_growing(self, kills: int, additions: int) -> Report:
        """So many kills, and so many partitions added among them, each while a writer runs and events come."""
        self._stream = timed_events(self._rng.getrandbits(32))
        first, self._grow_now = len(self._contents), False
        growing = {kills * (n + 1) // (additions + 1) for n in range(additions)}
        try:
            for number in range(kills):
                self._grow_now = number in growing
                self._round(draw(self._rng, self._reach, 1))
                if self.report.faults:
                    return self.report
            # Users move to the new partitions, or the run would show nothing.
            self._send(200)
            self._wait_for_producer()
            self._finish()
            empty = [p for p in range(first, first + additions) if not self._contents.get(p)]
            if empty and not self.report.faults:
                self.report.faults["stuck"] += 1
                self.report.notes.append(f"no event came to the partitions {empty} that were added")
        finally:
            self._close()
        return self.report

    def _send(self, count: int, poison: bool = False) -> None:
        super()._send(count, poison)
        if self._grow_now:
            self._grow_now = False
            self._wait_for_producer()
            self._log.add_partition()
            # A producer looks for partitions every five minutes; one that starts now knows them.
            self._producer.close()
            self._producer_process.join(10)
            mine, theirs = PROCESSES.Pipe()
            self._producer = mine
            self._producer_process = PROCESSES.Process(target=produce, args=(self._log.config, theirs), daemon=True)
            self._producer_process.start()
            theirs.close()
            super()._send(count)

    def _compare(self, store: Any, final: bool) -> Counter[str]:
        positions = store.positions(self._log.topic)
        expected: dict[str, dict[int, int]] = {f"u{n}": {} for n in range(USERS)}
        faults: Counter[str] = Counter()
        # The writer may know a new partition before the source of this process does.
        end = time.monotonic() + READ_SECONDS
        while not set(positions) <= set(assigned := self._source.assigned()) and time.monotonic() < end:
            time.sleep(0.1)
        faults["unknown partition"] += len(set(positions) - set(assigned))
        for partition in assigned:
            have = self._contents.setdefault(partition, [])
            read_on(self._source, have, partition, self._source.end(partition))
            offset = positions[partition].offset if partition in positions else 0
            faults["taken back"] += max(0, self._published[partition] - offset)
            faults["beyond the log"] += max(0, offset - len(have))
            faults["not applied"] += max(0, len(have) - offset) if final else 0
            for message in have[:offset]:
                entry = decode(message.value, message.offset, message.log_ms).entry
                assert entry.key is not None
                expected[entry.user_id][entry.ts] = entry.key
        for user, events in expected.items():
            history = store.read(user)
            found, due = list(zip(history.ts.tolist(), history.keys.tolist(), strict=True)), sorted(events.items())
            faults["lost"] += len(set(due) - set(found))
            faults["from nowhere"] += len(set(found) - set(due))
            faults["doubled"] += len(found) - len(set(found))
            faults["reordered"] += found != sorted(found)
        if final:
            stored = Counter(message.value for have in self._contents.values() for message in have)
            faults["log"] += self._sent != stored
        return +faults

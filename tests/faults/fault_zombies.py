"""Two writers of one group on one store: put to sleep for longer than the session timeout, and rebalanced by force."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fault_points import STOPS, Plan
from fault_run import PATIENCE_SECONDS, CrashRun, Report, _Writer
from fault_writer import PROCESSES
from patience import happens

from hymirec.streaming.source import EventSource

PARTITIONS = 4
SESSION_SECONDS = 2.0


class ZombieRun(CrashRun):
    """The log is Kafka, the store Redis."""

    def run_zombies(self, stops: int, rebalances: int) -> Report:
        """So many sleeps beyond the session timeout, and so many joins and leaves of a third member."""
        with self._two_members() as (writers, controls):
            for _ in range(stops):
                self._sleep(writers, controls)
            for _ in range((rebalances + 1) // 2):
                self._join_and_leave()
            self._settle(controls)
            self._catch_up("the end")
            self._look("at the end", final=True)
        return self.report

    def run_killed_after_a_letter(self) -> Report:
        """A member dies between a dead letter and its position; the other has read the letters long before."""
        with self._two_members() as (writers, controls):
            self._send(60, poison=True)
            self._catch_up("the first letters")
            controls[0][0] = STOPS.index("after letter")
            self._send(60, poison=True)
            if not happens(lambda: _stopped(writers[0].process.pid), PATIENCE_SECONDS):
                self._fault("stuck", "no letter was written")
            self._kill(writers[0], "after letter")
            self._wait_for_producer()
            self._catch_up("the other one")
            self._look("at the end", final=True)
        return self.report

    @contextmanager
    def _two_members(self) -> Iterator[tuple[list[_Writer], list[Any]]]:
        controls = [PROCESSES.RawArray("i", 2) for _ in range(2)]
        writers = [self._start(Plan(), control) for control in controls]
        try:
            self._settle(controls)
            yield writers, controls
        finally:
            for writer in writers:
                writer.process.kill()
                writer.process.join()
            self._close()

    def _settle(self, controls: list[Any]) -> None:
        """Both are members."""

        def both() -> bool:
            return all(c[1] for c in controls) and sum(c[1] for c in controls) == PARTITIONS

        if not happens(both, 2 * PATIENCE_SECONDS):
            self._fault("stuck", f"the group did not settle: {[list(c) for c in controls]}")

    def _sleep(self, writers: list[_Writer], controls: list[Any]) -> None:
        """One writer stops in the middle of its work, the other takes over and goes on, the first one wakes up."""
        chosen, place = self._rng.randrange(2), self._rng.randrange(len(STOPS))
        pid = writers[chosen].process.pid
        assert pid is not None
        controls[chosen][0] = place
        self._send(60)
        if place == 0 or not happens(lambda: _stopped(pid), 3.0):
            os.kill(pid, signal.SIGSTOP)
        controls[chosen][0] = 0
        self._wait_for_producer()
        begun = time.monotonic()
        self._send(60)
        # To the end of partitions, the sleeper's included.
        self._catch_up(f"asleep {STOPS[place] or 'at any time'}")
        happens(lambda: time.monotonic() > begun + SESSION_SECONDS * 1.2, PATIENCE_SECONDS)
        os.kill(pid, signal.SIGCONT)
        self.report.kills[f"asleep {STOPS[place] or 'at any time'}"] += 1
        self._send(30)
        self._settle(controls)
        self._catch_up("after waking up")

    def _join_and_leave(self) -> None:
        """A third member comes, takes its share, reads nothing, and goes."""
        member = self._log.open().source(group=True)
        try:
            self._send(30)
            if not happens(lambda: _joined(member), PATIENCE_SECONDS):
                self._fault("stuck", "a third member was assigned nothing")
        finally:
            member.close()
        self._wait_for_producer()
        self._catch_up("after a rebalance")
        self.report.kills["rebalance"] += 2

    def _catch_up(self, when: str) -> None:
        if not happens(self._caught_up, 2 * PATIENCE_SECONDS):
            self._fault("stuck", f"{when}: {list(self._published)[:PARTITIONS]} of {self._ends}")

    def _fault(self, kind: str, note: str) -> None:
        self.report.faults[kind] += 1
        self.report.notes.append(note)


def _stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def _joined(member: EventSource) -> bool:
    member.poll(0.1, 100)
    return bool(member.assigned())

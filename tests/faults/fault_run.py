"""One crash run: a stream is produced while its writer is killed again and again, and the store is looked at each time.

After each kill:  every history equals the fold of the log up to the stored position;  no published position is taken
back;  each message that cannot be used is one dead letter.  At the end the writer comes to the end of the log, too.
"""

from __future__ import annotations

import os
import random
import shutil
import time
from collections import Counter
from dataclasses import dataclass, field
from itertools import islice
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from fault_check import (
    compare,
    compare_letters,
    cut_of,
    file_letters,
    open_reader,
    place,
    read_on,
    topic_letters,
)
from fault_points import Plan, draw
from fault_stream import messages
from fault_writer import PROCESSES, STACKS_SIGNAL, produce, write
from patience import happens
from services import RedisServer
from stream_logs import LogUnderTest

from hymirec.config import HistoryConfig
from hymirec.history import open_store
from hymirec.history.verify import Placed
from hymirec.streaming import Message, open_log
from hymirec.streaming.replay import replay

PATIENCE_SECONDS = 30.0
START_SECONDS = 10.0
STEP_SECONDS = 0.005
STACKS_SECONDS = 1.0
MAX_PARTITIONS = 16


@dataclass
class Report:
    """What a run did and found. `faults` counts by kind; empty is well."""

    kills: Counter[str] = field(default_factory=Counter)
    messages: int = 0
    looks: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)

    def add(self, other: Report) -> None:
        """Sum up."""
        self.kills += other.kills
        self.messages += other.messages
        self.looks += other.looks
        self.faults += other.faults
        self.notes += other.notes


class CrashRun:
    """See the module. `reach` is how long after its start, in seconds, a writer may be killed at any time."""

    def __init__(
        self,
        log: LogUnderTest,
        history: HistoryConfig,
        seed: int,
        bug: str | None = None,
        reach: float = 0.15,
        redis_server: RedisServer | None = None,
        two_writers: float = 0.2,
    ) -> None:
        self.report = Report()
        self._log, self._history, self._bug, self._reach = log, history, bug, reach
        self._redis, self._two_writers = redis_server, two_writers
        self._rng = random.Random(seed)
        self._stream = messages(seed, users=self._rng.choice([3, 20, 60]))
        self._published: Any = PROCESSES.RawArray("q", MAX_PARTITIONS)
        self._producing = False
        self._sent: Counter[bytes] = Counter()
        self._ends: dict[int, int] = {}
        # Of topics that were deleted: what was applied of them, and their letters.
        self._before: list[Placed] = []
        self._applied: list[Placed] = []
        self._old_letters: list[tuple[int, int, bytes]] = []
        self._open_log()
        mine, theirs = PROCESSES.Pipe()
        self._producer = mine
        self._producer_process = PROCESSES.Process(target=produce, args=(log.config, theirs), daemon=True)
        self._producer_process.start()

    def _open_log(self) -> None:
        self._source = self._log.open().source(group=False)
        self._contents: dict[int, list[Message]] = {partition: [] for partition in self._source.assigned()}

    def run(self, kills: int, recreate_at: int | None = None, roll_back_at: int | None = None) -> Report:
        """Kill so often (a bug that was found ends it early), then let the writer come to the end."""
        try:
            while self.report.kills.total() < kills and not self.report.faults:
                done = self.report.kills.total()
                if recreate_at is not None and done >= recreate_at:
                    self._recreate()
                    recreate_at = None
                elif roll_back_at is not None and done >= roll_back_at:
                    self._roll_back()
                    roll_back_at = None
                else:
                    writers = 2 if self._rng.random() < self._two_writers else 1
                    self._round(draw(self._rng, self._reach, writers))
            if not self.report.faults:
                self._finish()
        finally:
            self._close()
        return self.report

    def _close(self) -> None:
        self._producer.close()
        self._producer_process.join(10)
        self._source.close()

    def _round(self, plan: Plan) -> None:
        writer = self._start(plan)
        self._send(self._rng.randrange(20, 90))
        if not plan.place:
            time.sleep(plan.delay or 0)
        else:
            happens(lambda: self._there(writer) or self._caught_up(), PATIENCE_SECONDS, STEP_SECONDS)
            if plan.delay is not None:
                time.sleep(plan.delay)
        self._kill(writer, plan.name)
        self._wait_for_producer()
        self._look(f"after {plan.name} {plan.nth}")

    def _start(self, plan: Plan, control: Any = None) -> _Writer:
        patience = START_SECONDS
        while True:
            mine, theirs = PROCESSES.Pipe()
            begun = PROCESSES.RawArray("b", 1)
            messages = str(self._messages())
            arguments = (self._log.config, self._history, plan, self._bug, self._published, theirs, messages, begun)
            process = PROCESSES.Process(target=write, args=(*arguments, control), daemon=True)
            process.start()
            theirs.close()
            # A child that hangs before its first line is no writer yet. It may only be a busier machine.
            if plan.any_time or happens(lambda: bool(begun[0]), patience, STEP_SECONDS):  # noqa: B023
                return _Writer(process, mine)
            process.kill()
            process.join()
            mine.close()
            patience += START_SECONDS

    def _messages(self) -> Path:
        """Where writers say what they log, and their stacks."""
        return self._log._path / "writer.log"

    def _stacks(self, writer: _Writer) -> str:
        """What the writer's threads are doing, for someone who was not there."""
        before = self._messages().stat().st_size if self._messages().exists() else 0
        if writer.process.is_alive():
            os.kill(writer.process.pid, STACKS_SIGNAL)
            time.sleep(STACKS_SECONDS)
        with self._messages().open("rb") as f:
            f.seek(before)
            return f.read().decode(errors="replace") or "the writer says nothing of its threads"

    def _kill(self, writer: _Writer, name: str) -> None:
        writer.process.kill()
        writer.process.join()
        writer.told.close()
        self.report.kills[name] += 1

    def _send(self, count: int, poison: bool = False) -> None:
        """In four pieces, while the writer runs."""
        sent = list(islice(self._stream, count))
        if poison:
            sent = [(user, b"{%d" % self._rng.getrandbits(40)) for user, _ in sent]
        self.report.messages += count
        self._sent.update(value for _, value in sent)
        step = -(-count // 4)
        self._producer.send([sent[i : i + step] for i in range(0, count, step)])
        self._producing = True

    def _wait_for_producer(self) -> None:
        if self._producing:
            self._ends.update(self._producer.recv())
            self._producing = False

    def _caught_up(self) -> bool:
        if self._producing and self._producer.poll(0):
            self._wait_for_producer()
        return not self._producing and all(self._published[p] >= end for p, end in self._ends.items())

    @staticmethod
    def _there(writer: _Writer) -> bool:
        """Whether the writer is at its place: it said so, or died there."""
        if wait([writer.process.sentinel], timeout=0):
            return True
        try:
            while writer.told.poll(0):
                said = writer.told.recv()
                if said == "there":
                    return True
                writer.problems = said
        except (EOFError, ConnectionResetError):
            return True
        return False

    def _look(self, when: str, final: bool = False) -> None:
        """Compare the store with the log up to the stored positions."""
        try:
            store = open_reader(self._history)
            if store is None:
                return
            try:
                faults = self._compare(store, final)
            finally:
                store.close()
        except Exception as e:  # noqa: BLE001 - whatever it is, the store is not what it should be
            faults = Counter({"unreadable": 1})
            when += f": {type(e).__name__}: {e}"
        self.report.looks += 1
        if faults:
            self.report.faults += faults
            self.report.notes.append(f"{when}: {dict(faults)}")

    def _compare(self, store: Any, final: bool) -> Counter[str]:
        for partition, have in self._contents.items():
            read_on(self._source, have, partition, self._source.end(partition))
        positions, cut = cut_of(store, self._log.topic)
        faults: Counter[str] = Counter()
        for partition, have in self._contents.items():
            offset = positions[partition].offset if partition in positions else 0
            faults["taken back"] += max(0, self._published[partition] - offset)
            faults["beyond the log"] += max(0, offset - len(have))
            faults["not applied"] += max(0, len(have) - offset) if final else 0
        everything = [message for have in self._contents.values() for message in have]
        placed, letters = place(everything, self._source.topic_id())
        self._applied = [p for p in placed if p.entry.offset < cut(p.partition, p.entry.user_id)]
        faults += compare(store, self._before + self._applied, self._history)
        due = [x for x in letters if x[0] in positions and x[1] < positions[x[0]].offset]
        faults += compare_letters(self._letters(), self._old_letters + due, final)
        if final and not faults:
            # The log itself lost nothing, and `hymirec history verify` would read it the same way.
            faults["log"] += self._sent != Counter(message.value for message in everything)
            faults["replay"] += list(replay(self._source, positions)) != placed
        return +faults

    def _letters(self) -> list[tuple[int, int, bytes]]:
        if self._log.kind == "file":
            return file_letters(self._log._path / f"{self._log.config.dead_letter_topic}.jsonl")
        config = self._log.config.model_copy(update={"topic": self._log.config.dead_letter_topic})
        source = open_log(config).source(group=False)
        try:
            return topic_letters(source)
        finally:
            source.close()

    def _finish(self) -> None:
        """Let a writer come to the end."""
        self._come_to_the_end("the end")
        self._look("at the end", final=True)

    def _come_to_the_end(self, name: str) -> None:
        writer = self._start(Plan())
        happens(lambda: self._there(writer) or self._caught_up(), PATIENCE_SECONDS, STEP_SECONDS)
        if not self._caught_up():
            self.report.faults["stuck"] += 1
            stuck = f"{name}: stuck at {list(self._published)} of {self._ends}; {writer.problems}"
            self.report.notes.append(f"{stuck}\n{self._stacks(writer)}")
        self._kill(writer, "caught up")

    def _recreate(self) -> None:
        """Delete the topic and create it again, longer than it was: told, and nothing applied before it is resolved."""
        self._come_to_the_end("before the topic is deleted")
        self._look("before the topic is deleted", final=False)
        self._before += self._applied
        self._old_letters = self._letters()
        old = dict(self._ends)
        self._source.close()
        self._log.recreate()
        self._open_log()
        self._ends, self._sent = {}, Counter()
        for partition in range(MAX_PARTITIONS):
            self._published[partition] = 0
        self._send(2 * sum(old.values()) + 50)
        self._wait_for_producer()
        writer = self._start(Plan())

        def told() -> bool:
            return set(map(str, old)) <= set(writer.problems)

        happens(lambda: self._there(writer) or told() or any(self._published), PATIENCE_SECONDS / 2, STEP_SECONDS)
        self._kill(writer, "topic created again")
        if not told() or any(self._published):
            self.report.faults["not told"] += 1
            self.report.notes.append(f"the topic was created again: {writer.problems}, {list(self._published)}")
        operator = open_store(self._history)
        for partition in self._contents:
            operator.reset_position(self._log.topic, partition, None)
        operator.close()
        self._applied = []

    def _roll_back(self) -> None:
        """Redis comes back without its last writes, under a writer that lives on: the hole is found and filled."""
        server = self._redis
        assert server is not None
        writer = self._start(Plan())
        happens(self._caught_up, PATIENCE_SECONDS, STEP_SECONDS)
        saved = server.data.with_name(f"{server.data.name}-saved")
        shutil.copytree(server.data, saved)
        self._send(60)
        happens(self._caught_up, PATIENCE_SECONDS, STEP_SECONDS)
        server.kill()
        shutil.rmtree(server.data)
        saved.rename(server.data)
        server.start()
        self._send(60)
        happens(self._caught_up, PATIENCE_SECONDS, STEP_SECONDS)
        self._kill(writer, "Redis lost writes")
        self._look("after Redis lost writes")


@dataclass
class _Writer:
    process: Any
    told: Any
    problems: dict[str, str] = field(default_factory=dict)

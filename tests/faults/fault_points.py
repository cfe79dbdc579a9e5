"""Places at which a writer dies. They wrap what the library is given (log, store) and what it writes through."""

from __future__ import annotations

import os
import random
import signal
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import redis
import rocksdict

import hymirec.history.rocksdb
from hymirec.streaming import EventLog

# Calls that are places, and up to which call of a process it is worth waiting for them. Half of all plans are writes.
PLACES = {"write": 12, "poll": 8, "seek": 2, "letter": 3, "apply": 8, "commit": 8, "positions": 1}
# Places at which a writer falls asleep; the number is what the harness puts into `control[0]`.
STOPS = ("", "before apply", "before write", "after write", "after apply", "before commit", "after letter")


@dataclass(frozen=True)
class Plan:
    """How a writer ends: `delay` seconds after its start, or at the n-th time that it comes to a place.

    With a place and a delay the writer says that it is there and goes on, and the harness kills it in the middle of
    whatever it does `delay` seconds later.
    """

    place: str = ""
    nth: int = 1
    delay: float | None = None
    writers: int = 1

    @property
    def any_time(self) -> bool:
        """Killed so many seconds after its start, wherever it is."""
        return not self.place and self.delay is not None

    @property
    def name(self) -> str:
        """What the table calls it."""
        if not self.place:
            return "any time"
        return f"{self.place}, then {'at once' if self.delay is None else 'within 3 ms'}"


def draw(rng: random.Random, reach: float, writers: int = 1) -> Plan:
    """A plan: a third at any time up to `reach` seconds, half at a place, the rest shortly after one."""
    kind = rng.random()
    if kind < 0.33:
        return Plan(delay=rng.random() * reach, writers=writers)
    name = rng.choice(["write", rng.choice(list(PLACES))])
    nth = rng.randint(1, PLACES[name])
    if kind < 0.83:
        return Plan(rng.choice(["before ", "after "]) + name, nth, writers=writers)
    return Plan(f"before {name}", nth, rng.random() * 0.003, writers)


class Points:
    """Counts how often this process came to each place, and carries out the plan."""

    def __init__(self, plan: Plan, say: Callable[[str], None], control: Any = None) -> None:
        self._plan, self._say, self._control = plan, say, control
        self._seen: Counter[str] = Counter()
        self._lock = threading.Lock()

    def reach(self, place: str) -> None:
        """Be at a place."""
        if self._control is not None and self._control[0] and place == STOPS[self._control[0]]:
            self._control[0] = 0
            os.kill(os.getpid(), signal.SIGSTOP)
        with self._lock:
            self._seen[place] += 1
            if place != self._plan.place or self._seen[place] != self._plan.nth:
                return
        if self._plan.delay is None:
            os.kill(os.getpid(), signal.SIGKILL)
        self._say("there")


class Watched:
    """Hands everything on; the calls named in `places` are places."""

    def __init__(self, inner: Any, points: Points, **places: str) -> None:
        self._inner, self._points, self._places = inner, points, places

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        place = self._places.get(name)
        return found if place is None else _around(found, self._points, place)


def _around(call: Callable[..., Any], points: Points, place: str) -> Callable[..., Any]:
    def watched(*arguments: Any, **options: Any) -> Any:
        points.reach(f"before {place}")
        result = call(*arguments, **options)
        points.reach(f"after {place}")
        return result

    return watched


class WatchedLog:
    """An `EventLog` whose sources and dead letters are watched; what is published is also noted in `published`."""

    def __init__(self, inner: EventLog, points: Points, published: Any) -> None:
        self.topic, self._inner, self._points, self._published = inner.topic, inner, points, published

    def source(self, group: bool) -> Any:
        """See `EventLog.source`."""
        return _WatchedSource(self._inner.source(group), self._points, self._published)

    def producer(self) -> Any:
        """See `EventLog.producer`."""
        return self._inner.producer()

    def dead_letters(self) -> Any:
        """See `EventLog.dead_letters`."""
        return Watched(self._inner.dead_letters(), self._points, send="letter")


class _WatchedSource(Watched):
    def __init__(self, inner: Any, points: Points, published: Any) -> None:
        super().__init__(inner, points, poll="poll", seek="seek")
        self._published = published

    def commit(self, offsets: Mapping[int, int]) -> None:
        """A position that is published is applied and readable, and stays so."""
        note(self._published, offsets)
        _around(self._inner.commit, self._points, "commit")(offsets)


def note(published: Any, offsets: Mapping[int, int]) -> None:
    """Remember the furthest offsets beyond the death of this process."""
    for partition, offset in offsets.items():
        published[partition] = max(published[partition], offset)


def watch_writes(points: Points) -> None:
    """Make every write of RocksDB's and Redis' own clients a place, in this process."""

    def opened(*arguments: Any, **options: Any) -> Any:
        return Watched(rocksdict.Rdict(*arguments, **options), points, write="write")

    hymirec.history.rocksdb.Rdict = opened  # type: ignore[assignment,misc,attr-defined]
    redis.client.Pipeline.execute = _around_method(redis.client.Pipeline.execute, points)  # type: ignore[method-assign]


def _around_method(method: Callable[..., Any], points: Points) -> Callable[..., Any]:
    def execute(self: Any, *arguments: Any, **options: Any) -> Sequence[Any]:
        return _around(method, points, "write")(self, *arguments, **options)  # type: ignore[no-any-return]

    return execute

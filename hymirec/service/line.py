"""The line before the model: one thread that answers what waits, as much as there is at once.

While a pass is under way requests come together; the next pass takes those in line, the oldest first, up to a bound of
events, and never waits for more to come: an idle model answers at once, a busy one answers many together. Near-line
work goes only when no request waits. Whoever has gone, or has no time left, is taken out of the line and never reaches
the model.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

import faiss

from hymirec.answers import Query, Recommendations
from hymirec.errors import StageLateError
from hymirec.inference import HyMiRec
from hymirec.service.calls import Deadline
from hymirec.service.spans import behalf, here, past
from hymirec.telemetry import BATCH_REQUESTS, DROPPED, STAGE_SECONDS, Observe, unobserved

T = TypeVar("T")


@dataclass(eq=False)
class _Place:
    """Somebody in line, with a question to a model or with work of another kind."""

    deadline: Deadline
    work: Callable[[], Any] | None = None
    model: HyMiRec | None = None
    query: Query | None = None
    nearline: bool = False
    future: Future[Any] = field(default_factory=Future)
    since: float = field(default_factory=time.perf_counter)
    # Whose trace it is in; the model's thread knows of none.
    context: Any = field(default_factory=here)

    @property
    def events(self) -> int:
        """Events of the history that the model reads, at most."""
        assert self.model is not None
        assert self.query is not None
        return max(1, min(len(self.query.keys), self.model.reach))


class Line:
    """`most_events` bounds a pass: its requests times the longest of their histories, which is what the model computes.

    A request that exceeds it goes alone. `threads` is for faiss, which keeps that number for each thread by
    itself, where torch has one for all. `close` ends the thread; whoever is still in line gets CancelledError.
    """

    def __init__(self, most_events: int, threads: int = 1, observe: Observe = unobserved) -> None:
        self._most_events, self._observe = most_events, observe
        self._lock = threading.Lock()
        self._urgent: deque[_Place] = deque()
        self._nearline: deque[_Place] = deque()
        # Seconds on requests and on other work in line with them since it began; what is near-line waits for idle time.
        self.busy_seconds = 0.0
        self._thread = ThreadPoolExecutor(1, "model", faiss.omp_set_num_threads, (threads,))

    async def recommend(self, model: HyMiRec, query: Query) -> Recommendations:
        """See `HyMiRec.recommend_batch`. Raises StageLateError when `query.seconds` have passed in line."""
        found: Recommendations = await self._join(
            self._urgent, _Place(Deadline(query.seconds), model=model, query=query)
        )
        return found

    async def run(self, work: Callable[[], T], seconds: float, nearline: bool = False) -> T:
        """Do something else on the model's thread, in line with the requests or, `nearline`, behind all of them.

        Raises StageLateError when `seconds` have passed in line.
        """
        line = self._nearline if nearline else self._urgent
        found: T = await self._join(line, _Place(Deadline(seconds), work, nearline=nearline))
        return found

    def first(self, work: Callable[[], T]) -> T:
        """Do something on the model's thread before there is a line; blocks."""
        return self._thread.submit(work).result()

    def close(self) -> None:
        """End the thread."""
        self._thread.shutdown(wait=False, cancel_futures=True)
        with self._lock:
            for place in (*self._urgent, *self._nearline):
                place.future.cancel()

    def _join(self, line: deque[_Place], place: _Place) -> asyncio.Future[Any]:
        with self._lock:
            line.append(place)
        # A turn for each: some find nothing, since an earlier one took several.
        self._thread.submit(self._turn)
        return asyncio.wrap_future(place.future)

    def _turn(self) -> None:
        taken = self._take()
        if not taken:
            return
        begun = time.perf_counter()
        for place in taken:
            self._observe(STAGE_SECONDS, begun - place.since, stage="wait")
            past("wait", begun - place.since, [place.context])
        if taken[0].work is not None:
            _finish(taken[0], taken[0].work)
        else:
            self._observe(BATCH_REQUESTS, len(taken))
            _answer(taken)
        if not taken[0].nearline:
            self.busy_seconds += time.perf_counter() - begun

    def _take(self) -> list[_Place]:
        """The head of the line with all behind it that can be answered together with it."""
        taken: list[_Place] = []
        longest = 0
        with self._lock:
            line = self._urgent or self._nearline
            while line:
                place = line[0]
                if taken:
                    if place.model is None or place.model is not taken[0].model:
                        break
                    if max(longest, place.events) * (len(taken) + 1) > self._most_events:
                        break
                line.popleft()
                if not self._wanted(place):
                    line = line if taken else self._urgent or self._nearline
                    continue
                taken.append(place)
                if place.work is not None:
                    break
                longest = max(longest, place.events)
        return taken

    def _wanted(self, place: _Place) -> bool:
        """Whether somebody still waits; from here on they cannot go any more."""
        if not place.future.set_running_or_notify_cancel():
            self._observe(DROPPED, 1)
            return False
        if not place.deadline.left():
            self._observe(DROPPED, 1)
            place.future.set_exception(StageLateError("the time of the request passed in line; try again"))
            return False
        return True


def _finish(place: _Place, work: Callable[[], Any]) -> None:
    try:
        with behalf([place.context]):
            place.future.set_result(work())
    except Exception as e:  # noqa: BLE001 - it is its caller's
        place.future.set_exception(e)


def _answer(places: list[_Place]) -> None:
    """Answer questions to one model in one pass; when that fails each by itself, so that an error is its own only."""
    model = places[0].model
    queries = [place.query for place in places if place.query is not None]
    assert model is not None
    try:
        with behalf([place.context for place in places], bundle=model.bundle_id, batch_requests=len(places)):
            found = model.recommend_batch(queries)
    except Exception as e:  # noqa: BLE001 - it is its caller's
        if len(places) == 1:
            places[0].future.set_exception(e)
            return
        for place in places:
            _answer([place])
        return
    for place, answer in zip(places, found, strict=True):
        place.future.set_result(answer)

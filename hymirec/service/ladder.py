"""The degradation ladder: an answer in time, always.

    full            exact: the newest history, coarse interests as they are now
    cached_coarse   the newest events, coarse interests from before some of them (no pass over the long history)
    popular         what most people like, less what must not be shown; needs no stage at all

Each rung gets what is left of the request's time. Overload must not make a request cost two: an overloaded stage is no
reason to go down, it is shed (503 with Retry-After), and who lost the time in a crowd gets popular items at once.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace

import numpy as np

from hymirec.answers import Keys, Query, Recommendations
from hymirec.catalog.keys import item_keys
from hymirec.errors import HyMiRecError, StageLateError, StageUnavailableError
from hymirec.service.calls import Deadline, ask
from hymirec.service.limit import Limit
from hymirec.service.stages import RankerStage

log = logging.getLogger(__name__)
FULL, CACHED_COARSE, POPULAR, BEHIND = "full", "cached_coarse", "popular", "behind"
# More than `max_k`, since a user's own items are left out.
POPULAR_MARGIN = 2_000
REFRESH_SECONDS = 30.0
RETRY_SECONDS = 1.0


class PopularList:
    """The most popular items, kept where requests come in, so that they can be shown when nothing else answers."""

    def __init__(self, ranker: RankerStage, most: int, seconds: float) -> None:
        self._ranker, self._most, self._seconds = ranker, most + POPULAR_MARGIN, seconds
        self._found: Recommendations | None = None
        self._keys: Keys = np.empty(0, np.uint64)

    async def keep_fresh(self) -> None:
        """Read the list again and again; runs as a task."""
        while True:
            try:
                await self.refresh()
                await asyncio.sleep(REFRESH_SECONDS)
            except HyMiRecError as e:
                log.info("the list of popular items was not read: %s", e)
                await asyncio.sleep(RETRY_SECONDS)

    async def refresh(self) -> None:
        """Read the list. Raises StageUnavailableError or OverloadedError."""
        found = await ask("recommender", lambda: self._ranker.popular(self._most), self._seconds)
        self._keys = item_keys(item.item_id for item in found.items)
        self._found = found

    def without(self, excluded: Keys, k: int) -> Recommendations:
        """The `k` most popular of the items that are not excluded.

        Raises StageUnavailableError when the list was never read.
        """
        if self._found is None:
            raise StageUnavailableError("the recommender has not answered yet; try again in a moment")
        keep = np.flatnonzero(~np.isin(self._keys, excluded))[:k]
        return replace(self._found, items=[self._found.items[int(i)] for i in keep])


class Ladder:
    """Asks the ranker for the best answer that there is time for."""

    def __init__(self, ranker: RankerStage, popular: PopularList, stage_seconds: float, limit: Limit) -> None:
        self._ranker, self._popular, self._stage_seconds, self._limit = ranker, popular, stage_seconds, limit

    async def answer(self, query: Query, deadline: Deadline) -> Recommendations:
        """The answer of the highest rung that there is time for. Raises OverloadedError, RequestError."""
        try:
            with self._limit.timed():
                return await self._rank(query, deadline.left(self._stage_seconds))
        except StageUnavailableError as e:
            log.warning("no full answer: %s", e)
            again = query.coarse is not None and not self._lost_in_crowd(e)
        if again:
            try:
                return await self._rank(replace(query, stale_ok=True), deadline.left(self._stage_seconds))
            except StageUnavailableError as e:
                log.warning("no answer from cached interests: %s", e)
        return self.popular(query)

    def _lost_in_crowd(self, error: StageUnavailableError) -> bool:
        """Whether the time was lost to others in line, who would be as many the second time."""
        return isinstance(error, StageLateError) and self._limit.crowded

    async def _rank(self, query: Query, seconds: float) -> Recommendations:
        """Each try says how much time is left, so that a ranker never works for a caller who has gone."""
        deadline = Deadline(seconds)
        return await ask(
            "recommender", lambda: self._ranker.recommend(replace(query, seconds=deadline.left())), seconds
        )

    def popular(self, query: Query) -> Recommendations:
        """The last rung."""
        excluded = np.concatenate([query.exclude, query.keys]) if query.filter_seen else query.exclude
        return self._popular.without(excluded, query.k)

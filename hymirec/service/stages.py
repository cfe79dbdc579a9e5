"""What the front end needs of the two stages behind it. Ray Serve deployments fill it, and so do the plain objects."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from hymirec.answers import Coarse, Keys, Query, Recommendations, Times
from hymirec.history import History
from hymirec.service.models import ExplainReply, HistoryEvent, ItemReply, ItemsReply
from hymirec.streaming import ConsumerStatus


@dataclass(frozen=True)
class Snapshot:
    """What a request reads in one call: history, coarse interests if any, and how far the log was applied."""

    history: History
    coarse: Coarse | None
    offsets: dict[str, int]


class RankerStage(Protocol):
    """Whoever holds the bundle."""

    async def recommend(self, query: Query) -> Recommendations:
        """The best items."""
        ...

    async def explain(self, query: Query, nearest: int, finds: int) -> ExplainReply:
        """The best items, and of each interest so many `nearest` items of the history and lone `finds`."""
        ...

    async def coarse(self, keys: Keys, ts: Times, now: int) -> Coarse:
        """Coarse interests of a history."""
        ...

    async def popular(self, k: int) -> Recommendations:
        """The most popular items."""
        ...

    async def describe(self, keys: Keys, ts: Times, actions: NDArray[np.uint8]) -> list[HistoryEvent]:
        """Records of a history with ids and titles."""
        ...

    async def item(self, item_id: str) -> ItemReply:
        """One item. Raises UnknownItemError."""
        ...

    async def find(self, query: str, limit: int) -> ItemsReply:
        """Items by words of their title."""
        ...

    async def bundle_id(self) -> str:
        """Id of the bundle that serves."""
        ...

    async def stage(self, path: str) -> list[str]:
        """Load a bundle beside the one that serves, on every replica; returns the id that each of them read.

        Raises ArtifactError or BundleError when one of them refuses it.
        """
        ...

    async def activate(self, bundle_id: str) -> None:
        """Serve the staged bundle, on every replica."""
        ...


class WriterStage(Protocol):
    """Whoever holds the histories."""

    async def snapshot(self, user_id: str, limit: int | None = None) -> Snapshot:
        """A user's newest `limit` events with what is cached for the user."""
        ...

    async def first(self, user_id: str) -> tuple[int, int] | None:
        """The user's oldest event, to be given back to `hide`."""
        ...

    async def hide(self, user_id: str, first: tuple[int, int] | None) -> None:
        """The user's erasure is in the log: show nothing from now on, on every replica."""
        ...

    async def status(self) -> Sequence[ConsumerStatus]:
        """The account of every replica's consumer."""
        ...

"""Ray Serve handles as the stages of the front end: the same methods, and failures as errors of ours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from numpy import uint8
from numpy.typing import NDArray
from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import BackPressureError, RayServeException
from ray.serve.handle import DeploymentHandle

from hymirec.answers import Coarse, Keys, Query, Recommendations, Times
from hymirec.errors import HyMiRecError, OverloadedError, StageUnavailableError
from hymirec.service.models import ExplainReply, HistoryEvent, ItemReply, ItemsReply
from hymirec.service.stages import Snapshot
from hymirec.streaming import ConsumerStatus


def ours(name: str, error: Exception) -> Exception:
    """What an exception of Ray means. A bug inside a replica (RayTaskError of something else) stays what it is."""
    if isinstance(error, RayTaskError):
        # As it was raised: Ray's own version carries the replica's traceback in its text.
        return error.cause if isinstance(error.cause, HyMiRecError) else error
    if isinstance(error, HyMiRecError):
        return error
    if isinstance(error, BackPressureError):
        return OverloadedError(f"too many requests wait for the {name}; try again in a moment")
    return StageUnavailableError(f"the {name} died with the call or cannot be reached ({type(error).__name__})")


class _Stage:
    """`_one` asks the replica that is least busy; `_all` asks every replica."""

    def __init__(self, name: str, handle: DeploymentHandle) -> None:
        self._name, self._handle = name, handle

    async def _one(self, method: str, *args: Any) -> Any:
        try:
            return await getattr(self._handle, method).remote(*args)
        except (HyMiRecError, RayError, RayServeException) as e:
            raise ours(self._name, e) from e

    async def _all(self, method: str, *args: Any) -> list[Any]:
        try:
            return list(await self._handle.broadcast(method, *args).results_async())
        except (HyMiRecError, RayError, RayServeException) as e:
            raise ours(self._name, e) from e


class RankerHandle(_Stage):
    """See `RankerStage`."""

    async def recommend(self, query: Query) -> Recommendations:
        """The best items."""
        found: Recommendations = await self._one("recommend", query)
        return found

    async def explain(self, query: Query, nearest: int, finds: int) -> ExplainReply:
        """The best items and what stands behind them."""
        found: ExplainReply = await self._one("explain", query, nearest, finds)
        return found

    async def coarse(self, keys: Keys, ts: Times, now: int) -> Coarse:
        """Coarse interests of a history."""
        found: Coarse = await self._one("coarse", keys, ts, now)
        return found

    async def popular(self, k: int) -> Recommendations:
        """The most popular items."""
        found: Recommendations = await self._one("popular", k)
        return found

    async def describe(self, keys: Keys, ts: Times, actions: NDArray[uint8]) -> list[HistoryEvent]:
        """Records of a history with ids and titles."""
        found: list[HistoryEvent] = await self._one("describe", keys, ts, actions)
        return found

    async def item(self, item_id: str) -> ItemReply:
        """One item. Raises UnknownItemError."""
        found: ItemReply = await self._one("item", item_id)
        return found

    async def find(self, query: str, limit: int) -> ItemsReply:
        """Items by words of their title."""
        found: ItemsReply = await self._one("find", query, limit)
        return found

    async def bundle_id(self) -> str:
        """Id of the bundle that serves."""
        found: str = await self._one("bundle_id")
        return found

    async def stage(self, path: str) -> list[str]:
        """On every replica."""
        return [bundle for staged in await self._all("stage", path) for bundle in staged]

    async def activate(self, bundle_id: str) -> None:
        """On every replica."""
        await self._all("activate", bundle_id)


class WriterHandle(_Stage):
    """See `WriterStage`."""

    async def snapshot(self, user_id: str, limit: int | None = None) -> Snapshot:
        """A user's history with what is cached for the user."""
        found: Snapshot = await self._one("snapshot", user_id, limit)
        return found

    async def first(self, user_id: str) -> tuple[int, int] | None:
        """The user's oldest event."""
        found: tuple[int, int] | None = await self._one("first", user_id)
        return found

    async def hide(self, user_id: str, first: tuple[int, int] | None) -> None:
        """On every replica."""
        await self._all("hide", user_id, first)

    async def status(self) -> Sequence[ConsumerStatus]:
        """Of every replica."""
        return [status for statuses in await self._all("status") for status in statuses]

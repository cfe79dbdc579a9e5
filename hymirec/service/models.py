"""Bodies of the HTTP interface. OpenAPI is generated from these and from nothing else."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from hymirec.catalog.schemas import MAX_TS
from hymirec.inference import Recommendations

Id = Annotated[str, Field(min_length=1, max_length=512)]
ItemRef = Id | int
Seconds = Annotated[int, Field(ge=0, le=MAX_TS)]


class RecommendRequest(BaseModel):
    """Who asks, either by `user_id` or with a `history`, oldest first."""

    model_config = ConfigDict(extra="forbid")

    user_id: Id | int | None = None
    history: list[ItemRef | tuple[ItemRef, Seconds]] | None = Field(
        None, description="item ids, or [item id, seconds] pairs"
    )
    k: int = Field(20, ge=1)
    filter_seen: bool = Field(True, description="leave out items of the history")
    exclude: list[ItemRef] = Field(default_factory=list, description="items that must not be returned")
    now: Seconds | None = Field(None, description="time of the request; the clock, if not given")
    min_ts: Seconds | None = Field(
        None, description="wait until the user's history holds an event of this time or later"
    )

    @model_validator(mode="after")
    def _one_of(self) -> RecommendRequest:
        if (self.user_id is None) == (self.history is None):
            raise ValueError("give either user_id or history")
        return self


class RecommendedItem(BaseModel):
    """`interest` is the number of the interest that found the item; null for a popular one."""

    item_id: str
    score: float
    interest: int | None
    title: str


class AsOf(BaseModel):
    """How much of the log the answer has seen: time of the newest event, and next offset of each partition."""

    ts: int | None = None
    offsets: dict[str, int] = Field(default_factory=dict)


class RecommendReply(BaseModel):
    """Always 200: `degraded` and `reason` say when it is less than the full answer."""

    items: list[RecommendedItem]
    bundle: str
    as_of: AsOf
    degraded: bool
    reason: str

    @classmethod
    def of(cls, found: Recommendations, as_of: AsOf) -> RecommendReply:
        """The reply of a result."""
        items = [
            RecommendedItem(item_id=str(i.item_id), score=i.score, interest=i.interest, title=i.title)
            for i in found.items
        ]
        return cls(items=items, bundle=found.bundle, as_of=as_of, degraded=found.degraded, reason=found.reason)


class EventIn(BaseModel):
    """One event; unknown fields are ignored, an unknown action counts as `other`."""

    event_id: Id | int
    user_id: Id | int
    item_id: Id | int
    ts: Seconds
    action: str = "view"


class Accepted(BaseModel):
    """The log has it; it will be visible in a moment."""

    accepted: int


class HistoryEvent(BaseModel):
    """`item_id` and `title` are null for an item that the bundle does not know."""

    item_id: str | None
    title: str | None
    ts: int
    action: str


class HistoryReply(BaseModel):
    """The newest events of a user, oldest first; `count` is how many are kept."""

    user_id: str
    count: int
    events: list[HistoryEvent]
    as_of: AsOf


class ItemReply(BaseModel):
    """An item of the bundle."""

    item_id: str
    title: str
    popularity: int


class ItemsReply(BaseModel):
    """Items whose title holds every word of the query, most popular first."""

    items: list[ItemReply]
    bundle: str


class BundleRequest(BaseModel):
    """Where the new bundle lies."""

    model_config = ConfigDict(extra="forbid")

    path: str = Field(min_length=1)


class BundleReply(BaseModel):
    """What serves now, and what served before."""

    bundle: str
    previous: str


class Health(BaseModel):
    """`status` is "ok"; `/readyz` answers 503 with a problem otherwise."""

    status: str
    bundle: str | None = None
    lag: dict[str, int] = Field(default_factory=dict)
    counts: dict[str, int] = Field(default_factory=dict)


class Problem(BaseModel):
    """An error, as RFC 9457 has it."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    problems: list[dict[str, Any]] = Field(default_factory=list)

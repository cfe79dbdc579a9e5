"""Bodies of the HTTP interface. OpenAPI is generated from these and from nothing else."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, StrictInt, Tag, model_validator

from hymirec.answers import Recommendations
from hymirec.catalog.schemas import MAX_TS

MAX_ID_BYTES = 512


def _short(value: str) -> str:
    # Bounded in bytes, as the log bounds it: what is accepted here must not end among the dead letters.
    if len(value.encode()) > MAX_ID_BYTES:
        raise ValueError(f"an id may have at most {MAX_ID_BYTES} bytes")
    return value


Id = Annotated[str, Field(min_length=1, max_length=MAX_ID_BYTES), AfterValidator(_short)]
# Integers name the same as their text does: 42 and "42".
Ref = Id | StrictInt
Seconds = Annotated[int, Field(ge=0, le=MAX_TS)]


class RecommendRequest(BaseModel):
    """Who asks, either by `user_id` or with a `history`, oldest first."""

    model_config = ConfigDict(extra="forbid")

    user_id: Ref | None = None
    history: list[Ref | tuple[Ref, Seconds]] | None = Field(None, description="item ids, or [item id, seconds] pairs")
    k: int = Field(20, ge=1)
    filter_seen: bool = Field(True, description="leave out items of the history")
    per_interest: int = Field(
        0, ge=0, description="so many items that each interest chooses first; 0: the best, whoever's they are"
    )
    exclude: list[Ref] = Field(default_factory=list, description="items that must not be returned")
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
    """Always 200: `degraded` and `reason` say when it is less than the full answer.

    `reason`: `full`; `cold_start` (no known item in the history: popular items); degraded are `behind` (full, but the
    history does not reach `min_ts` yet), `cached_coarse` (interests from before the newest events), `popular` (no
    answer in time). `unknown_items` are those of the history that the bundle does not know yet.
    """

    items: list[RecommendedItem]
    bundle: str
    as_of: AsOf
    degraded: bool
    reason: Literal["full", "cold_start", "behind", "cached_coarse", "popular"]
    unknown_items: int = 0

    @classmethod
    def of(cls, found: Recommendations, as_of: AsOf) -> RecommendReply:
        """The reply of a result."""
        items = [
            RecommendedItem(item_id=str(i.item_id), score=i.score, interest=i.interest, title=i.title)
            for i in found.items
        ]
        return cls.model_validate(
            {
                "items": items,
                "bundle": found.bundle,
                "as_of": as_of,
                "degraded": found.degraded,
                "reason": found.reason,
                "unknown_items": found.unknown_items,
            }
        )


class ExplainRequest(RecommendRequest):
    """As for a recommendation."""

    nearest: int = Field(5, ge=0, le=50, description="items of the history to name for each interest")
    finds: int = Field(5, ge=0, le=50, description="items of the catalogue to name that each interest finds alone")


class Place(BaseModel):
    """Where something is on the map, both -1..1. A map is of one reply: it may be mirrored or turned in the next."""

    x: float
    y: float


class ExplainedItem(RecommendedItem, Place):
    """`score` is `similarity` to the interest plus what being `popular_now` adds; both null for a popular item."""

    similarity: float | None
    popular_now: float | None


class NearItem(BaseModel):
    """An item of the history, when it was last there, and its cosine with an interest."""

    item_id: str
    title: str
    ts: int
    cosine: float


class FoundItem(BaseModel):
    """An item of the catalogue and its cosine with an interest."""

    item_id: str
    title: str
    cosine: float


class ExplainedInterest(Place):
    """`strength` is the length of the interest's vector: 1 for the first, 0..1 for the others.

    `finds` is what the interest would find if there were no other and nothing else counted: the best first, without
    excluded items and, with `filter_seen`, without those of the history.
    """

    number: int
    strength: float
    nearest: list[NearItem]
    finds: list[FoundItem]


class PastItem(Place):
    """An item of the history, when it was last there."""

    item_id: str
    title: str
    ts: int


class ExplainReply(BaseModel):
    """What `RecommendReply` says, and what stands behind it.

    `history` holds the newest different items, oldest first. `map_share` is the share of the vectors' variance that the
    map shows, 0..1.
    """

    items: list[ExplainedItem]
    interests: list[ExplainedInterest]
    history: list[PastItem]
    map_share: float
    bundle: str
    as_of: AsOf = AsOf()
    degraded: bool
    reason: Literal["full", "cold_start", "behind"]
    unknown_items: int


class EventIn(BaseModel):
    """One event; unknown fields are ignored, an unknown action counts as `other`."""

    event_id: Ref
    user_id: Ref
    item_id: Ref
    ts: Seconds
    action: str = Field("view", max_length=64)


EventsIn = Annotated[
    Annotated[EventIn, Tag("one")] | Annotated[list[EventIn], Tag("many")],
    Discriminator(lambda value: "many" if isinstance(value, list) else "one"),
]


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

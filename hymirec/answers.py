"""Questions and answers. Imports no model: a process that only passes them on needs neither torch nor faiss."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

ItemId = str | int
Keys = NDArray[np.uint64]
Times = NDArray[np.int64]


@dataclass(frozen=True)
class Recommendation:
    """One item. `interest` is the number of the interest that found it; None for a popular item.

    `score` is its cosine with that interest and a bonus for what is popular now; for a popular item, its share of the
    most popular one's events.
    """

    item_id: ItemId
    score: float
    interest: int | None
    title: str


@dataclass(frozen=True)
class Recommendations:
    """A list, best first. `reason` is "full", "cached_coarse", "cold_start" or "popular"."""

    items: list[Recommendation]
    bundle: str
    reason: str
    degraded: bool = False
    unknown_items: int = 0


@dataclass(frozen=True)
class Coarse:
    """Coarse interests (Q, H) of a long history. `source` is the hash of what they were computed from."""

    vectors: NDArray[np.float32]
    bundle: str
    source: int


@dataclass(frozen=True)
class Query:
    """A question: the `k` best items at the time `now` for a history of item keys (n,) with times (n,) in seconds.

    `exclude` are item keys. `coarse` is used when it is what would be computed now; with `stale_ok` also when it is
    not. `seconds` is how long an answer is waited for, from when the query was sent. Each interest chooses
    `per_interest` items of its own, see `retrieval.shares`.
    """

    keys: Keys
    ts: Times
    k: int
    now: int
    exclude: Keys
    filter_seen: bool = True
    coarse: Coarse | None = None
    stale_ok: bool = False
    seconds: float = math.inf
    per_interest: int = 0

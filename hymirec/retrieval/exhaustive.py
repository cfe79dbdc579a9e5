"""Search of many users at once by all products: exact whatever kind the index is; for batch work on a CPU.

A sixteenth of the items gives each user a guess of what the K-th best score is not below; then all items are searched
with it. Where the guess was too high, which fewer than K results show, the user is searched for again without one.

B users  S interests  W width  N items  K results in total
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from hymirec.errors import ModelError, RequestError
from hymirec.retrieval import tiles
from hymirec.retrieval.device import DeviceFlat
from hymirec.retrieval.index import Bonus, Hits, ItemIndex
from hymirec.retrieval.kinds import Floats, Searcher
from hymirec.retrieval.lift import Own, lift
from hymirec.retrieval.panels import Panels, Sums, pack_items, pack_queries
from hymirec.retrieval.sweep import (
    HIGHEST,
    MOST_INTERESTS,
    MOST_ITEMS,
    NOTHING,
    SAMPLE,
    USER,
    WIDE_HIGHEST,
    Asked,
    Keys,
    best_keys,
    decode,
)
from hymirec.simd import has_avx2, has_vnni

# Users that meet an item at once: their interests stay in a core's second cache.
BLOCK = 128
# The guess is the score of the item of this place in the sample: the expected one and so many standard deviations.
DEVIATIONS = 3
# Beyond, rounding alone would take a noticeable part of what 16 bits hold.
MOST_WIDTH = 4096
# With bonuses of a user's own, this many times K are searched for: the more, the fewer items are scored one by one.
OWN_FETCH = 2
# What fp32 loses of a sum, relative to its largest term, for each component and a few other operations.
ROUNDING, OPERATIONS = 2.0**-23, 16
NO_ITEMS = np.empty(0, np.int64)


class ExhaustiveIndex(ItemIndex):
    """The vectors of a searcher, with a copy of a byte a component. Raises ModelError for NaN or infinity.

    `wide` chooses the kernel of AVX-512 VNNI or of AVX2; by default the former where the processor has it.
    """

    def __init__(self, searcher: Searcher, wide: bool | None = None) -> None:
        super().__init__(searcher)
        vectors_NW = searcher.vectors
        if not np.isfinite(vectors_NW).all():
            raise ModelError("an item vector holds NaN or infinity, so items have no order; write the bundle again")
        self._wide = has_vnni() if wide is None else wide
        self._panels: Panels = pack_items(vectors_NW, self._wide)

    def search(
        self,
        interests_BSW: Floats,
        k: int,
        exclude: Sequence[NDArray[np.integer]] | None = None,
        bonus: Sequence[Bonus] | None = None,
        own: Sequence[Bonus] | None = None,
    ) -> list[Hits]:
        """See `ItemIndex.search`; exact, on the thread that calls. Users that share `bonus` are searched for together.

        Raises RequestError for k < 1 or more than 32 interests, ModelError for interests with NaN or infinity.
        """
        if k < 1:
            raise RequestError(f"k must be at least 1, got {k}")
        users, interests, _ = interests_BSW.shape
        if interests > MOST_INTERESTS:
            raise RequestError(f"a user has at most {MOST_INTERESTS} interests, got {interests}")
        if not np.isfinite(interests_BSW).all():
            raise ModelError("an interest holds NaN or infinity, so items have no order; train with a lower rate")
        wanted, fetch = min(k, len(self)), min(k if own is None else OWN_FETCH * k, len(self))
        if not users or not wanted or not interests:
            return [Hits(NO_ITEMS, np.empty(0, np.float32), NO_ITEMS)] * users
        excluded = [NO_ITEMS] * users if exclude is None else [np.unique(row).astype(np.int64) for row in exclude]
        keys_BK = np.empty((users, wanted), np.uint64)
        for rows, shared in _same_bonus(users, bonus):
            asked, left_out = interests_BSW[rows], [excluded[row] for row in rows]
            keys_BF = self._keys(asked, fetch, left_out, shared, self._sampled(fetch))
            if own is not None:
                keys_BF = self._lifted(keys_BF, wanted, asked, left_out, shared, [own[row] for row in rows])
            keys_BK[rows] = keys_BF
        best = decode(keys_BK)
        return [
            Hits(best.item_BK[row, :count], best.score_BK[row, :count], best.interest_BK[row, :count])
            for row, count in enumerate(best.count_B.tolist())
        ]

    def _sampled(self, k: int) -> int:
        """The place in the sample whose score is the guess; 0 for no guess where the sample is too small for one."""
        share = k / SAMPLE
        place = math.ceil(share + DEVIATIONS * math.sqrt(share))
        return place if 2 * SAMPLE * place <= len(self) else 0

    def _keys(
        self, interests_BSW: Floats, k: int, excluded: list[NDArray[np.int64]], bonus: Bonus | None, sampled: int
    ) -> Keys:
        """The keys (B, K) of some users, best first; who got fewer than K by a guess is searched for without one."""
        keys_BK = self._best(interests_BSW, k, excluded, bonus, sampled)
        missed = np.flatnonzero(keys_BK[:, -1] == NOTHING)
        if sampled and len(missed):
            keys_BK[missed] = self._best(interests_BSW[missed], k, [excluded[row] for row in missed], bonus, 0)
        return keys_BK

    def _lifted(
        self,
        keys_BF: Keys,
        k: int,
        interests_BSW: Floats,
        excluded: list[NDArray[np.int64]],
        shared: Bonus | None,
        own: list[Bonus],
    ) -> Keys:
        """The keys (B, K) with each user's own bonus."""
        starts, left_out = (np.cumsum([0, *map(len, rows)]) for rows in ([row.items for row in own], excluded))
        bonuses = Own(
            starts,
            np.concatenate([row.items for row in own]).astype(np.int64),
            np.concatenate([row.values for row in own]).astype(np.float32),
        )
        vectors_NW, shared_N = self.searcher.vectors, _dense(shared, len(self))
        excluded_E = np.concatenate([NO_ITEMS, *excluded])
        keys_BK = lift(keys_BF, k, vectors_NW, interests_BSW, shared_N, bonuses, left_out, excluded_E)
        keys_BK.sort(axis=1)
        return keys_BK

    def _best(
        self, interests_BSW: Floats, k: int, excluded: list[NDArray[np.int64]], bonus: Bonus | None, sampled: int
    ) -> Keys:
        users, interests, width = interests_BSW.shape
        group = tiles.QUERIES // math.gcd(tiles.QUERIES, interests)
        filled = -(-users // group) * group
        queries_BSW = np.zeros((filled, interests, width), np.float32)
        queries_BSW[:users] = interests_BSW
        packed = pack_queries(queries_BSW.reshape(-1, width), self._wide)
        left_out = [*excluded, *[NO_ITEMS] * (filled - users)]
        ends = np.cumsum([0, *(len(row) for row in left_out)])
        own_B = np.zeros(filled, USER)
        own_B["norm"] = packed.norm_Q.reshape(filled, interests).max(axis=1)
        own_B["error"] = packed.error_Q.reshape(filled, interests).max(axis=1)
        own_B["start"], own_B["at"], own_B["end"] = ends[:-1], ends[:-1], ends[1:]
        # What fills the last group up gets nothing.
        own_B["least"] = np.where(np.arange(filled) < users, -np.inf, np.inf)
        bonus_N, bonus_codes = self._bonuses(bonus, packed.scale)
        rounding, most_bonus = (width + OPERATIONS) * ROUNDING, float(bonus_N.max(initial=0))
        asked = Asked(queries_BSW, packed, own_B, bonus_N, bonus_codes, np.concatenate(left_out), rounding, most_bonus)
        block = max(1, BLOCK // group) * group
        keys_BK = best_keys(self._panels, self.searcher.vectors, asked, k, sampled, group, block)[:users]
        keys_BK.sort(axis=1)
        return keys_BK

    def _bonuses(self, bonus: Bonus | None, query_scale: float) -> tuple[Floats, Sums]:
        """The bonus of every item, and the same in codes, rounded down; see `Asked`."""
        values = _dense(bonus, len(self._panels.codes) * tiles.STRIPE)
        codes = np.zeros((1, tiles.STRIPE))
        if len(values):
            codes = np.floor(values.reshape(-1, tiles.STRIPE) / (self._panels.scale_P[:, None] * query_scale))
        if self._wide:
            return values, np.minimum(codes, WIDE_HIGHEST).astype(np.int32)
        return values, np.minimum(codes, HIGHEST).astype(np.int16)


def for_batches(index: ItemIndex) -> ItemIndex:
    """The same items, searched exactly, for many users at a time.

    An index on a device stays what it is. On a processor without AVX2, with more than 2^27 items or more than 4,096
    dimensions, torch takes all products.
    """
    if isinstance(index.searcher, DeviceFlat):
        return index
    if has_avx2() and len(index) <= MOST_ITEMS and index.width <= MOST_WIDTH:
        return ExhaustiveIndex(index.searcher)
    return ItemIndex(DeviceFlat(index.searcher, "cpu"))


def _dense(bonus: Bonus | None, items: int) -> Floats:
    """The bonus of every item; (0,) for none."""
    if bonus is None or not len(bonus.items):
        return np.empty(0, np.float32)
    values = np.zeros(items, np.float32)
    values[bonus.items] = bonus.values
    return values


def _same_bonus(users: int, bonus: Sequence[Bonus] | None) -> Iterator[tuple[list[int], Bonus | None]]:
    """Users that share a bonus, and it."""
    if bonus is None:
        yield list(range(users)), None
        return
    shared: dict[int, list[int]] = {}
    for row, own in enumerate(bonus):
        shared.setdefault(id(own), []).append(row)
    for rows in shared.values():
        yield rows, bonus[rows[0]]

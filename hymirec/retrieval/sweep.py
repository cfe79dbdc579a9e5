"""The K best items of each user among all: 8-bit products of everything, and exact ones of what they leave.

A stripe of items stays in a core's cache while the interests of a block of users meet it, and no score goes to
memory. The product of two codes and the bound on its error (`panels.py`) say what a score is at most. An item that may
still be among a user's K best is scored at once, in fp32, while its vector is in the cache, too; the additions are in
an order that depends on the width alone, so that equal vectors have equal scores. However much the bound lets through,
the result is exact.

Score, item and interest make one 64-bit key, the lower the better, so that ties go to the lower item.

B users  S interests  W width  N items  P stripes of 48 items  K results  C keys that are held
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from hymirec.retrieval.kinds import Floats, Ints
from hymirec.retrieval.panels import Panels, Sums, Tiles
from hymirec.retrieval.tiles import QUERIES, STRIPE, lowest_bit, tile

# One stripe in so many is looked at before.
SAMPLE = 16
# What limits and the codes of bonuses keep to, in sums of 16 and of 32 bits.
LOWEST, HIGHEST = -(2**15), 2**15 - 1
WIDE_LOWEST, WIDE_HIGHEST = -(2**30), 2**30
# An item and an interest share 32 bits of a key.
INTEREST_BITS = 5
MOST_INTERESTS, MOST_ITEMS = 2**INTEREST_BITS, 2 ** (32 - INTEREST_BITS)
# Products of numbers that fp32 hardly holds.
TINY = 1e-35
NOTHING = np.uint64(2**64 - 1)

# A user: the largest norm of the interests and of what rounding left out of them; what the K-th best score is not
# below; the keys that are held; where the excluded items start, where among them the user is, and where they end.
USER = np.dtype(
    [(name, "f8") for name in ("norm", "error", "least")] + [(name, "i8") for name in ("held", "start", "at", "end")]
)
# An item that may be among a user's best, and the interests that may give its score, a bit each.
FOUND = np.dtype([(name, "i8") for name in ("user", "item", "interests")])
Keys = NDArray[np.uint64]


class Asked(NamedTuple):
    """What some users (USER) ask for: interests (B, S, W), the same as tiles, bonuses, and what each does not get,
    ascending.

    `bonus_N` is added to the scores, none below 0, and `bonus_codes` (P, 48) is the same rounded down; without any they
    have no and one row. `rounding` bounds what fp32 loses of a score, relative to the norms and the bonus, and
    `most_bonus` any bonus.
    """

    interests_BSW: Floats
    tiles: Tiles
    user_B: NDArray[np.void]
    bonus_N: Floats
    bonus_codes: Sums
    excluded: Ints
    rounding: float
    most_bonus: float


class Best(NamedTuple):
    """The results of each user, best first: `count_B` of K."""

    item_BK: Ints
    score_BK: Floats
    interest_BK: Ints
    count_B: Ints


@njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def key_of(score: np.float32, item: int, interest: int) -> np.uint64:
    bits = np.int64(np.float32(score + np.float32(0)).view(np.int32))
    rising = bits if bits >= 0 else bits ^ 0x7FFFFFFF
    return np.uint64((2**31 - 1 - rising) << 32 | item << INTEREST_BITS | interest)


@njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def score_of(key: np.uint64) -> np.float32:
    rising = (2**31 - 1) - np.int64(key >> np.uint64(32))
    return np.int32(rising if rising >= 0 else rising ^ 0x7FFFFFFF).view(np.float32)


def decode(keys_BK: Keys) -> Best:
    """The results that sorted keys stand for; the highest key is no result."""
    rising_BK = (2**31 - 1) - (keys_BK >> np.uint64(32)).astype(np.int64)
    bits_BK = np.where(rising_BK >= 0, rising_BK, rising_BK ^ 0x7FFFFFFF).astype(np.int32)
    low_BK = keys_BK.astype(np.uint32).astype(np.int64)
    return Best(
        low_BK >> INTEREST_BITS,
        bits_BK.view(np.float32),
        low_BK & (MOST_INTERESTS - 1),
        (keys_BK != NOTHING).sum(axis=1),
    )


@njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _thin(keys_BC: Keys, user_B: NDArray[np.void], user: int, k: int) -> None:
    """Hold the best K only; what their last one scores is what counts from now on."""
    held = user_B[user].held
    if held > k:
        keys_BC[user, :held] = np.partition(keys_BC[user, :held], k - 1)
        user_B[user].held = k
        user_B[user].least = max(user_B[user].least, np.float64(score_of(keys_BC[user, k - 1])))


@njit(nogil=True, cache=True, fastmath={"reassoc", "contract", "nsz"})  # type: ignore[untyped-decorator]
def product(vectors_NW: Floats, item: int, interests_BSW: Floats, user: int, s: int) -> np.float32:
    """The score that one interest gives an item; added up in one order, so that equal vectors have equal scores."""
    score = np.float32(0)
    for w in range(vectors_NW.shape[1]):
        score += vectors_NW[item, w] * interests_BSW[user, s, w]
    return score


@njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _hold(
    keys_BC: Keys,
    user_B: NDArray[np.void],
    found_F: NDArray[np.void],
    count: int,
    k: int,
    vectors_NW: Floats,
    interests_BSW: Floats,
    bonus_N: Floats,
    excluded: Ints,
) -> None:
    """Score the first `count` of what was found (FOUND), a user's items ascending, and hold those that may be best."""
    for f in range(count):
        user, item, which = found_F[f].user, found_F[f].item, found_F[f].interests
        own = user_B[user]
        while own.at < own.end and excluded[own.at] < item:
            own.at += 1
        if own.at < own.end and excluded[own.at] == item:
            continue
        best, first = np.float32(-np.inf), 0
        while which:
            s = lowest_bit(which)
            which &= which - 1
            score = product(vectors_NW, item, interests_BSW, user, s)
            if score > best:
                best, first = score, s
        if len(bonus_N):
            best += bonus_N[item]
        if best >= own.least:
            if own.held == keys_BC.shape[1]:
                _thin(keys_BC, user_B, user, k)
            keys_BC[user, own.held] = key_of(best, item, first)
            own.held += 1


@njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _error(item_norm: float, item_error: float, norm: float, error: float, rounding: float, bonus: float) -> float:
    """What the product of two codes may be off: see `panels.py`, and fp32."""
    return item_error * norm + item_norm * error + rounding * ((item_norm + item_error) * norm + bonus) + TINY


@njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _sweep(
    panels: Panels, vectors_NW: Floats, asked: Asked, k: int, group: int, keys_BC: Keys, begin: int, stride: int
) -> None:
    """Let every so many-th stripe of items pass the users from `begin` on, as many as `keys_BC` has rows."""
    users, interests = len(keys_BC), asked.interests_BSW.shape[1]
    interests_BSW, user_B = asked.interests_BSW[begin : begin + users], asked.user_B[begin : begin + users]
    bonus_N, excluded, scale, rounding = asked.bonus_N, asked.excluded, asked.tiles.scale, asked.rounding
    most_bonus = asked.most_bonus
    scale_P, error_P, norm_P = panels.scale_P, panels.error_P, panels.norm_P
    steps, step, queries = panels.codes.shape[1], panels.codes.shape[3], group * interests
    bonus_codes, size = asked.bonus_codes, asked.bonus_codes.itemsize
    lowest, highest = (LOWEST, HIGHEST) if size == 2 else (WIDE_LOWEST, WIDE_HIGHEST)
    limits, above = np.empty(queries, bonus_codes.dtype), np.empty(queries, np.int64)
    sums_RI = np.empty((queries, STRIPE), bonus_codes.dtype)
    codes_at, bonus_at = np.int64(panels.codes.ctypes.data), np.int64(bonus_codes.ctypes.data)
    tiles_at, starts_at = np.int64(asked.tiles.codes.ctypes.data), np.int64(asked.tiles.starts.ctypes.data)
    limits_at, above_at = np.int64(limits.ctypes.data), np.int64(above.ctypes.data)
    sums_at = np.int64(sums_RI.ctypes.data)
    found_F, items = np.empty(users * STRIPE, FOUND), len(vectors_NW)
    for p in range(stride // 2, len(scale_P), stride):
        unit, count = scale_P[p] * scale, 0
        # A bonus was rounded down.
        bonus_error, beyond = unit if len(bonus_N) else 0.0, False
        if len(bonus_N):
            # A bonus that does not fit says nothing with a product below 0.
            for i in range(STRIPE):
                beyond |= bonus_codes[p, i] == highest
        for head in range(0, users, group):
            for user in range(head, head + group):
                error = _error(norm_P[p], error_P[p], user_B[user].norm, user_B[user].error, rounding, most_bonus)
                limit = np.ceil((user_B[user].least - error - bonus_error) / unit) - 1
                limit = lowest if beyond else min(max(limit, lowest), highest - 1)
                for s in range(interests):
                    limits[(user - head) * interests + s] = np.int64(limit)
            number = (begin + head) * interests // QUERIES
            for t in range(queries // QUERIES):
                tile(
                    codes_at + p * steps * step * STRIPE,
                    tiles_at + (number + t) * steps * 4 * QUERIES,
                    steps,
                    starts_at + size * QUERIES * (number + t),
                    bonus_at + (size * STRIPE * p if len(bonus_N) else 0),
                    limits_at + size * QUERIES * t,
                    sums_at + size * STRIPE * QUERIES * t,
                    above_at + 8 * QUERIES * t,
                    limits[0],
                )
            for user in range(head, head + group):
                row, bits = (user - head) * interests, np.int64(0)
                for s in range(interests):
                    bits |= above[row + s]
                if not bits:
                    continue
                error = _error(norm_P[p], error_P[p], user_B[user].norm, user_B[user].error, rounding, most_bonus)
                # An interest more than twice the error below the best one does not give the score.
                nearly = np.int64(min(np.ceil(2 * error / unit), 2.0**31))
                while bits:
                    i = lowest_bit(bits)
                    bits &= bits - 1
                    if p * STRIPE + i >= items:
                        break
                    code, which = np.int64(sums_RI[row, i]), np.int64(0)
                    for s in range(1, interests):
                        code = max(code, np.int64(sums_RI[row + s, i]))
                    for s in range(interests):
                        which |= np.int64(sums_RI[row + s, i] + nearly >= code) << s
                    found_F[count].user, found_F[count].item, found_F[count].interests = user, p * STRIPE + i, which
                    count += 1
        _hold(keys_BC, user_B, found_F, count, k, vectors_NW, interests_BSW, bonus_N, excluded)


@njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def best_keys(panels: Panels, vectors_NW: Floats, asked: Asked, k: int, sampled: int, group: int, block: int) -> Keys:
    """The keys (B, K) of each user's best items, in no order, `NOTHING` where there are fewer.

    `block` users meet an item at once. `group` users have whole tiles of interests; `block` and B are multiples of it.
    With `sampled`, items are only found that score as much as the one of that place among those of the sample: K of
    them are the best K, and fewer say nothing of the others.
    """
    keys_BK = np.full((len(asked.user_B), k), NOTHING, np.uint64)
    keys_BC = np.empty((block, 2 * (k + STRIPE)), np.uint64)
    for begin in range(0, len(keys_BK), block):
        users = min(block, len(keys_BK) - begin)
        own, keys = asked.user_B[begin : begin + users], keys_BC[:users]
        if sampled:
            _sweep(panels, vectors_NW, asked, sampled, group, keys[:, : sampled + STRIPE], begin, SAMPLE)
            for user in range(users):
                _thin(keys, own, user, sampled)
                own[user].held, own[user].at = 0, own[user].start
        _sweep(panels, vectors_NW, asked, k, group, keys, begin, 1)
        for user in range(users):
            _thin(keys, own, user, k)
            keys_BK[begin + user, : own[user].held] = keys[user, : own[user].held]
    return keys_BK

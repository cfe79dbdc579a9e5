"""Bonuses of a user's own, added to what a search without them found.

An item with a bonus that the search did not find can only enter the list if its bonus makes up for being below the
last score that was found (Fagin, Lotem and Naor, 2003, with one list sorted), so few items are scored one by one, and
the list is as exact as the search was.

B users  S interests  W width  N items  F keys that were found  K results  H bonuses of all users
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from hymirec.retrieval.kinds import Floats, Ints
from hymirec.retrieval.sweep import INTEREST_BITS, MOST_INTERESTS, NOTHING, Keys, key_of, product, score_of


class Own(NamedTuple):
    """Rows of users: those of user b are items[starts[b]:starts[b + 1]], with what is added to their scores."""

    starts: Ints
    items: Ints
    values: Floats


@njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def lift(
    keys_BF: Keys,
    k: int,
    vectors_NW: Floats,
    interests_BSW: Floats,
    shared_N: Floats,
    own: Own,
    excluded_starts: NDArray[np.int64],
    excluded: Ints,
) -> Keys:
    """The keys (B, K), in no order, with each user's own bonus; `keys_BF` come best first from a search without.

    `shared_N`, which those have already, is empty for none. A user with fewer than F keys has all its items among them.
    """
    (users, most), interests = keys_BF.shape, interests_BSW.shape[1]
    keys_BK = np.full((users, k), NOTHING, np.uint64)
    # What an item is to the user at hand: where it was found, counted from 1, excluded (-1), or neither.
    place_N = np.zeros(len(vectors_NW), np.int32)
    longest = 0
    for user in range(users):
        longest = max(longest, own.starts[user + 1] - own.starts[user])
    raised, scores = np.empty(most + longest, np.uint64), np.empty(most, np.float32)
    for user in range(users):
        found = 0
        while found < most and keys_BF[user, found] != NOTHING:
            item = np.int64(keys_BF[user, found] & np.uint64(2**32 - 1)) >> INTEREST_BITS
            scores[found] = score_of(keys_BF[user, found])
            found += 1
            place_N[item] = found
        last = scores[found - 1] if found else np.float32(0)
        for at in range(excluded_starts[user], excluded_starts[user + 1]):
            place_N[excluded[at]] = -1
        start, end = own.starts[user], own.starts[user + 1]
        for at in range(start, end):
            place = place_N[own.items[at]]
            if place > 0:
                scores[place - 1] += own.values[at]
        for place in range(found):
            low = int(keys_BF[user, place] & np.uint64(2**32 - 1))
            raised[place] = key_of(scores[place], low >> INTEREST_BITS, low & (MOST_INTERESTS - 1))
        count = found
        if found == most:
            gap = score_of(np.partition(raised[:found], k - 1)[k - 1]) - last
            for at in range(start, end):
                item = own.items[at]
                if own.values[at] >= gap and place_N[item] == 0:
                    best, which = np.float32(-np.inf), 0
                    for s in range(interests):
                        score = product(vectors_NW, item, interests_BSW, user, s)
                        if score > best:
                            best, which = score, s
                    if len(shared_N):
                        best += shared_N[item]
                    raised[count] = key_of(best + own.values[at], item, which)
                    count += 1
        for place in range(found):
            place_N[np.int64(keys_BF[user, place] & np.uint64(2**32 - 1)) >> INTEREST_BITS] = 0
        for at in range(excluded_starts[user], excluded_starts[user + 1]):
            place_N[excluded[at]] = 0
        kept = np.partition(raised[:count], k - 1)[:k] if count > k else raised[:count]
        keys_BK[user, : len(kept)] = kept
    return keys_BK

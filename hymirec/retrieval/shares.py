"""Lists in which each interest has a share, whatever the others score.

The best of all interests may all be one interest's. With shares, interests first choose in turns, the first one first,
each the best item of its own ranking that nobody has chosen; the best of all fill the list up.

B requests  S interests  W width  R requests that want shares  K results
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hymirec.retrieval.index import Bonus, Hits, ItemIndex

Floats = NDArray[np.float32]


def share_out(
    index: ItemIndex,
    interests_BSW: Floats,
    best: Sequence[Hits],
    wanted: Sequence[tuple[int, int]],
    excluded: Sequence[NDArray[np.integer]],
    bonus: Sequence[Bonus] | None,
    own: Sequence[Bonus] | None,
) -> list[Hits]:
    """The lists `best` (each of K or more), with shares for those requests that want some.

    `wanted` holds, of each request, K and how many items each interest chooses; fewer where K has no room for so many.
    A chosen item has the number of the interest that chose it, and the score by that interest. Lists with shares are of
    at most K and by score, the others are as they came. The other arguments: see `ItemIndex.search`.
    """
    interests = interests_BSW.shape[1]
    shares = [min(each, k // interests) if interests else 0 for k, each in wanted]
    rows = [row for row, share in enumerate(shares) if share]
    if not rows:
        return list(best)
    alone = index.search(
        interests_BSW[rows].reshape(len(rows) * interests, 1, -1),
        # The other interests may have chosen all that comes first.
        interests * max(shares),
        [excluded[row] for row in rows for _ in range(interests)],
        None if bonus is None else [bonus[row] for row in rows for _ in range(interests)],
        None if own is None else [own[row] for row in rows for _ in range(interests)],
    )
    lists = list(best)
    for at, row in enumerate(rows):
        rankings = alone[at * interests : (at + 1) * interests]
        lists[row] = _shared(best[row], rankings, shares[row], wanted[row][0])
    return lists


def _shared(best: Hits, rankings: Sequence[Hits], share: int, k: int) -> Hits:
    chosen: dict[int, tuple[float, int]] = {}
    places = [0] * len(rankings)
    for _ in range(share):
        for interest, ranking in enumerate(rankings):
            while places[interest] < len(ranking) and int(ranking.items[places[interest]]) in chosen:
                places[interest] += 1
            if places[interest] < len(ranking):
                place = places[interest]
                chosen[int(ranking.items[place])] = float(ranking.scores[place]), interest
    for item, score, interest in zip(best.items.tolist(), best.scores.tolist(), best.interests.tolist(), strict=True):
        if len(chosen) == k:
            break
        chosen.setdefault(item, (score, interest))
    items = np.array(list(chosen), np.int64)
    scores = np.array([score for score, _ in chosen.values()], np.float32)
    order = np.lexsort((items, -scores))
    return Hits(items[order], scores[order], np.array([interest for _, interest in chosen.values()], np.int64)[order])

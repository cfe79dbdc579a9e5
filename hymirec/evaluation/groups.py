"""Metrics of groups: of users by the length of their history, of targets by their popularity in training.

U users  T targets  N catalogue
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hymirec.evaluation.metrics import means, per_user

Ints = NDArray[np.int64]
Group = dict[str, Any]

# Shares of the training interactions that the most and the least popular items make.
HEAD, TAIL = 0.5, 0.2
POPULARITY_GROUPS = ("cold", "tail", "mid", "head")


def length_names(bounds: Sequence[int]) -> list[str]:
    """Names of the bins up to each bound and beyond the last: "<=20", "21-50", ">50"."""
    middle = [f"{low + 1}-{high}" for low, high in pairwise(bounds)]
    return [f"<={bounds[0]}", *middle, f">{bounds[-1]}"]


def by_length(values: Mapping[str, NDArray[np.float64]], length_U: Ints, bounds: Sequence[int]) -> dict[str, Group]:
    """Users and the means of per-user metrics (U,) in each bin of history lengths; empty bins are left out."""
    which_U = np.searchsorted(bounds, length_U)
    found: dict[str, Group] = {}
    for number, name in enumerate(length_names(bounds)):
        inside = which_U == number
        if inside.any():
            own = means({metric: value[inside] for metric, value in values.items()})
            found[name] = {"users": int(inside.sum()), **own}
    return found


def by_popularity(ranks_T: Ints, users_T: Ints, group_T: Ints, ks: Sequence[int]) -> dict[str, Group]:
    """Users, targets and the mean over targets of each group (index into POPULARITY_GROUPS); empty groups are left out.

    Each target counts alone, as if it were its user's only one.
    """
    found: dict[str, Group] = {}
    for number, name in enumerate(POPULARITY_GROUPS):
        inside = group_T == number
        count = int(inside.sum())
        if count:
            own = means(per_user(ranks_T[inside], np.arange(count), ks, count))
            found[name] = {"users": len(np.unique(users_T[inside])), "targets": count, **own}
    return found


def popularity_groups(popularity_N: Ints) -> Ints:
    """Group (N,) of each item by its training interactions, as an index into POPULARITY_GROUPS.

    Cold items have none. The head is the fewest most popular items that make HEAD of all interactions, the tail the
    fewest least popular ones that make TAIL of them, mid the others. Equally popular items are in one group, the head
    first.
    """
    level_V, inverse_N = np.unique(popularity_N, return_inverse=True)
    mass_V = np.bincount(inverse_N, weights=popularity_N, minlength=len(level_V))
    less_V = np.cumsum(mass_V) - mass_V
    more_V = mass_V.sum() - less_V - mass_V
    group_V = np.full(len(level_V), POPULARITY_GROUPS.index("mid"))
    group_V[less_V < TAIL * mass_V.sum()] = POPULARITY_GROUPS.index("tail")
    group_V[more_V < HEAD * mass_V.sum()] = POPULARITY_GROUPS.index("head")
    group_V[level_V == 0] = POPULARITY_GROUPS.index("cold")
    return group_V[inverse_N]

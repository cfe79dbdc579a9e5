"""Who comes when: the interactions of a Parquet file, replayed as visits at a rate of one's choice.

The first part of the interactions, in order of time, is the past: what the service should know before anyone asks. The
rest are visits. When they are used up, they begin again.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hymirec.errors import DataError
from hymirec.history.interactions import interaction_times, read_interactions

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


class Visit(NamedTuple):
    """A user comes `at` so many seconds after the beginning, and acts on an item."""

    at: float
    user: str
    item: str


@dataclass(frozen=True)
class Traffic:
    """N interactions in order of time; the first `past` of them have happened before the load begins."""

    users: list[str]
    items: list[str]
    user_N: Ints
    item_N: Ints
    ts_N: Ints
    past: int

    @classmethod
    def read(cls, path: Path, past: float = 0.9, most_users: int | None = None) -> Traffic:
        """Interactions (user, item, ts) of a Parquet file or directory; `past` is the share that has happened before.

        `most_users` keeps the users who come first. Raises DataError for tables that cannot be used.
        """
        table = read_interactions(path)
        ts_N = interaction_times(table)
        order_N = np.argsort(ts_N, kind="stable")
        users, items = (table[name].combine_chunks().dictionary_encode() for name in ("user", "item"))
        user_N, item_N = (column.indices.to_numpy()[order_N].astype(np.int64) for column in (users, items))
        ts_N = ts_N[order_N]
        if most_users is not None:
            _, first = np.unique(user_N, return_index=True)
            kept = np.isin(user_N, user_N[np.sort(first)[:most_users]])
            user_N, item_N, ts_N = user_N[kept], item_N[kept], ts_N[kept]
        happened = int(len(ts_N) * past)
        if happened >= len(ts_N):
            raise DataError(f"{path}: of {len(ts_N)} interactions {happened} are past, so nobody would come; give less")
        names = (users.dictionary.to_pylist(), [str(item) for item in items.dictionary.to_pylist()])
        return cls(names[0], names[1], user_N, item_N, ts_N, happened)

    def before(self) -> Iterator[tuple[str, str, int]]:
        """User, item and time (seconds since 1970) of what has happened before, in order of time."""
        for row in range(self.past):
            yield self.users[self.user_N[row]], self.items[self.item_N[row]], int(self.ts_N[row])

    def visits(self, rate: float, own_times: bool = False, seed: int = 0) -> Iterator[Visit]:
        """Visits without end, `rate` a second in the mean.

        They come at random (Poisson), or with `own_times` as they came in the data, only faster or slower: bursts and
        quiet hours included.
        """
        offsets = self._own(rate) if own_times else self._poisson(rate, np.random.default_rng(seed))
        for at_V in offsets:
            for at, row in zip(at_V.tolist(), range(self.past, len(self.ts_N)), strict=True):
                yield Visit(at, self.users[self.user_N[row]], self.items[self.item_N[row]])

    def _poisson(self, rate: float, random: np.random.Generator) -> Iterator[Floats]:
        begin = 0.0
        while True:
            at_V = begin + np.cumsum(random.exponential(1 / rate, len(self.ts_N) - self.past))
            yield at_V
            begin = float(at_V[-1])

    def _own(self, rate: float) -> Iterator[Floats]:
        ts_V = (self.ts_N[self.past :] - self.ts_N[self.past]).astype(np.float64)
        if not ts_V[-1]:
            raise DataError("all visits have one time, so there are no arrivals of their own; take Poisson arrivals")
        seconds = len(ts_V) / rate
        turn = 0
        while True:
            yield seconds * (turn + ts_V / ts_V[-1])
            turn += 1

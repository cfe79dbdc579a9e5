"""What is popular now: a bonus on an item's score for what everyone did lately.

    score(u, i, t) = max_j <r_j, e_i> + weight * log(1 + c_i(t))
    c_i(t) = sum of 2^-(age / half-life) over everyone's events with item i before t

Sequences say what a user wants, but not what came out last week: on sparse, young catalogues much of the next item is
the latter. A count that halves needs one number an item, takes an event in O(1), and is the same in whatever order
events come. Weight and half-life are chosen on validation after training, with 0 among the weights.

B requests  N catalogue  E events  H items that have a bonus
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from hymirec.artifacts import read_json, write_json
from hymirec.catalog.prepared import Sequences

FILE, COUNTS_FILE = "trend.json", "trend.safetensors"
DAY = 86_400
# A smaller count is none: ten half-lives after its last event an item has no bonus any more.
LEAST_COUNT = 2.0**-10

Ints = NDArray[np.integer]
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Trend:
    """`weight` in units of cosine for each factor of e in 1 + count, `half_life` of an event in days; 0 is no trend."""

    weight: float = 0.0
    half_life: float = 1.0

    def bonus(self, counts: Floats) -> Floats:
        """What counts, of any shape, add to a score."""
        found: Floats = (self.weight * np.log1p(counts)).astype(np.float32)
        return found


class PastEvents:
    """Events of everyone in order of time, to be counted before any moment: for evaluation, where each request has its
    own present."""

    def __init__(self, items_E: Ints, ts_E: Ints, size: int) -> None:
        order = np.argsort(ts_E, kind="stable")
        self._items, self._ts, self._size = items_E[order], ts_E[order].astype(np.int64), size

    @classmethod
    def of(cls, sequences: Sequences, size: int) -> Self:
        """The training events of a data set with a catalogue of `size` items."""
        _, items, ts = sequences.training_events()
        return cls(items, ts, size)

    def before(self, now: Sequence[int] | Ints, half_life: float) -> Floats:
        """Counts (B, N) before each request; events of the request's own second do not count.

        Requests are answered in order of time: the counts of one become those of the next.
        """
        times = np.asarray(now, np.int64)
        counts_BN = np.empty((len(times), self._size), np.float32)
        running_N = np.zeros(self._size)
        # Twenty half-lives: with fewer than 2^10 events of the item since, what is older counts for none.
        left = int(np.searchsorted(self._ts, times.min(initial=0) - int(20 * half_life * DAY))) if len(times) else 0
        at = int(times.min(initial=0))
        for row in np.argsort(times, kind="stable"):
            right = int(np.searchsorted(self._ts, times[row]))
            running_N *= 0.5 ** ((times[row] - at) / (half_life * DAY))
            at = int(times[row])
            if right > left:
                weights = np.exp2((self._ts[left:right] - at) / (half_life * DAY))
                running_N += np.bincount(self._items[left:right], weights, minlength=self._size)
                left = right
            counts_BN[row] = np.where(running_N < LEAST_COUNT, 0, running_N)
        return counts_BN


class TrendCounts:
    """The counts of now, for serving: one number an item, `at_N` at the time `at`; events are added as they come."""

    def __init__(self, counts_N: Floats, at: int, half_life: float) -> None:
        self.at = at
        self.at_N, self._half_life = counts_N.astype(np.float32), half_life

    @classmethod
    def of(cls, items_E: Ints, ts_E: Ints, size: int, half_life: float) -> Self:
        """Counts after the last of these events."""
        at = int(ts_E.max(initial=0)) + 1
        return cls(PastEvents(items_E, ts_E, size).before([at], half_life)[0], at, half_life)

    def __len__(self) -> int:
        return len(self.at_N)

    def add(self, items_E: Ints, ts_E: Ints) -> Self:
        """The counts with more events, in whatever order they come."""
        at = max(self.at, int(ts_E.max(initial=0)) + 1)
        weights = np.exp2((ts_E.astype(np.int64) - at) / (self._half_life * DAY))
        more_N = np.bincount(items_E, weights, minlength=len(self))
        return type(self)(self._decayed(at) + more_N.astype(np.float32), at, self._half_life)

    def before(self, now: int) -> tuple[NDArray[np.int64], Floats]:
        """Items (H,) with a count at a moment, ascending, and their counts (H,). A moment before `at` is `at`."""
        counts_N = self._decayed(max(now, self.at))
        items_H = np.flatnonzero(counts_N >= LEAST_COUNT)
        return items_H, counts_N[items_H]

    def _decayed(self, now: int) -> Floats:
        return self.at_N * np.float32(0.5 ** ((now - self.at) / (self._half_life * DAY)))


def save_trend(directory: Path, about: Mapping[str, Any], trend: Trend, sequences: Sequences, size: int) -> None:
    """Write the trend, what is known `about` how it was chosen, and the counts after the last event of the data."""
    write_json(directory / FILE, {**about, **asdict(trend)})
    if trend.weight:
        counts = TrendCounts.of(sequences.items, sequences.ts, size, trend.half_life)
        save_file({"counts": counts.at_N, "at": np.array(counts.at, np.int64)}, directory / COUNTS_FILE)


def open_trend(directory: Path) -> tuple[Trend, TrendCounts | None]:
    """The trend of a directory and its counts; none where none was written."""
    if not (directory / FILE).is_file():
        return Trend(), None
    about = read_json(directory / FILE)
    trend = Trend(float(about["weight"]), float(about["half_life"]))
    if not trend.weight:
        return trend, None
    tensors = load_file(directory / COUNTS_FILE)
    return trend, TrendCounts(tensors["counts"], int(tensors["at"]), trend.half_life)


def extend_trend(source: Path, target: Path, more: int) -> None:
    """Write the trend of one directory to another, with `more` items at the end that nobody has touched."""
    if not (source / FILE).is_file():
        return
    write_json(target / FILE, read_json(source / FILE))
    _, counts = open_trend(source)
    if counts is not None:
        longer_N = np.concatenate([counts.at_N, np.zeros(more, np.float32)])
        save_file({"counts": longer_N, "at": np.array(counts.at, np.int64)}, target / COUNTS_FILE)

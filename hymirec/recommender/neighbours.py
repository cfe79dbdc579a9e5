"""What stands beside what: a bonus on the score of items that followed, or came before, a history's last ones.

    score(u, i) = max_j <r_j, e_i> + weight * log(1 + 100 share_u(i))
    share_u(i) = a_u(i) / sum of a_u
    a_u(i) = sum over the history's events h_k, k steps back, of keep^k similarity(h_k, i)
    similarity(i, j) = count(i, j) / (sqrt(n_i n_j) + 5)

count is over pairs of training events within 20 steps, weighted 1/distance, pairs in which j came before .3 of those in
which it came after; n counts training events. The nearest of each item are kept. Vectors of a hundred numbers cannot
hold every pair that a wide, sparse catalogue has seen, and what was taken with one rare thing is often the next one.
Weight and keep are chosen on validation after training, 0 among the weights; a history's newest 50 events are read.

B requests  N catalogue
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from hymirec.artifacts import read_json, write_json
from hymirec.catalog.prepared import Sequences
from hymirec.recommender.pairs import Pairs, nearest

FILE, TABLE_FILE = "neighbours.json", "neighbours.safetensors"
WINDOW, BACKWARD, SHRINK = 20, 0.3, 5.0
SHARPNESS = 100.0
REACH = 50

Ints = NDArray[np.integer]


def similarity(sequences: Sequences, size: int, most: int) -> sp.csr_matrix:
    """The `most` nearest of each item in the training events: (N, N), float32, an item never its own neighbour.

    Values are those that a file of half-precision numbers gives back, so that what is judged is what is served.
    """
    user, items, _ = sequences.training_events()
    root_N = np.sqrt(np.maximum(np.bincount(items, minlength=size), 1).astype(np.float64))
    weight = 1 / np.arange(1, WINDOW + 1)
    pairs, even = Pairs.of(user, items, size), np.ones(size)
    count_N, columns_NK, values_NK = nearest(pairs, weight, BACKWARD, root_N, root_N, even, SHRINK, min(most, size))
    kept_NK = np.arange(columns_NK.shape[1]) < count_N[:, None]
    start = np.concatenate([[0], np.cumsum(count_N)])
    values = values_NK[kept_NK]
    values /= max(float(values.max(initial=0)), 1e-30)
    return _table(values.astype(np.float16), columns_NK[kept_NK], start)


def _table(values: NDArray[np.floating], columns: Ints, start: Ints) -> sp.csr_matrix:
    size = len(start) - 1
    return sp.csr_matrix((values.astype(np.float32), columns, start), shape=(size, size))


@dataclass(frozen=True)
class Neighbours:
    """`weight` in units of cosine for each factor of e in 1 + 100 share, `keep` of an event's weight a step back.

    Weight 0 is no bonus; then there is no table.
    """

    weight: float = 0.0
    keep: float = 0.8
    similar_NN: sp.csr_matrix | None = None

    def bonus(self, recent: Sequence[Ints]) -> sp.csr_matrix:
        """What is added to the scores of B requests, (B, N), sorted: of each, the newest known items, oldest first."""
        assert self.similar_NN is not None
        rows = [np.asarray(items[-REACH:], np.int32) for items in recent]
        length = np.array([len(row) for row in rows], np.int64)
        start = np.concatenate([[0], np.cumsum(length)])
        back = np.repeat(start[1:] - 1, length) - np.arange(start[-1])
        columns = np.concatenate([np.empty(0, np.int32), *rows])
        history = sp.csr_matrix(
            ((self.keep**back).astype(np.float32), columns, start), shape=(len(rows), self.similar_NN.shape[0])
        )
        found = history @ self.similar_NN
        total_B = np.asarray(found.sum(axis=1)).ravel()
        share = found.data / np.repeat(np.maximum(total_B, np.finfo(np.float32).tiny), np.diff(found.indptr))
        found.data = (self.weight * np.log1p(SHARPNESS * share)).astype(np.float32)
        found.sort_indices()
        return found


def save_neighbours(directory: Path, about: Mapping[str, Any], found: Neighbours) -> None:
    """Write the choice, what is known `about` it, and the table when there is a bonus."""
    write_json(directory / FILE, {**about, "weight": found.weight, "keep": found.keep})
    (directory / TABLE_FILE).unlink(missing_ok=True)
    if found.weight:
        table = found.similar_NN
        assert table is not None
        tensors = {
            "start": table.indptr.astype(np.int64),
            "items": table.indices.astype(np.int32),
            "values": table.data.astype(np.float16),
        }
        save_file(tensors, directory / TABLE_FILE)


def open_neighbours(directory: Path) -> Neighbours:
    """The bonus of a directory; none where none was written."""
    if not (directory / FILE).is_file():
        return Neighbours()
    about = read_json(directory / FILE)
    weight, keep = float(about["weight"]), float(about["keep"])
    if not weight:
        return Neighbours()
    tensors = load_file(directory / TABLE_FILE)
    return Neighbours(weight, keep, _table(tensors["values"], tensors["items"], tensors["start"]))


def extend_neighbours(source: Path, target: Path, more: int) -> None:
    """Write the bonus of one directory to another, with `more` items at the end that have no neighbours."""
    if not (source / FILE).is_file():
        return
    about, found = read_json(source / FILE), open_neighbours(source)
    if found.similar_NN is not None:
        table = found.similar_NN
        start = np.concatenate([table.indptr, np.full(more, table.indptr[-1])])
        found = Neighbours(found.weight, found.keep, _table(table.data, table.indices, start))
    save_neighbours(target, about, found)

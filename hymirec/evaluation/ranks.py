"""Ranks of every target, kept in a small file, so that models of different runs are compared user by user later.

T targets  U users
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from hymirec.catalog.parts import read_table, to_numpy, write_table
from hymirec.errors import ArtifactDamagedError, DataError
from hymirec.evaluation.bootstrap import paired_p_value
from hymirec.evaluation.metrics import per_user

USER, RANK, TARGETS = "user", "rank", b"targets"
COMPARED = (10,)
RESAMPLES = 2_000


class Comparison(NamedTuple):
    """Mean difference of a metric to a baseline over the same users, and the two-sided p-value that it is 0."""

    difference: float
    p_value: float


@dataclass(frozen=True, eq=False)
class Ranks:
    """0-based ranks (T,) of targets and the rows (T,) of their users among the run's users, ascending.

    `targets` is a hash of who was asked for what: two models are compared only when theirs is equal.
    """

    user_T: NDArray[np.int64] = field(repr=False)
    rank_T: NDArray[np.int64] = field(repr=False)
    targets: str

    @classmethod
    def of(cls, user_T: NDArray[np.int64], item_T: NDArray[np.int64], rank_T: NDArray[np.int64]) -> Ranks:
        """Ranks of the targets `item_T`, users ascending."""
        asked = np.stack([user_T, item_T]).astype("<i8").tobytes()
        return cls(user_T, rank_T, hashlib.sha256(asked).hexdigest()[:32])

    def save(self, path: Path) -> None:
        """Write a Parquet file: user, rank (both uint32), the hash in its metadata."""
        columns = [pa.array(self.user_T.astype(np.uint32)), pa.array(self.rank_T.astype(np.uint32))]
        schema = pa.schema([(USER, pa.uint32()), (RANK, pa.uint32())], metadata={TARGETS: self.targets.encode()})
        write_table(path, pa.table(columns, schema=schema))

    @classmethod
    def open(cls, path: Path) -> Ranks:
        """Read what `save` wrote. Raises ArtifactMissingError or ArtifactDamagedError."""
        table = read_table(path, [USER, RANK])
        metadata = table.schema.metadata or {}
        if table.column_names != [USER, RANK] or TARGETS not in metadata:
            raise ArtifactDamagedError(f"{path} does not hold ranks; delete it and evaluate the run again")
        user_T, rank_T = (to_numpy(table[name]).astype(np.int64) for name in (USER, RANK))
        return cls(user_T, rank_T, metadata[TARGETS].decode())

    def per_user(self, ks: Sequence[int]) -> dict[str, NDArray[np.float64]]:
        """Metrics (U,) of the users that have targets, in order of their rows; see `metrics.per_user`."""
        users, owner_T = np.unique(self.user_T, return_inverse=True)
        return per_user(self.rank_T, owner_T, ks, len(users))


def compare(
    ours: Sequence[Ranks],
    baseline: Sequence[Ranks],
    ks: Sequence[int] = COMPARED,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Comparison]:
    """Ours minus the baseline, {"R@K" and "N@K": Comparison}, by the paired bootstrap over users.

    Both are one or several runs (seeds) of a model; a user's value is the mean over them.
    Raises DataError when the runs ranked different targets.
    """
    if len({ranks.targets for ranks in (*ours, *baseline)}) != 1:
        raise DataError(
            "these runs ranked different targets, so their users cannot be paired; evaluate both with the same data, "
            "data.split and split"
        )
    a, b = _averaged(ours, ks), _averaged(baseline, ks)
    return {
        name: Comparison(float(np.mean(a[name] - b[name])), paired_p_value(a[name], b[name], resamples, seed))
        for name in a
        if name[:2] in ("R@", "N@")
    }


def _averaged(runs: Sequence[Ranks], ks: Sequence[int]) -> dict[str, NDArray[np.float64]]:
    values = [ranks.per_user(ks) for ranks in runs]
    return {name: np.mean([own[name] for own in values], axis=0) for name in values[0]}

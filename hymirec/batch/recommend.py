"""Recommendations for one part of everyone's histories, as a Parquet part.

    user | rank | item | score | interest | bundle

`rank` counts from 1, `interest` is null for a popular item, which is what a user without known items gets.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hymirec.answers import Query, Recommendations
from hymirec.batch.histories import ITEM_KEY
from hymirec.catalog.parts import one_array, part_rows, read_table, write_table
from hymirec.catalog.schemas import ITEM, TS, USER
from hymirec.errors import ArtifactDamagedError, ConfigError
from hymirec.inference import HyMiRec

RANK, SCORE, INTEREST, BUNDLE = "rank", "score", "interest", "bundle"
# Key of an answer part's schema metadata: how many users it answers, some of them perhaps with no row.
USERS = b"hymirec.users"
NO_KEYS = np.empty(0, np.uint64)


@dataclass(frozen=True)
class BatchOptions:
    """What every user is asked for: the `k` best items at the time `now` (seconds), of which each interest chooses
    `per_interest`; `batch` users in one pass of the model."""

    k: int
    now: int | None = None
    filter_seen: bool = True
    batch: int = 256
    per_interest: int = 0

    def at(self, now: int) -> BatchOptions:
        """The same with a time, if it has none."""
        return replace(self, now=now) if self.now is None else self


def answers_schema(user: pa.DataType, item: pa.DataType, users: int) -> pa.Schema:
    """Schema of a part that answers so many users; the types are those of user and item ids."""
    return pa.schema(
        [
            pa.field(USER, user, nullable=False),
            pa.field(RANK, pa.int32(), nullable=False),
            pa.field(ITEM, item, nullable=False),
            pa.field(SCORE, pa.float32(), nullable=False),
            pa.field(INTEREST, pa.int32()),
            pa.field(BUNDLE, pa.string(), nullable=False),
        ],
        metadata={USERS: str(users)},
    )


def recommend_part(model: HyMiRec, source: Path, target: Path, options: BatchOptions) -> int:
    """Answer the histories of `source` (a part of `cut_histories`) into `target`; returns the number of users.

    Histories of like length share a pass of the model, and users keep their order.
    """
    if options.now is None:
        raise ConfigError("the time that recommendations are for is not known; use the options that Batch.cut returns")
    now = options.now
    table = read_table(source, [USER, ITEM_KEY, TS])
    keys, ts = one_array(table[ITEM_KEY]), one_array(table[TS])
    queries = [
        Query(
            keys[row].values.to_numpy(),
            ts[row].values.to_numpy(),
            options.k,
            now,
            NO_KEYS,
            options.filter_seen,
            per_interest=options.per_interest,
        )
        for row in range(table.num_rows)
    ]
    order = np.argsort([len(query.keys) for query in queries], kind="stable")
    answers: dict[int, Recommendations] = {}
    for start in range(0, len(order), options.batch):
        rows = order[start : start + options.batch].tolist()
        answers.update(zip(rows, model.recommend_batch([queries[row] for row in rows]), strict=True))
    write_table(target, _table(one_array(table[USER]), [answers[row] for row in range(len(queries))], model))
    return len(queries)


def _table(users: pa.Array, answers: list[Recommendations], model: HyMiRec) -> pa.Table:
    counts = [len(answer.items) for answer in answers]
    found = [item for answer in answers for item in answer.items]
    catalog = model.bundle.catalog
    schema = answers_schema(users.type, catalog.item_ids.type, len(users))
    ranks = np.concatenate([np.empty(0, np.int32), *(np.arange(1, count + 1, dtype=np.int32) for count in counts)])
    arrays = [
        users.take(pa.array(np.repeat(np.arange(len(users)), counts))),
        pa.array(ranks),
        pa.array([item.item_id for item in found], catalog.item_ids.type),
        pa.array([item.score for item in found], pa.float32()),
        pa.array([item.interest for item in found], pa.int32()),
        pa.array([model.bundle_id] * len(found), pa.string()),
    ]
    return pa.table(arrays, schema=schema)


def answered(source: Path, target: Path) -> bool:
    """Whether `target` answers all users of `source`. Raises ArtifactDamagedError when it cannot be read."""
    try:
        metadata = pq.read_schema(target).metadata or {}
    except (pa.ArrowInvalid, OSError) as e:
        raise ArtifactDamagedError(f"{target} cannot be read ({e}); delete it and run the job again") from e
    return metadata.get(USERS) == str(part_rows(source)).encode()

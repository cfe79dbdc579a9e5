"""Histories as tensors, without a Python step a row: chunks of training sequences, and requests of a split.

A training chunk is up to `recent` consecutive training items of one user with everything before it as the long history,
exactly what a request at its end would see. Long sequences give several chunks an epoch, short ones one.

B batch  T recent items  P = T + 1 prefixes  E long events  A anchors
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hymirec.catalog.prepared import Sequences
from hymirec.catalog.schemas import Split
from hymirec.recommender.contract import Reach

Ints = NDArray[np.int64]
# Micro-batches of chunks of like length are cut from pools of this many global batches: little padding, still shuffled.
POOL = 16


@dataclass(frozen=True)
class Chunk:
    """Chunks of one batch: user rows, first item and number of items of each (all (B,))."""

    user: Ints
    start: Ints
    length: Ints


def draw_chunks(sequences: Sequences, recent: int, rng: np.random.Generator) -> Chunk:
    """Every user's chunks of one epoch, in random order.

    A user with n training items has max(1, n // recent) chunks at random places; each ends before the last training
    item, so that every prefix has a target. Users with fewer than 2 training items have none.
    """
    count = np.maximum(1, sequences.n_train // recent)
    user = np.repeat(np.arange(len(sequences)), np.where(sequences.n_train >= 2, count, 0))
    length = np.minimum(recent, sequences.n_train[user].astype(np.int64) - 1)
    start = rng.integers(0, sequences.n_train[user] - length)
    order = rng.permutation(len(user))
    return Chunk(user[order], start[order], length[order])


def chunk_count(sequences: Sequences, recent: int) -> int:
    """How many chunks `draw_chunks` gives."""
    return int(np.maximum(1, sequences.n_train // recent)[sequences.n_train >= 2].sum())


def epoch_batches(
    sequences: Sequences, recent: int, batch: int, world: int, rank: int, rng: np.random.Generator
) -> list[Chunk]:
    """This rank's micro-batches (of `batch` chunks) of one epoch; all ranks have as many, of like lengths at each step.

    The last global batch is filled up with chunks from the beginning.
    """
    chunks = draw_chunks(sequences, recent, rng)
    share = batch * world
    steps = -(-len(chunks.user) // share)
    order = np.resize(np.arange(len(chunks.user)), steps * share)
    for first in range(0, len(order), POOL * share):
        pool = order[first : first + POOL * share]
        order[first : first + POOL * share] = pool[np.argsort(chunks.length[pool], kind="stable")]
    rows = order.reshape(steps, share)[rng.permutation(steps)]
    mine = rows[:, rank::world]
    return [Chunk(chunks.user[row], chunks.start[row], chunks.length[row]) for row in mine]


def _window(values: NDArray[np.integer], first: Ints, length: Ints, width: int) -> tuple[Ints, NDArray[np.bool_]]:
    """Rows of `width` consecutive values from `first`, valid for `length` of them; 0 where not valid."""
    column = np.arange(width)
    valid = column < length[:, None]
    if not len(values):
        return np.zeros(valid.shape, np.int64), valid
    index = np.where(valid, first[:, None] + column, 0)
    return np.where(valid, values[index], 0).astype(np.int64), valid


def history_batch(
    sequences: Sequences, user: Ints, start: Ints, length: Ints, max_history: int
) -> dict[str, NDArray[np.generic]]:
    """Recent items start..start + length and the long history before them, right-padded to the longest of the batch."""
    offset = sequences.offsets[user]
    items, mask = _window(sequences.items, offset + start, length, int(length.max(initial=0)))
    ts, _ = _window(sequences.ts, offset + start, length, items.shape[1])
    long = np.minimum(start, max_history)
    long_items, long_mask = _window(sequences.items, offset + start - long, long, int(long.max(initial=0)))
    long_ts, _ = _window(sequences.ts, offset + start - long, long, long_items.shape[1])
    return {
        "items": items,
        "ts": ts,
        "mask": mask,
        "long_items": long_items,
        "long_ts": long_ts,
        "long_mask": long_mask,
    }


def training_batch(
    sequences: Sequences, chunk: Chunk, reach: Reach, negatives: Ints | None, rng: np.random.Generator
) -> dict[str, Tensor]:
    """Tensors of one micro-batch; every first dimension is the batch.

    items, ts, mask (B, T); request (B, P) time of the request after each prefix; next (B, P) its target or -1;
    long_items, long_ts, long_mask (B, E); boundary (B,) time of the first recent item; negatives (B, M / B) if sampled.
    With anchors: anchors (B, A) prefix lengths; window (B, A, w) the targets after each, -1 beyond the training items.
    """
    user, start, length = chunk.user, chunk.start, chunk.length
    batch = history_batch(sequences, user, start, length, reach.max_history)
    first = sequences.offsets[user] + start
    # An item more than is read: each prefix has a target, and its time is when the request was made.
    request, known = _window(sequences.ts, first, length + 1, batch["items"].shape[1] + 1)
    following, _ = _window(sequences.items, first, length + 1, request.shape[1])
    arrays: dict[str, NDArray[np.generic]] = {
        **batch,
        "request": request,
        "next": np.where(known, following, -1),
        "boundary": request[:, 0],
    }
    if reach.anchors:
        anchors = _anchors(length, reach.anchors, rng)
        left = sequences.n_train[user].astype(np.int64)[:, None] - start[:, None] - anchors
        window, inside = _window(sequences.items, (first[:, None] + anchors).ravel(), left.ravel(), reach.window)
        arrays["anchors"] = anchors
        arrays["window"] = np.where(inside, window, -1).reshape(*anchors.shape, reach.window)
    if negatives is not None:
        arrays["negatives"] = negatives.reshape(len(user), -1)
    return {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in arrays.items()}


def _anchors(length: Ints, count: int, rng: np.random.Generator) -> Ints:
    """`count` prefix lengths 1..length a row (B, A), without repeats where there are enough, ascending.

    One from each of `count` equal strata, so that anchors spread over the chunk.
    """
    step = np.arange(count) + rng.random((len(length), count))
    return 1 + np.minimum((step * (length[:, None] / count)).astype(np.int64), length[:, None] - 1)


def request_batch(sequences: Sequences, user: Ints, split: Split, reach: Reach) -> dict[str, Tensor]:
    """Requests of a split: all that users did before its targets, asked at the time of the first target.

    items, ts, mask (B, T); long_* (B, E); now (B,); boundary (B,) time of the first recent item, `now` without one.
    """
    stop = (sequences.n_train if split == "validation" else sequences.n_val)[user].astype(np.int64)
    length = np.minimum(stop, reach.recent)
    batch = history_batch(sequences, user, stop - length, length, reach.max_history)
    now = sequences.ts[sequences.offsets[user] + stop]
    has_items = length > 0
    first = np.minimum(sequences.offsets[user] + stop - length, len(sequences.ts) - 1)
    arrays = {**batch, "now": now, "boundary": np.where(has_items, sequences.ts[first], now)}
    return {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in arrays.items()}

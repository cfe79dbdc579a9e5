"""Chunks, prefixes, windows and requests, against a plain loop over the sequences."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_run import toy_config, toy_tables

from hymirec.catalog.prepare import prepare
from hymirec.catalog.prepared import Sequences
from hymirec.recommender.batches import (
    Chunk,
    chunk_count,
    draw_chunks,
    epoch_batches,
    request_batch,
    training_batch,
)
from hymirec.recommender.contract import Reach

CONFIG = toy_config()


@pytest.fixture(scope="module")
def sequences(tmp_path_factory: pytest.TempPathFactory) -> Sequences:
    out: Path = tmp_path_factory.mktemp("data")
    prepare(toy_tables(), CONFIG.data, out)
    return Sequences.open(out)


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 2**31))
def test_a_training_batch_says_what_a_loop_over_the_events_says(sequences: Sequences, seed: int) -> None:
    rng = np.random.default_rng(seed)
    chunks = draw_chunks(sequences, CONFIG.recommender.llm.recent, rng)
    chunk = Chunk(chunks.user[:5], chunks.start[:5], chunks.length[:5])
    batch = {k: v.numpy() for k, v in training_batch(sequences, chunk, Reach.of(CONFIG.recommender), None, rng).items()}
    for row in range(5):
        user, start, length = int(chunk.user[row]), int(chunk.start[row]), int(chunk.length[row])
        train = slice(int(sequences.offsets[user]), int(sequences.offsets[user] + sequences.n_train[user]))
        items, ts = sequences.items[train].tolist(), sequences.ts[train].tolist()
        assert batch["items"][row, :length].tolist() == items[start : start + length]
        assert batch["ts"][row, :length].tolist() == ts[start : start + length]
        assert batch["mask"][row].sum() == length
        assert batch["request"][row, : length + 1].tolist() == ts[start : start + length + 1]
        assert batch["next"][row, : length + 1].tolist() == items[start : start + length + 1]
        assert (batch["next"][row, length + 1 :] == -1).all()
        assert batch["boundary"][row] == ts[start]
        long = batch["long_mask"][row]
        assert batch["long_items"][row][long].tolist() == items[max(0, start - 20) : start]
        for anchor, window in zip(batch["anchors"][row], batch["window"][row], strict=True):
            assert 1 <= anchor <= length
            wanted = items[start + anchor : start + anchor + 3]
            assert window.tolist() == wanted + [-1] * (3 - len(wanted))


@settings(deadline=None, max_examples=10)
@given(world=st.integers(1, 3), batch=st.integers(1, 20))
def test_every_chunk_is_read_once_an_epoch_and_ranks_keep_step(sequences: Sequences, world: int, batch: int) -> None:
    ranks = [epoch_batches(sequences, 6, batch, world, r, np.random.default_rng(5)) for r in range(world)]
    assert len({len(batches) for batches in ranks}) == 1
    assert len(ranks[0]) == -(-chunk_count(sequences, 6) // (batch * world))
    assert all(len(c.user) == batch for batches in ranks for c in batches)
    seen = {(u, s) for batches in ranks for c in batches for u, s in zip(c.user, c.start, strict=True)}
    drawn = draw_chunks(sequences, 6, np.random.default_rng(5))
    assert seen == set(zip(drawn.user, drawn.start, strict=True))


def test_long_users_give_several_chunks_and_places_vary(sequences: Sequences) -> None:
    first = draw_chunks(sequences, 6, np.random.default_rng(0))
    count = np.bincount(first.user, minlength=len(sequences))
    assert (count == np.maximum(1, sequences.n_train // 6)).all()
    other = draw_chunks(sequences, 6, np.random.default_rng(1))
    assert set(zip(first.user, first.start, strict=True)) != set(zip(other.user, other.start, strict=True))


@pytest.mark.parametrize("split", ["validation", "test"])
def test_a_request_sees_all_before_its_target_and_asks_at_its_time(sequences: Sequences, split: str) -> None:
    users = np.arange(len(sequences))
    batch = {k: v.numpy() for k, v in request_batch(sequences, users, split, Reach.of(CONFIG.recommender)).items()}  # type: ignore[arg-type]
    for user in users:
        items, ts = sequences.history(int(user), split)  # type: ignore[arg-type]
        assert batch["items"][user][batch["mask"][user]].tolist() == items[-6:].tolist()
        assert batch["long_items"][user][batch["long_mask"][user]].tolist() == items[:-6][-20:].tolist()
        assert batch["boundary"][user] == ts[-6:][0]
        assert batch["now"][user] == sequences.targets(int(user), split)[1][0]  # type: ignore[arg-type]


def test_no_training_batch_holds_a_validation_or_test_event(sequences: Sequences) -> None:
    rng = np.random.default_rng(3)
    for chunk in epoch_batches(sequences, 6, 8, 1, 0, rng):
        assert (chunk.start + chunk.length < sequences.n_train[chunk.user]).all()

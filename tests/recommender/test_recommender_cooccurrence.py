"""Co-occurrence by hand, against a dense SVD, and what it must never see."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from hymirec.catalog.prepared import Sequences
from hymirec.recommender.cooccurrence import (
    cooccurrence_counts,
    cooccurrence_vectors,
    positive_pmi,
    text_projection,
)


def sequences(*histories: list[int], n_train: list[int] | None = None) -> Sequences:
    lengths = np.array([len(h) for h in histories])
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    items = np.concatenate([np.array(h, np.int32) for h in histories])
    train = np.array(n_train if n_train is not None else lengths, np.int32)
    last = np.maximum(train, lengths - 1).astype(np.int32)
    return Sequences(pa.array(range(len(histories))), offsets, items, np.arange(len(items)), train, last)


def test_counts_by_hand() -> None:
    # 0-1 and 1-2 are neighbours (weight 1), 0-2 stands two steps apart (1/2); 0-3 is beyond the window.
    counts = cooccurrence_counts(sequences([0, 1, 2, 3]), 4, 2).toarray()
    expected = np.array([[0, 1, 0.5, 0], [1, 0, 1, 0.5], [0.5, 1, 0, 1], [0, 0.5, 1, 0]])
    np.testing.assert_allclose(counts, expected)


def test_users_do_not_run_into_each_other_and_a_repeat_is_no_pair() -> None:
    counts = cooccurrence_counts(sequences([0, 0, 1], [2, 3]), 4, 1).toarray()
    assert counts[1, 2] == 0
    assert counts[0, 0] == 0
    assert counts[2, 3] == 1


def test_validation_and_test_events_are_never_counted() -> None:
    counts = cooccurrence_counts(sequences([0, 1, 2, 3], n_train=[2]), 4, 10).toarray()
    assert counts[0, 1] == 1
    assert counts.sum() == 2


def test_pmi_by_hand() -> None:
    counts = cooccurrence_counts(sequences([0, 1], [0, 1], [2, 3]), 4, 1)
    total = np.array([2.0, 2, 1, 1])
    context = total**0.75 / (total**0.75).sum()
    assert positive_pmi(counts).toarray()[0, 1] == pytest.approx(np.log(2 / (2 * context[1])))


def test_neighbours_lie_near_each_other_and_strangers_are_zero() -> None:
    rng = np.random.default_rng(0)
    histories = [list(rng.integers(0, 10, 12)) for _ in range(40)] + [list(rng.integers(10, 20, 12)) for _ in range(40)]
    vectors = cooccurrence_vectors(sequences(*histories), 21, 8, 5)
    np.testing.assert_allclose(np.linalg.norm(vectors[:20], axis=1), 1, atol=1e-5)
    assert not vectors[20].any()
    cosine = vectors @ vectors.T
    assert cosine[:10, :10].mean() > cosine[:10, 10:20].mean() + 0.3


def test_the_truncated_svd_spans_what_a_dense_one_spans() -> None:
    rng = np.random.default_rng(1)
    data = sequences(*[list(rng.integers(0, 30, 15)) for _ in range(60)])
    pmi = positive_pmi(cooccurrence_counts(data, 30, 4)).toarray()
    u, s, _ = np.linalg.svd(pmi)
    dense = u[:, :6] * np.sqrt(s[:6])
    dense /= np.linalg.norm(dense, axis=1, keepdims=True)
    vectors = cooccurrence_vectors(data, 30, 6, 4)
    np.testing.assert_allclose(vectors @ vectors.T, dense @ dense.T, atol=1e-4)


def test_equal_input_gives_equal_bytes() -> None:
    rng = np.random.default_rng(2)
    data = sequences(*[list(rng.integers(0, 30, 15)) for _ in range(60)])
    assert cooccurrence_vectors(data, 30, 6, 4).tobytes() == cooccurrence_vectors(data, 30, 6, 4).tobytes()


@pytest.mark.parametrize("items", [1, 2, 5])
def test_a_catalogue_smaller_than_the_width_is_filled_as_far_as_it_goes(items: int) -> None:
    vectors = cooccurrence_vectors(sequences(list(range(items)) * 3), items, 8, 3)
    assert vectors.shape == (items, 8)
    assert np.isfinite(vectors).all()


def test_an_unseen_item_is_put_where_items_with_such_a_text_are() -> None:
    rng = np.random.default_rng(3)
    content = np.repeat(np.eye(4, 6), 5, axis=0).astype(np.float32)
    topics = rng.standard_normal((4, 3))
    vectors = np.repeat(topics / np.linalg.norm(topics, axis=1, keepdims=True), 5, axis=0).astype(np.float32)
    vectors[7] = 0
    found = content[7] @ text_projection(content, vectors).T
    assert int(np.argmax(vectors @ found)) // 5 == 1

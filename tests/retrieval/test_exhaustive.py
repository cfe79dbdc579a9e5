"""The search of batches against products in fp64: whatever rounding to 8 bits loses, its lists are exact."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hymirec.config import RetrievalConfig
from hymirec.errors import ModelError, RequestError
from hymirec.retrieval import Bonus, ItemIndex, for_batches
from hymirec.retrieval.device import DeviceFlat
from hymirec.retrieval.exhaustive import ExhaustiveIndex
from hymirec.retrieval.index import Hits
from hymirec.retrieval.kinds import FaissIndex
from hymirec.retrieval.panels import MOST, NARROW_QUERY_MOST, NORM, ZERO, pack_items, pack_queries
from hymirec.simd import has_avx2, has_vnni

FLAT = RetrievalConfig(index="flat")
needs_avx2 = pytest.mark.usefixtures("avx2")


@pytest.fixture
def avx2() -> None:
    """These tests are of the kernel; elsewhere torch takes the products."""
    assert has_avx2(), "this processor has no AVX2, so what is tested here does not run on it"


def unit(rng: np.random.Generator, *shape: int) -> np.ndarray:
    x = rng.standard_normal(shape).astype(np.float32)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


# Sums of 16 bits and, where the processor has the instructions, of 32: both are tested.
KERNELS = [False, *([True] if has_vnni() else [])]
each_kernel = pytest.mark.parametrize("wide", KERNELS)


def exhaustive(vectors: np.ndarray, wide: bool | None = None) -> ExhaustiveIndex:
    return ExhaustiveIndex(FaissIndex.build(vectors, FLAT), wide)


def assert_exact(
    hits: Hits, vectors: np.ndarray, interests: np.ndarray, k: int, excluded: Sequence[int] = (), bonus: float = 0
) -> None:
    """As many as there are, in order, none better left out, with the scores and interests that fp64 gives.

    `bonus` is an array of the items, or 0 for none.
    """
    scores_SN = interests.astype(np.float64) @ vectors.T.astype(np.float64)
    scores = scores_SN.max(axis=0) + bonus
    left = np.setdiff1d(np.arange(len(vectors)), np.asarray(excluded, np.int64))
    assert len(hits) == len(np.unique(hits.items)) == min(k, len(left))
    assert np.isin(hits.items, left).all()
    size = np.abs(scores).max(initial=0) + 1e-30
    # Each score is fp32; what an item may lose against another is by its own norm.
    near = 1e-5 * np.linalg.norm(interests, axis=1).max() * np.linalg.norm(vectors, axis=1) + 1e-6 * abs(bonus)
    near = np.broadcast_to(near, scores.shape) + 1e-12 * size
    assert (np.abs(hits.scores - scores[hits.items]) <= near[hits.items]).all()
    assert (
        scores_SN[hits.interests, hits.items] + bonus_of(bonus, hits.items) >= scores[hits.items] - near[hits.items]
    ).all()
    order = np.lexsort((hits.items, -hits.scores))
    assert order.tolist() == list(range(len(hits)))
    rest = np.setdiff1d(left, hits.items)
    if len(rest) and len(hits):
        assert (scores[rest] <= hits.scores[-1] + near[rest] + near[hits.items[-1]]).all()


def bonus_of(bonus: float | np.ndarray, items: np.ndarray) -> float | np.ndarray:
    return bonus[items] if isinstance(bonus, np.ndarray) else bonus


@pytest.mark.parametrize("wide", [False, True])
def test_codes_bound_what_rounding_loses(wide: bool) -> None:
    """|x.q - a b x'.q'| <= |e| |q| + |a x'| |f|, and no product of codes passes 16 bits where sums have those."""
    rng = np.random.default_rng(0)
    for width in (1, 7, 128, 300):
        items = rng.standard_normal((100, width)).astype(np.float32) * rng.choice([1e-3, 1, 1e4], (100, 1))
        items[3], items[4] = 0, np.eye(width)[0] * 5
        queries = rng.standard_normal((10, width)).astype(np.float32)
        panels, packed = pack_items(items.astype(np.float32), wide), pack_queries(queries, wide)
        codes = panels.codes.astype(int).transpose(0, 2, 1, 3).reshape(len(panels.codes) * 48, -1)[:100] - ZERO
        asked = packed.codes[..., : panels.codes.shape[3]].astype(int).transpose(0, 2, 1, 3).reshape(12, -1)[:10]
        assert np.abs(codes).max() <= MOST
        assert np.abs(asked).max() <= (MOST if wide else NARROW_QUERY_MOST)
        assert wide or max(np.linalg.norm(codes, axis=1).max(), np.linalg.norm(asked, axis=1).max()) <= NORM
        stripe = np.arange(100) // 48
        products = asked @ codes.T * packed.scale * panels.scale_P[stripe]
        exact = queries.astype(np.float64) @ items.astype(np.float32).astype(np.float64).T
        bound = np.outer(packed.norm_Q[:10], panels.error_P[stripe]) + np.outer(
            packed.error_Q[:10], panels.norm_P[stripe]
        )
        assert (np.abs(exact - products) <= bound + 1e-9).all()


@needs_avx2
@settings(deadline=None, max_examples=100)
@given(
    st.integers(0, 2**31),
    st.integers(1, 9),
    st.integers(1, 6),
    st.integers(1, 400),
    st.integers(1, 33),
    st.integers(1, 120),
    st.integers(0, 60),
    st.sampled_from(["unit", "tied", "zero", "huge", "tiny"]),
    st.sampled_from([0.0, 0.1, 30.0]),
    st.sampled_from([0.0, 0.1, 30.0]),
    st.sampled_from(KERNELS),
)
def test_lists_are_exact_for_any_vectors(
    seed: int,
    users: int,
    interests: int,
    items: int,
    width: int,
    k: int,
    excluded: int,
    kind: str,
    size: float,
    own_size: float,
    wide: bool,
) -> None:
    """Ties, equal vectors, zeros and norms of any size; users with exclusions, half share a bonus, each has an own."""
    rng = np.random.default_rng(seed)
    vectors = unit(rng, items, width)
    if kind == "tied":
        vectors = vectors[rng.integers(0, max(1, items // 20), items)]
    if kind == "zero":
        vectors[rng.random(items) < 0.7] = 0
    if kind in ("huge", "tiny"):
        vectors[rng.random(items) < 0.1] *= np.float32(1e6 if kind == "huge" else 1e-6)
    queries = unit(rng, users, interests, width)
    exclude = [rng.integers(0, items, excluded) for _ in range(users)]
    lifted = np.flatnonzero(rng.random(items) < 0.5)
    one, none = (
        Bonus(lifted, (size * rng.random(len(lifted))).astype(np.float32)),
        Bonus(lifted[:0], np.empty(0, np.float32)),
    )
    given_bonus = [one if user % 2 else none for user in range(users)] if size else None
    own = [
        Bonus(lifted, (own_size * rng.random(len(lifted))).astype(np.float32))
        for lifted in (np.flatnonzero(rng.random(items) < rng.choice([0, 0.1, 1])) for _ in range(users))
    ]
    found = exhaustive(vectors, wide).search(queries, k, exclude, given_bonus, own if own_size else None)
    for user, hits in enumerate(found):
        added = np.zeros(items)
        if own_size:
            added[own[user].items] += own[user].values
        if size and user % 2:
            added[one.items] += one.values
        assert_exact(hits, vectors, queries[user], k, exclude[user].tolist(), added)


@needs_avx2
@each_kernel
@pytest.mark.parametrize("size", [0.05, 0.3, 1.0])
def test_own_bonuses_lift_items_that_the_search_did_not_find(size: float, wide: bool) -> None:
    """Many items have none, and the last of a list come from far below what a search without bonuses gives."""
    rng = np.random.default_rng(3)
    vectors, queries = unit(rng, 3_000, 16), unit(rng, 40, 3, 16)
    own, exclude = [], []
    for user in range(40):
        items = np.sort(rng.choice(3_000, 30 * user, replace=False))
        own.append(Bonus(items, (size * rng.random(len(items))).astype(np.float32)))
        exclude.append(rng.integers(0, 3_000, 20))
    for user, hits in enumerate(exhaustive(vectors, wide).search(queries, 20, exclude, own=own)):
        added = np.zeros(3_000)
        added[own[user].items] = own[user].values
        assert_exact(hits, vectors, queries[user], 20, exclude[user].tolist(), added)


@needs_avx2
@each_kernel
@pytest.mark.parametrize("interests", [1, 2, 3, 4, 5])
def test_a_guess_from_a_sample_loses_nothing(interests: int, wide: bool) -> None:
    """Many items and users of more than one block; also where the sample misleads, and the guess is too high."""
    rng = np.random.default_rng(interests)
    vectors, queries = unit(rng, 5_000, 16), unit(rng, 150, interests, 16)
    # The stripes of the sample hold the best items of the first users, and there are few of those.
    near = (np.arange(5_000) // 48) % 16 == 8
    vectors[near] = queries[0, 0] + 0.01 * vectors[near]
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    index = exhaustive(vectors, wide)
    assert index._sampled(20)
    for k in (20, 400):
        for user, hits in enumerate(index.search(queries, k)):
            assert_exact(hits, vectors, queries[user], k)


@needs_avx2
@each_kernel
def test_a_guess_that_is_too_high_is_found_out(wide: bool) -> None:
    rng = np.random.default_rng(0)
    vectors, queries = unit(rng, 5_000, 16), unit(rng, 3, 2, 16)
    sample = (np.arange(5_000) // 48) % 16 == 8
    vectors[sample] = queries[0, 0]
    vectors[~sample] = np.where(vectors[~sample] @ queries[0, 0][:, None] > 0, -1, 1) * vectors[~sample]
    hits = exhaustive(vectors, wide).search(queries, 400)
    assert int(sample.sum()) < 400
    for user, own in enumerate(hits):
        assert_exact(own, vectors, queries[user], 400)


@needs_avx2
@each_kernel
@pytest.mark.parametrize("k", [1, 3, 7, 120, 299])
def test_a_tie_across_the_end_of_the_list_goes_to_the_lowest_items(k: int, wide: bool) -> None:
    rng = np.random.default_rng(1)
    vectors = np.repeat(unit(rng, 30, 8), 10, axis=0)[rng.permutation(300)]
    queries = unit(rng, 1, 3, 8)
    scores = (queries[0] @ vectors.T).max(axis=0).round(5)
    (hits,) = exhaustive(vectors, wide).search(queries, k, [np.array([5, 6])])
    assert hits.items.tolist() == [i for i in np.lexsort((np.arange(300), -scores)).tolist() if i not in (5, 6)][:k]


@needs_avx2
def test_any_index_is_searched_as_flat_is() -> None:
    rng = np.random.default_rng(2)
    vectors, queries = unit(rng, 900, 8), unit(rng, 4, 3, 8)
    exact = ItemIndex.build(vectors, FLAT).search(queries, 30, [np.arange(10)] * 4)
    index = for_batches(ItemIndex.build(vectors, RetrievalConfig(index="ivf_sq8")))
    assert isinstance(index, ExhaustiveIndex)
    for a, b in zip(exact, index.search(queries, 30, [np.arange(10)] * 4), strict=True):
        assert a.items.tolist() == b.items.tolist()
        assert a.interests.tolist() == b.interests.tolist()
        assert np.allclose(a.scores, b.scores, atol=1e-6)


def test_without_avx2_torch_takes_all_products(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    vectors, queries = unit(rng, 50, 8), unit(rng, 2, 2, 8)
    monkeypatch.setattr("hymirec.retrieval.exhaustive.has_avx2", lambda: False)
    index = for_batches(ItemIndex.build(vectors, FLAT))
    assert isinstance(index.searcher, DeviceFlat)
    assert for_batches(index) is index
    for user, hits in enumerate(index.search(queries, 5)):
        assert_exact(hits, vectors, queries[user], 5)


@needs_avx2
def test_what_has_no_order_is_refused() -> None:
    vectors = np.eye(3, dtype=np.float32)
    index = exhaustive(vectors)
    with pytest.raises(RequestError, match="k must be at least 1"):
        index.search(vectors[None], 0)
    with pytest.raises(RequestError, match="at most 32 interests"):
        index.search(np.zeros((1, 33, 3), np.float32), 1)
    with pytest.raises(ModelError, match="interest holds NaN"):
        index.search(np.full((1, 1, 3), np.nan, np.float32), 1)
    with pytest.raises(ModelError, match="item vector holds NaN"):
        exhaustive(np.full((1, 3), np.nan, np.float32))
    assert index.search(np.empty((0, 2, 3), np.float32), 1) == []

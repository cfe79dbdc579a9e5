from __future__ import annotations

from pathlib import Path

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hymirec.config import RetrievalConfig
from hymirec.errors import ArtifactDamagedError, ArtifactMissingError, RequestError
from hymirec.retrieval import Bonus, ItemIndex, device, on_device
from hymirec.retrieval.device import DeviceFlat
from hymirec.retrieval.kinds import FaissIndex

FLAT = RetrievalConfig(index="flat")
KINDS = ("flat", "hnsw", "ivf_sq8")
APPROXIMATE = KINDS[1:]
DEVICE = "device"


def thorough(vectors: np.ndarray, kind: str) -> ItemIndex:
    """An index whose effort leaves nothing out: what differs from `flat` is a fault and not a lack of recall."""
    if kind == DEVICE:
        return ItemIndex(DeviceFlat(FaissIndex.build(vectors, FLAT), "cpu"))
    index = ItemIndex.build(vectors, RetrievalConfig(index=kind))  # type: ignore[arg-type]
    assert isinstance(index.searcher, FaissIndex)
    index.searcher.effort = len(vectors)
    return index


def unit(rng: np.random.Generator, *shape: int) -> np.ndarray:
    x = rng.standard_normal(shape).astype(np.float32)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**31), st.integers(1, 5), st.integers(1, 40), st.integers(1, 50), st.integers(0, 20))
def test_results_equal_brute_force(seed: int, interests: int, items: int, k: int, excluded: int) -> None:
    rng = np.random.default_rng(seed)
    vectors, queries = unit(rng, items, 8), unit(rng, 2, interests, 8)
    exclude = [rng.integers(0, items, excluded), np.empty(0, np.int64)]
    for row, hits in enumerate(ItemIndex.build(vectors, FLAT).search(queries, k, exclude)):
        scores = (queries[row] @ vectors.T).max(axis=0)
        allowed = [i for i in range(items) if i not in set(exclude[row].tolist())]
        best = sorted(allowed, key=lambda i: -scores[i])[:k]
        assert hits.items.tolist() == best
        assert np.allclose(hits.scores, scores[best], atol=1e-6)
        assert hits.interests.tolist() == (queries[row] @ vectors.T).argmax(axis=0)[best].tolist()


@settings(deadline=None, max_examples=60)
@given(
    st.integers(0, 2**31),
    st.integers(1, 60),
    st.integers(1, 15),
    st.integers(0, 20),
    st.floats(0, 1),
    st.sampled_from([0.0, 0.1, 3.0]),
)
def test_results_with_a_bonus_equal_brute_force(
    seed: int, items: int, k: int, excluded: int, share: float, size: float
) -> None:
    """Few or many items have one, small or larger than any difference of scores, each request its own."""
    rng = np.random.default_rng(seed)
    vectors, queries = unit(rng, items, 8), unit(rng, 2, 3, 8)
    exclude = [rng.integers(0, items, excluded), np.empty(0, np.int64)]
    bonuses = []
    for _ in range(2):
        lifted = np.flatnonzero(rng.random(items) < share)
        bonuses.append(Bonus(lifted, (size * rng.random(len(lifted))).astype(np.float32)))
    index = ItemIndex.build(vectors, FLAT)
    found = index.search(queries, k, exclude, bonuses)
    shared = [Bonus(np.arange(0, items, 2), np.full(-(-items // 2), size, np.float32))] * 2
    both = index.search(queries, k, exclude, shared, bonuses)
    added = index.search(queries, k, exclude, [one + other for one, other in zip(shared, bonuses, strict=True)])
    assert [hits.items.tolist() for hits in both] == [hits.items.tolist() for hits in added]
    for row, hits in enumerate(found):
        cosines = queries[row] @ vectors.T
        scores = cosines.max(axis=0)
        scores[bonuses[row].items] += bonuses[row].values
        allowed = [i for i in range(items) if i not in set(exclude[row].tolist())]
        best = sorted(allowed, key=lambda i: -scores[i])[:k]
        assert hits.items.tolist() == best
        assert np.allclose(hits.scores, scores[best], atol=1e-6)
        assert hits.interests.tolist() == cosines.argmax(axis=0)[best].tolist()


def test_equal_scores_come_in_order_of_item() -> None:
    vectors = np.tile(np.array([[1.0, 0.0]], np.float32), (6, 1))
    (hits,) = ItemIndex.build(vectors, FLAT).search(np.array([[[1.0, 0.0]]], np.float32), 6)
    assert hits.items.tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("kind", [*KINDS, DEVICE])
@pytest.mark.parametrize("k", [1, 3, 7, 120, 299])
def test_a_tie_across_the_end_of_the_list_goes_to_the_lowest_items(k: int, kind: str) -> None:
    rng = np.random.default_rng(1)
    vectors = np.repeat(unit(rng, 30, 8), 10, axis=0)[rng.permutation(300)]
    queries = unit(rng, 1, 3, 8)
    scores = np.stack([[np.dot(v, q) for v in vectors] for q in queries[0]]).max(axis=0).round(5)
    (hits,) = thorough(vectors, kind).search(queries, k, [np.array([5, 6])])
    best = [i for i in np.lexsort((np.arange(300), -scores)).tolist() if i not in (5, 6)][:k]
    assert hits.items.tolist() == best


@pytest.mark.parametrize("kind", [*APPROXIMATE, DEVICE])
def test_other_kinds_exclude_and_add_bonuses_as_flat_does(kind: str) -> None:
    rng = np.random.default_rng(2)
    vectors, queries = unit(rng, 600, 8), unit(rng, 4, 3, 8)
    exclude = [rng.integers(0, 600, count) for count in (0, 5, 60, 150)]
    bonus = [Bonus(np.arange(0, 600, step), np.full(-(-600 // step), 0.1, np.float32)) for step in (1, 7, 50, 599)]
    exact, found = ItemIndex.build(vectors, FLAT), thorough(vectors, kind)
    for bonuses in (None, bonus):
        for a, b in zip(
            exact.search(queries, 20, exclude, bonuses), found.search(queries, 20, exclude, bonuses), strict=True
        ):
            assert a.items.tolist() == b.items.tolist()
            assert a.interests.tolist() == b.interests.tolist()
            assert np.allclose(a.scores, b.scores, atol=1e-6)
    assert np.array_equal(found.vectors(np.array([599, 3])), vectors[[599, 3]])


def test_few_lists_do_not_make_a_list_short() -> None:
    """Where the lists that are looked into hold too few items, all products are taken."""
    rng = np.random.default_rng(3)
    vectors, queries = unit(rng, 2_000, 8), unit(rng, 2, 2, 8)
    index = ItemIndex.build(vectors, RetrievalConfig(index="ivf_sq8"))
    assert isinstance(index.searcher, FaissIndex)
    index.searcher.effort = 1
    hits = index.search(queries, 90, [np.arange(700), np.empty(0, np.int64)])
    assert [len(row) for row in hits] == [90, 90]
    assert hits[0].items.min() >= 700


def test_products_on_a_device_are_taken_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(4)
    vectors, queries = unit(rng, 50, 8), unit(rng, 7, 2, 8)
    whole = thorough(vectors, DEVICE).search(queries, 5)
    monkeypatch.setattr(device, "SCORES", 150)
    for a, b in zip(whole, thorough(vectors, DEVICE).search(queries, 5), strict=True):
        assert a.items.tolist() == b.items.tolist()


def test_on_a_cpu_an_index_stays_what_it_is() -> None:
    index = ItemIndex.build(np.eye(3, dtype=np.float32), FLAT)
    assert on_device(index, "cpu") is index


def test_excluding_everything_gives_an_empty_list() -> None:
    vectors = np.eye(3, dtype=np.float32)
    (hits,) = ItemIndex.build(vectors, FLAT).search(vectors[None, :1], 2, [np.arange(3)])
    assert len(hits) == 0


def test_k_below_one_is_refused() -> None:
    with pytest.raises(RequestError, match="k must be at least 1"):
        ItemIndex.build(np.eye(3, dtype=np.float32), FLAT).search(np.eye(3, dtype=np.float32)[None, :1], 0)


def test_hnsw_finds_what_flat_finds() -> None:
    rng = np.random.default_rng(0)
    vectors, queries = unit(rng, 3000, 16), unit(rng, 20, 2, 16)
    exact = ItemIndex.build(vectors, FLAT).search(queries, 100)
    found = ItemIndex.build(vectors, RetrievalConfig(index="hnsw")).search(queries, 100)
    recall = np.mean([len(set(a.items) & set(b.items)) / 100 for a, b in zip(exact, found, strict=True)])
    assert recall >= 0.98


def test_hnsw_gives_all_items_when_all_are_asked_for() -> None:
    vectors = unit(np.random.default_rng(0), 400, 8)
    # Many equal vectors leave parts of a graph out of reach.
    vectors[:300] = vectors[0]
    index = ItemIndex.build(vectors, RetrievalConfig(index="hnsw", hnsw_links=4, hnsw_search=16))
    (hits,) = index.search(vectors[None, 350:352], 1000, [np.array([3])])
    assert sorted(hits.items.tolist()) == [i for i in range(400) if i != 3]


@pytest.mark.parametrize("kind", APPROXIMATE)
def test_an_index_has_the_same_bytes_each_time_with_any_threads(tmp_path: Path, kind: str) -> None:
    vectors = unit(np.random.default_rng(0), 2000, 8)
    before = faiss.omp_get_max_threads()
    try:
        for name, threads in (("a", 1), ("b", 4)):
            faiss.omp_set_num_threads(threads)
            ItemIndex.build(vectors, RetrievalConfig(index=kind)).save(tmp_path / name)  # type: ignore[arg-type]
            assert faiss.omp_get_max_threads() == threads
    finally:
        faiss.omp_set_num_threads(before)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_index_gives_the_same_results(tmp_path: Path, kind: str) -> None:
    rng = np.random.default_rng(0)
    vectors, queries = unit(rng, 200, 8), unit(rng, 3, 2, 8)
    index = ItemIndex.build(vectors, RetrievalConfig(index=kind))  # type: ignore[arg-type]
    index.save(tmp_path / "index.faiss")
    again = ItemIndex.open(tmp_path / "index.faiss")
    assert [h.items.tolist() for h in index.search(queries, 9)] == [h.items.tolist() for h in again.search(queries, 9)]


def test_a_missing_or_foreign_file_is_an_artifact_error(tmp_path: Path) -> None:
    with pytest.raises(ArtifactMissingError):
        ItemIndex.open(tmp_path / "absent")
    (tmp_path / "foreign").write_bytes(b"not an index at all")
    with pytest.raises(ArtifactDamagedError):
        ItemIndex.open(tmp_path / "foreign")

from __future__ import annotations

import numpy as np
import pytest

from hymirec.config import RetrievalConfig
from hymirec.retrieval import Bonus, Hits, ItemIndex, for_batches, share_out

ITEMS, WIDTH = 200, 16
RNG = np.random.default_rng(3)


def unit(*shape: int) -> np.ndarray:
    x = RNG.standard_normal(shape).astype(np.float32)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


VECTORS = unit(ITEMS, WIDTH)
# The second interest is weak: the first one's items fill the list.
INTERESTS = unit(3, 2, WIDTH) * np.array([1, 0.3], np.float32)[:, None]
EXCLUDED = [np.array([], np.int64), np.arange(50), np.arange(100, 150)]


@pytest.fixture(scope="module", params=["alone", "batches"])
def index(request: pytest.FixtureRequest) -> ItemIndex:
    built = ItemIndex.build(VECTORS, RetrievalConfig(index="flat"))
    return built if request.param == "alone" else for_batches(built)


def by_hand(
    interests: np.ndarray, k: int, share: int, excluded: np.ndarray, bonus: np.ndarray
) -> list[tuple[int, int]]:
    """(item, interest) of a list, from all scores."""
    scores = VECTORS @ interests.T + bonus[:, None]
    scores[excluded] = -np.inf
    chosen: dict[int, int] = {}
    for _ in range(share):
        for s in range(len(interests)):
            free = [i for i in np.lexsort((np.arange(ITEMS), -scores[:, s])) if i not in chosen]
            chosen[int(free[0])] = s
    for i in np.lexsort((np.arange(ITEMS), -scores.max(axis=1))):
        if len(chosen) < k:
            chosen.setdefault(int(i), int(scores[i].argmax()))
    return sorted(chosen.items(), key=lambda pair: (-scores[pair[0], pair[1]], pair[0]))


def shares(index: ItemIndex, wanted: list[tuple[int, int]], own: list[Bonus] | None = None) -> list[Hits]:
    best = index.search(INTERESTS, 20, EXCLUDED, None, own)
    return share_out(index, INTERESTS, best, wanted, EXCLUDED, None, own)


@pytest.mark.parametrize("boosted", [False, True])
def test_shares_are_what_turns_by_hand_give(index: ItemIndex, boosted: bool) -> None:
    bonus = np.zeros((3, ITEMS), np.float32)
    if boosted:
        bonus[:, ::7] = 0.2
    own = [Bonus(np.flatnonzero(row), row[row > 0]) for row in bonus] if boosted else None
    wanted = [(20, 4), (12, 6), (10, 1)]
    for row, hits in enumerate(shares(index, wanted, own)):
        expected = by_hand(INTERESTS[row], *wanted[row], EXCLUDED[row], bonus[row])
        assert list(zip(hits.items.tolist(), hits.interests.tolist(), strict=True)) == expected
        scores = (VECTORS[hits.items] * INTERESTS[row][hits.interests]).sum(axis=1) + bonus[row][hits.items]
        np.testing.assert_allclose(hits.scores, scores, atol=1e-5)


def test_who_wants_no_share_keeps_the_best(index: ItemIndex) -> None:
    best = index.search(INTERESTS, 20, EXCLUDED)
    without, some, _ = shares(index, [(20, 0), (20, 2), (1, 5)])
    np.testing.assert_array_equal(without.items, best[0].items)
    assert set(best[1].interests.tolist()) == {0}
    assert (some.interests == 1).sum() == 2


def test_a_share_is_at_most_an_equal_part(index: ItemIndex) -> None:
    for k in (2, 5):
        hits = shares(index, [(k, 9)] * 3)[0]
        assert len(hits) == k
        assert (hits.interests == 1).sum() == k // 2
    np.testing.assert_array_equal(shares(index, [(1, 9)] * 3)[0].items, index.search(INTERESTS, 20, EXCLUDED)[0].items)


def test_a_catalogue_that_runs_out_gives_what_there_is(index: ItemIndex) -> None:
    left = [np.arange(3, ITEMS)] * 3
    best = index.search(INTERESTS, 20, left)
    for hits in share_out(index, INTERESTS, best, [(20, 5)] * 3, left, None, None):
        assert sorted(hits.items.tolist()) == [0, 1, 2]

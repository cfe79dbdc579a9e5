"""One pass: totals, slices, prices, residual rows, draws."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from codebook_workers import clustered, run_threads

from hymirec.codebook import IdentityReducer, Reducer
from hymirec.codebook.balanced import Shard, moved, run_pass
from hymirec.codebook.exact import from_units, mix, to_units
from hymirec.codebook.seeds import first_seeds, new_seeds, scattered, spread

ALONE = IdentityReducer()


def make_shard(rows: np.ndarray, ids: np.ndarray | None = None, slices: int = 20) -> Shard:
    ids = np.arange(len(rows)) if ids is None else ids
    return Shard.of(to_units(torch.from_numpy(rows)), mix(ids.astype(np.uint64), 5), slices)


def test_a_pass_at_price_zero_is_plain_assignment() -> None:
    rows = clustered(500, 12)
    units = to_units(torch.from_numpy(rows))
    centroids = units[:8]
    done = run_pass(make_shard(rows), centroids, torch.zeros(8, dtype=torch.float64), 0.0, ALONE)
    code = (units.long() @ centroids.long().T).argmax(1)
    expected = torch.zeros(8, 12, dtype=torch.int64).index_add_(0, code, units.long())
    assert torch.equal(done.sums_KD, expected)
    assert torch.equal(done.counts_K, torch.bincount(code, minlength=8))
    assert torch.equal(done.price_K, torch.zeros(8, dtype=torch.float64))


def test_prices_move_within_a_pass_towards_even_loads() -> None:
    rows = clustered(4000, 12)
    shard, centroids = make_shard(rows), to_units(torch.from_numpy(rows[:8]))
    plain = run_pass(shard, centroids, torch.zeros(8, dtype=torch.float64), 0.0, ALONE)
    done = plain
    for _ in range(6):
        done = run_pass(shard, centroids, done.price_K, 0.3, ALONE)
    assert int(done.counts_K.sum()) == len(rows)
    assert int(plain.counts_K.max()) > 700
    assert int(done.counts_K.max()) < 550


def test_a_dear_centroid_is_avoided() -> None:
    rows = clustered(200, 12)
    price = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)
    done = run_pass(make_shard(rows), to_units(torch.from_numpy(rows[:3])), price, 0.0, ALONE)
    assert int(done.counts_K[0]) == 0


def test_a_whole_pass_with_twice_the_fair_load_raises_a_price_by_the_step() -> None:
    price = moved(torch.zeros(4, dtype=torch.float64), torch.tensor([50, 25, 25, 0]), 100, 0.25)
    assert price.tolist() == pytest.approx([0.25, 0.0, 0.0, -0.25])
    assert moved(price, torch.tensor([100, 0, 0, 0]), 100, 9.0).tolist() == pytest.approx([1.0, -1.0, -1.0, -1.0])


def test_slices_hold_every_row_once_and_zero_rows_never() -> None:
    rows = clustered(300, 6)
    rows[[5, 17]] = 0
    shard = make_shard(rows)
    assert shard.bounds[0] == 0
    assert shard.bounds[-1] == len(shard.units_nD) == 298
    assert shard.slices == 20
    slices = np.repeat(np.arange(20), np.diff(shard.bounds))
    assert np.array_equal(slices, (shard.hash_n % np.uint64(20)).astype(np.int64))


def test_residual_rows_do_not_depend_on_neighbours_and_are_orthogonal_to_their_centroids() -> None:
    rows = clustered(600, 32)
    centroids = to_units(torch.from_numpy(clustered(9, 32, seed=4)))
    whole = make_shard(rows).residual(centroids)
    by_hash = dict(zip(whole.hash_n.tolist(), whole.units_nD, strict=True))
    for ids in np.array_split(np.random.default_rng(1).permutation(600), 7):
        part = make_shard(rows[ids], ids).residual(centroids)
        assert all(torch.equal(by_hash[key], row) for key, row in zip(part.hash_n.tolist(), part.units_nD, strict=True))
    code = (make_shard(rows).units_nD.long() @ centroids.long().T).argmax(1)
    product = (from_units(whole.units_nD) * from_units(centroids)[code]).sum(1)
    assert float(product.abs().max()) < 2e-3


def test_rows_that_are_their_centroid_leave_nothing() -> None:
    rows = clustered(50, 8)
    left = make_shard(rows).residual(to_units(torch.from_numpy(rows[:25])))
    assert len(left.units_nD) == 25


@pytest.mark.parametrize("count", [1, 10, 60, 100])
def test_draws_are_the_same_for_any_sharding(count: int) -> None:
    rows = clustered(60, 6)
    alone = make_shard(rows).draw(count, 3, ALONE)
    assert len(alone) == min(count, 60)

    def work(reducer: Reducer) -> torch.Tensor:
        mine = np.arange(60)[reducer.rank :: 3]
        return make_shard(rows[mine], mine).draw(count, 3, reducer)

    assert all(torch.equal(drawn, alone) for drawn in run_threads(3, work))
    assert not torch.equal(make_shard(rows).draw(10, 4, ALONE), make_shard(rows).draw(10, 3, ALONE))


def test_seeds_are_different_rows_and_then_pseudo_random_directions() -> None:
    rows = np.repeat(clustered(30, 6), 50, axis=0)
    seeds = first_seeds(make_shard(rows), 30, 1, ALONE)
    assert len(torch.unique(seeds, dim=0)) == 30
    more = first_seeds(make_shard(rows), 34, 1, ALONE)
    assert torch.equal(torch.unique(more[:30], dim=0), torch.unique(to_units(torch.from_numpy(rows)), dim=0))
    assert torch.equal(more[30:], scattered(4, 6, 1))
    assert bool((more != 0).any(1).all())
    assert len(new_seeds(make_shard(rows[:3]), 5, 1, ALONE)) == 5


def test_the_spread_of_scores_is_small_in_a_narrow_cone() -> None:
    rows = clustered(200, 32)
    wide = spread(to_units(torch.from_numpy(rows)))
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    narrow = spread(to_units(torch.from_numpy(unit + 3.0 * np.ones(32, np.float32) / 32**0.5)))
    assert narrow < wide / 5
    assert spread(to_units(torch.from_numpy(rows[:1]))) == 0.0
    cosine = unit @ unit.T
    np.fill_diagonal(cosine, np.nan)
    expected = (np.nanmax(cosine, 1) - np.nanmean(cosine, 1)).mean()
    assert wide == pytest.approx(expected, abs=2e-3)

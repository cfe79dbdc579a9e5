"""One pass: totals, slices, prices, residual rows, draws, seeds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from codebook_workers import clustered, run_threads
from torch import Tensor

from hymirec.codebook import IdentityReducer, Reducer
from hymirec.codebook.balanced import Pass, moved, run_pass
from hymirec.codebook.exact import mix
from hymirec.codebook.kernels import choose
from hymirec.codebook.rotation import Rotation
from hymirec.codebook.seeds import Seeds, first_seeds, new_seeds, scattered
from hymirec.codebook.shard import Shard, build_shard

ALONE = IdentityReducer()
CPU = torch.device("cpu")
KERNEL = choose("auto", CPU)
ROTATION = Rotation(12)


def make_shard(rows: np.ndarray, ids: np.ndarray | None = None, memory_mb: int = 64, batch: int = 97) -> Shard:
    ids = np.arange(len(rows)) if ids is None else ids

    def batches() -> Iterator[tuple[Tensor, np.ndarray]]:
        for start in range(0, len(rows), batch):
            part = slice(start, start + batch)
            yield torch.from_numpy(rows[part]), mix(ids[part].astype(np.uint64), 5)

    return build_shard(batches(), Rotation(rows.shape[1]), 20, memory_mb, CPU)


def units_of(rows: np.ndarray) -> Tensor:
    return Rotation(rows.shape[1]).directions(torch.from_numpy(rows))


def one_pass(shard: Shard, units: Tensor, price: Tensor, step: float, reducer: Reducer = ALONE) -> Pass:
    return run_pass(shard, units, price, step, reducer, KERNEL, ROTATION.length)


def seeds_of(shard: Shard, count: int, salt: int, reducer: Reducer = ALONE) -> Seeds:
    return first_seeds(shard, count, salt, 28.2 * shard.width**0.5, KERNEL, reducer)


def by_hash(shard: Shard) -> dict[int, bytes]:
    return {
        int(key): row.numpy().tobytes()
        for hashes, rows in zip(shard.hashes, shard.rows, strict=True)
        for key, row in zip(hashes, rows, strict=True)
    }


def test_a_pass_at_price_zero_is_plain_assignment() -> None:
    rows = clustered(500, 12)
    units = units_of(rows)
    done = one_pass(make_shard(rows), units[:8], torch.zeros(8, dtype=torch.float64), 0.0)
    code = (units.long() @ units[:8].long().T).argmax(1)
    expected = torch.zeros(8, 32, dtype=torch.int64).index_add_(0, code, units.long())
    assert torch.equal(done.sums_KP, expected)
    assert torch.equal(done.counts_K, torch.bincount(code, minlength=8))
    assert torch.equal(done.price_K, torch.zeros(8, dtype=torch.float64))


def test_prices_move_within_a_pass_towards_even_loads() -> None:
    rows = clustered(4000, 12)
    shard, centroids = make_shard(rows), units_of(rows[:8])
    plain = one_pass(shard, centroids, torch.zeros(8, dtype=torch.float64), 0.0)
    done = plain
    for _ in range(6):
        done = one_pass(shard, centroids, done.price_K, 0.3)
    assert int(done.counts_K.sum()) == len(rows)
    assert int(plain.counts_K.max()) > 700
    assert int(done.counts_K.max()) < 550


def test_a_dear_centroid_is_avoided() -> None:
    rows = clustered(200, 12)
    price = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)
    done = one_pass(make_shard(rows), units_of(rows[:3]), price, 0.0)
    assert int(done.counts_K[0]) == 0


def test_a_whole_pass_with_twice_the_fair_load_raises_a_price_by_the_step() -> None:
    price = moved(torch.zeros(4, dtype=torch.float64), torch.tensor([50, 25, 25, 0]), 100, 0.25)
    assert price.tolist() == pytest.approx([0.25, 0.0, 0.0, -0.25])
    assert moved(price, torch.tensor([100, 0, 0, 0]), 100, 9.0).tolist() == pytest.approx([1.0, -1.0, -1.0, -1.0])


@pytest.mark.parametrize("memory_mb", [64, 0])
def test_slices_hold_every_row_once_and_zero_rows_never(memory_mb: int) -> None:
    rows = clustered(300, 6)
    rows[[5, 17]] = 0
    shard = make_shard(rows, memory_mb=memory_mb)
    assert shard.on_disk == (memory_mb == 0)
    assert len(shard) == 298
    assert shard.slices == 20
    units = units_of(rows)
    expected = {int(mix(np.array([i], np.uint64), 5)[0]): units[i].numpy().tobytes() for i in range(300)}
    found = by_hash(shard)
    assert len(found) == 298
    assert all(expected[key] == row for key, row in found.items())
    for number, hashes in enumerate(shard.hashes):
        assert (hashes % np.uint64(20) == number).all()


def test_rows_on_disk_give_the_same_pass_and_the_same_residuals(tmp_path: Path) -> None:
    rows = clustered(700, 12)
    memory, disk = make_shard(rows), make_shard(rows, memory_mb=0)
    centroids, price = units_of(rows[:9]), torch.zeros(9, dtype=torch.float64)
    a, b = one_pass(memory, centroids, price, 0.3), one_pass(disk, centroids, price, 0.3)
    assert torch.equal(a.sums_KP, b.sums_KP)
    assert torch.equal(a.price_K, b.price_K)
    for shard in (memory, disk):
        shard.leave(KERNEL.table(centroids), KERNEL, ROTATION.length)
    assert by_hash(memory) == by_hash(disk)


def test_residual_rows_do_not_depend_on_neighbours_and_are_orthogonal_to_their_centroids() -> None:
    rows = clustered(600, 32)
    centroids, length = units_of(clustered(9, 32, seed=4)), Rotation(32).length
    whole = make_shard(rows)
    code = {
        int(key): int((row.long() @ centroids.long().T).argmax())
        for hashes, block in zip(whole.hashes, whole.rows, strict=True)
        for key, row in zip(hashes, block, strict=True)
    }
    whole.leave(KERNEL.table(centroids), KERNEL, length)
    expected = by_hash(whole)
    for ids in np.array_split(np.random.default_rng(1).permutation(600), 7):
        part = make_shard(rows[ids], ids)
        part.leave(KERNEL.table(centroids), KERNEL, length)
        assert all(expected[key] == row for key, row in by_hash(part).items())
    for key, row in expected.items():
        product = np.frombuffer(row, np.int8).astype(int) @ centroids[code[key]].numpy().astype(int)
        assert abs(product) < 0.02 * length**2


def test_rows_that_are_their_centroid_leave_nothing() -> None:
    rows = clustered(50, 8)
    shard = make_shard(rows)
    shard.leave(KERNEL.table(units_of(rows[:25])), KERNEL, ROTATION.length)
    assert len(shard) == 25


@pytest.mark.parametrize("count", [1, 10, 60, 100])
def test_draws_are_the_same_for_any_sharding(count: int) -> None:
    rows = clustered(60, 6)
    alone = make_shard(rows).draw(count, 3, ALONE)
    assert len(alone) == min(count, 60)

    def work(reducer: Reducer) -> Tensor:
        mine = np.arange(60)[reducer.rank :: 3]
        return make_shard(rows[mine], mine).draw(count, 3, reducer)

    assert all(torch.equal(drawn, alone) for drawn in run_threads(3, work))
    assert not torch.equal(make_shard(rows).draw(10, 4, ALONE), make_shard(rows).draw(10, 3, ALONE))


def test_seeds_are_different_rows_and_then_pseudo_random_directions() -> None:
    rows = np.repeat(clustered(30, 6), 50, axis=0)
    seeds = seeds_of(make_shard(rows), 30, 1).units_KP
    more = seeds_of(make_shard(rows), 34, 1).units_KP
    distinct = torch.unique(units_of(rows), dim=0)
    assert torch.equal(torch.unique(seeds_of(make_shard(rows[::50]), 30, 1).units_KP, dim=0), distinct)
    assert len(torch.unique(seeds, dim=0)) == len(seeds) == 30
    assert len(torch.unique(more, dim=0)) == len(more) == 34
    assert bool((more != 0).any(1).all())
    assert len(new_seeds(make_shard(rows[:3]), 5, 1, ROTATION.length, ALONE)) == 5
    assert torch.equal(scattered(4, 32, 1, 100.0), scattered(4, 32, 1, 100.0))


def test_seeds_reach_clusters_that_a_plain_draw_misses() -> None:
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(40, 24))
    share = np.r_[np.full(4, 0.2), np.full(36, 0.2 / 36)]
    which = rng.choice(40, 20_000, p=share)
    rows = (centres[which] + 0.2 * rng.normal(size=(20_000, 24))).astype(np.float32)
    shard, units = make_shard(rows), units_of(centres.astype(np.float32))
    seeds, plain = seeds_of(shard, 64, 1).units_KP, shard.draw(64, 1, ALONE)
    reached, by_chance = (len(torch.unique((s.long() @ units.long().T).argmax(1))) for s in (seeds, plain))
    assert reached > 1.5 * by_chance


def test_the_spread_of_scores_is_small_in_a_narrow_cone() -> None:
    rows = clustered(2000, 32)
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    wide = seeds_of(make_shard(rows), 50, 1)
    narrow = seeds_of(make_shard(unit + 3.0 * np.ones(32, np.float32) / 32**0.5), 50, 1).spread
    assert narrow < wide.spread / 5
    assert seeds_of(make_shard(rows[:1]), 1, 1).spread == 0.0
    cosine = units_of(rows).double() @ wide.units_KP.double().T / Rotation(32).length ** 2
    expected = float((cosine.amax(1) - cosine.mean(1)).mean())
    assert wide.spread == pytest.approx(expected, rel=0.1)

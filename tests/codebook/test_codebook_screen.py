"""Screening: one rule for all kernels, rows on their own, and hardly a row that misses its nearest centroid."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from codebook_workers import clustered, run_threads
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hymirec.codebook import IdentityReducer, Reducer, ResidualCodebook, fit_codebook
from hymirec.codebook.balanced import run_pass
from hymirec.codebook.exact import mix
from hymirec.codebook.kernels import Kernel, TorchKernel, VnniKernel, screened
from hymirec.codebook.rotation import Rotation
from hymirec.codebook.screen import Rule, worthwhile
from hymirec.codebook.shard import build_shard
from hymirec.config import CodebookConfig
from hymirec.simd import has_vnni

CPU = torch.device("cpu")
KERNELS: list[Kernel] = [TorchKernel(CPU), *([VnniKernel()] if has_vnni() else [])]
WIDTH, CENTROIDS = 1024, 300
ids = pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.name)


def gaussian(rows: int, width: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((rows, width), dtype=np.float32))


def around(rows: int, width: int, clusters: int, seed: int = 0) -> Tensor:
    """Rows whose cosine with the centre of their cluster is 0.7."""
    which = np.random.default_rng(seed).integers(0, clusters, rows)
    return gaussian(clusters, width, seed + 1)[torch.from_numpy(which)] + gaussian(rows, width, seed + 2)


def coned(x: Tensor) -> Tensor:
    """The same rows in a narrow cone."""
    direction = gaussian(1, x.shape[1], 9)
    return x / x.norm(dim=1, keepdim=True) + 3 * direction / direction.norm()


def expected(x: Tensor, units: Tensor, price: Tensor, rule: Rule) -> tuple[Tensor, Tensor]:
    """The rule in 64-bit numbers."""
    first, width = rule.first, x.shape[1]
    mean = rule.mean_P.long()
    share = (units.long() @ mean * first).div(width, rounding_mode="floor") - units[:, :first].long() @ mean[:first]
    head = x[:, :first].long() @ units[:, :first].long().T + share
    head -= (price.long() * first).div(width, rounding_mode="floor")
    kept = head >= head.amax(1, keepdim=True) - rule.margin(x)[:, None]
    all_kept = kept.sum(1) > rule.limit
    scores = x.long() @ units.long().T - price
    scores[~(kept | all_kept[:, None])] = -(2**40)
    return scores.max(1)[1], all_kept.sum()


@ids
@settings(deadline=None, max_examples=40)
@given(
    rows=st.integers(0, 420),
    width=st.sampled_from([256, 288, 544, 1024, 1056]),
    centroids=st.integers(1, 400),
    bits=st.sampled_from([0, 16, 20, 29]),
    cone=st.booleans(),
    seed=st.integers(0, 99),
)
def test_every_kernel_follows_the_rule_to_the_same_bits(
    kernel: Kernel, rows: int, width: int, centroids: int, bits: int, cone: bool, seed: int
) -> None:
    both = around(rows + centroids, width, centroids // 3 + 1, seed)
    units = Rotation(width).directions(coned(both) if cone else both)
    x, units = units[:rows], units[rows:].contiguous()
    price = torch.from_numpy(np.random.default_rng(seed).integers(-(2**bits), 2**bits + 1, centroids, np.int32))
    screen = screened(kernel, kernel.table(units))
    code, took_all = kernel.nearest_screened(x, screen, price)
    wanted, all_kept = expected(x, units, price, screen.rule) if rows else (torch.empty(0), 0)
    assert torch.equal(code.long(), wanted.long())
    assert int(took_all) == int(all_kept)


@ids
def test_extremes_do_not_overflow_and_ties_go_to_the_lower_number(kernel: Kernel) -> None:
    x = torch.full((3, 1024), -127, dtype=torch.int8)
    x[1:] = 127
    units = gaussian(100, 1024).clamp(-2, 2).mul(60).to(torch.int8)
    units[[40, 60]], units[[30, 50]] = x[1], x[0]
    for price in (0, 2**29, -(2**29)):
        prices = torch.full((100,), price, dtype=torch.int32)
        code, _ = kernel.nearest_screened(x, screened(kernel, kernel.table(units)), prices)
        assert code.tolist() == [30, 40, 40]


@ids
@pytest.mark.parametrize("threads", [1, 2])
def test_a_row_has_one_answer_in_any_batch_and_for_any_number_of_threads(kernel: Kernel, threads: int) -> None:
    both = Rotation(WIDTH).directions(torch.cat([around(1700, WIDTH, 200), gaussian(300, WIDTH, 5)]))
    order = torch.from_numpy(np.random.default_rng(0).permutation(1700))
    x, units = both[order], both[: CENTROIDS + 1]
    price = torch.arange(len(units), dtype=torch.int32) * 997
    screen = screened(kernel, kernel.table(units))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        whole, took_all = kernel.nearest_screened(x, screen, price)
        parts = [kernel.nearest_screened(part, screen, price) for part in x.split([1, 12, 700, 400, 587])]
    finally:
        torch.set_num_threads(before)
    assert 0 < int(took_all) < 1000
    assert torch.equal(whole, torch.cat([code for code, _ in parts]))
    assert int(took_all) == sum(int(some) for _, some in parts)


@ids
@pytest.mark.parametrize("cone", [False, True])
def test_clustered_rows_are_spared_most_products_and_hardly_one_misses_its_centroid(kernel: Kernel, cone: bool) -> None:
    x = around(3000 + CENTROIDS, WIDTH, 100)
    units = Rotation(WIDTH).directions(coned(x) if cone else x)
    x, units = units[CENTROIDS:], units[:CENTROIDS].contiguous()
    price, table = torch.zeros(CENTROIDS, dtype=torch.int32), kernel.table(units)
    code, took_all = kernel.nearest_screened(x, screened(kernel, table), price)
    assert int(took_all) < 0.4 * len(x)
    assert int((code != kernel.nearest(x, table, price)).sum()) <= 0.003 * len(x)


@ids
def test_isotropic_rows_take_all_products(kernel: Kernel) -> None:
    units = Rotation(WIDTH).directions(gaussian(2000, WIDTH))
    price, table = torch.zeros(CENTROIDS, dtype=torch.int32), kernel.table(units[:CENTROIDS].contiguous())
    code, took_all = kernel.nearest_screened(units[CENTROIDS:], screened(kernel, table), price)
    assert int(took_all) > 0.95 * len(code)
    assert int((code != kernel.nearest(units[CENTROIDS:], table, price)).sum()) <= 0.003 * len(code)


def test_the_margin_of_a_narrow_cone_is_narrow() -> None:
    x = gaussian(600, WIDTH)
    rules = [Rule.of(Rotation(WIDTH).directions(rows)) for rows in (x, coned(x))]
    wide, narrow = (
        float(rule.margin(Rotation(WIDTH).directions(rows)).float().mean())
        for rule, rows in zip(rules, (x, coned(x)), strict=True)
    )
    assert narrow < 0.15 * wide


class Counting:
    """A kernel that counts the rows it screens."""

    def __init__(self) -> None:
        self.rows = 0

    def kernel(self) -> Kernel:
        inner, counter = KERNELS[-1], self

        class Counted(type(inner)):  # type: ignore[misc]
            def nearest_screened(self, rows_BP: Tensor, *arguments: object) -> tuple[Tensor, Tensor]:
                counter.rows += len(rows_BP)
                return super().nearest_screened(rows_BP, *arguments)

        return Counted() if isinstance(inner, VnniKernel) else Counted(CPU)


@pytest.mark.parametrize("isotropic", [False, True])
def test_a_pass_goes_on_screening_only_where_the_first_slice_is_spared_products(isotropic: bool) -> None:
    x = gaussian(2000, WIDTH) if isotropic else around(2000, WIDTH, 100)
    rotation, counter = Rotation(WIDTH), Counting()
    shard = build_shard([(x, mix(np.arange(2000, dtype=np.uint64), 0))], rotation, 20, 64, CPU)
    units, price = rotation.directions(x[:CENTROIDS]), torch.zeros(CENTROIDS, dtype=torch.float64)
    run_pass(shard, units, price, 0.1, IdentityReducer(), counter.kernel(), rotation.length)
    assert counter.rows == (len(shard.rows[0]) if isotropic else 2000)


@pytest.mark.parametrize("isotropic", [False, True])
def test_a_screened_fit_is_the_same_for_any_number_of_workers_and_kernel(isotropic: bool) -> None:
    assert worthwhile(256, WIDTH)
    numbers = np.arange(1200)
    x = gaussian(1200, WIDTH).numpy() if isotropic else clustered(1200, WIDTH, 200)

    def fit(reducer: Reducer, rank: int = 0, world: int = 1, kernel: str = "auto") -> ResidualCodebook:
        config = CodebookConfig(layers=2, centroids=256, iterations=2, kernel=kernel)
        return fit_codebook(x[rank::world], numbers[rank::world], config, 3, reducer)

    alone = fit(IdentityReducer())
    others = [fit(IdentityReducer(), kernel="float32"), *run_threads(2, lambda r: fit(r, r.rank, 2))]
    for other in others:
        assert torch.equal(other.centroids_LKD, alone.centroids_LKD)

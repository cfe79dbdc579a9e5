"""Kernels: one answer, whichever computes it; the rotation; what a wrong processor is told."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hymirec.codebook.exact import tree_sum
from hymirec.codebook.kernels import ABSENT, FLUSH_ROWS, Kernel, TorchKernel, VnniKernel, _ColumnSums, choose
from hymirec.codebook.project import project_rows
from hymirec.codebook.rotation import LARGEST, Rotation, quantised
from hymirec.errors import ModelError
from hymirec.simd import has_vnni

CPU = torch.device("cpu")
KERNELS: list[Kernel] = [TorchKernel(CPU), *([VnniKernel()] if has_vnni() else [])]


def directions(rows: int, width: int, seed: int) -> Tensor:
    values = np.random.default_rng(seed).integers(-127, 128, (rows, width))
    return torch.from_numpy(values.astype(np.int8))


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.name)
@settings(deadline=None, max_examples=40)
@given(rows=st.integers(0, 420), width=st.integers(1, 5), centroids=st.integers(1, 70), seed=st.integers(0, 99))
def test_nearest_and_lanes_are_those_of_whole_numbers(
    kernel: Kernel, rows: int, width: int, centroids: int, seed: int
) -> None:
    x, units = directions(rows, 32 * width, seed), directions(centroids, 32 * width, seed + 1)
    price = torch.from_numpy(np.random.default_rng(seed).integers(-(2**20), 2**20, centroids).astype(np.int32))
    table = kernel.table(units)
    scores = x.long() @ units.long().T
    assert torch.equal(kernel.nearest(x, table, price).long(), (scores - price).max(1)[1])
    best, code = kernel.lanes(x, table)
    assert best.shape == code.shape == (rows, 16)
    for lane in range(16):
        if lane < centroids:
            expected = scores[:, lane::16].max(1)
            assert torch.equal(best[:, lane].long(), expected[0])
            assert torch.equal(code[:, lane].long(), expected[1] * 16 + lane)
        else:
            assert bool((best[:, lane] == ABSENT).all())


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.name)
def test_ties_go_to_the_lower_number_and_extremes_do_not_overflow(kernel: Kernel) -> None:
    x = torch.full((3, 64), -127, dtype=torch.int8)
    x[1:] = 127
    units = x[[1, 0, 0, 1]].repeat(12, 1)
    zero = torch.zeros(48, dtype=torch.int32)
    assert kernel.nearest(x, kernel.table(units), zero).tolist() == [1, 0, 0]
    best, _ = kernel.lanes(x, kernel.table(units))
    assert int(best.max()) == 127 * 127 * 64


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.name)
@pytest.mark.parametrize("threads", [1, 2])
def test_sums_are_whole_for_any_number_of_threads(kernel: Kernel, threads: int) -> None:
    x, code = directions(3000, 160, 0), torch.from_numpy(np.random.default_rng(1).integers(0, 7, 3000, np.int32))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        sums = kernel.sums(7, 160)
        for part in (slice(0, 1000), slice(1000, 1000), slice(1000, 3000)):
            sums.add(x[part], code[part])
        nearest = kernel.nearest(x, kernel.table(x[:50]), torch.zeros(50, dtype=torch.int32))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(sums.totals(), torch.zeros(7, 160, dtype=torch.int64).index_add_(0, code.long(), x.long()))
    assert torch.equal(nearest.long(), (x.long() @ x[:50].long().T).max(1)[1])


def test_32_bit_sums_are_flushed_before_they_overflow(monkeypatch: pytest.MonkeyPatch) -> None:
    assert FLUSH_ROWS * LARGEST < 2**31
    monkeypatch.setattr("hymirec.codebook.kernels.FLUSH_ROWS", 10)
    sums, x = _ColumnSums(2, 32), directions(95, 32, 3)
    code = torch.arange(95, dtype=torch.int32) % 2
    sums.add(x[:33], code[:33])
    sums.add(x[33:], code[33:])
    assert torch.equal(sums.totals()[1], x[1::2].long().sum(0))


def test_int8_is_refused_where_the_processor_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hymirec.codebook.kernels.has_vnni", lambda: False)
    with pytest.raises(ModelError, match="kernel=auto"):
        choose("int8", CPU)
    assert choose("auto", CPU).name == "float32"
    assert choose("float32", CPU).name == "float32"


def test_a_width_beyond_exact_fp32_is_refused_by_the_float32_kernel() -> None:
    with pytest.raises(ModelError, match="AVX-512"):
        TorchKernel(CPU).table(torch.zeros(2, 32_000, dtype=torch.int8))


@pytest.mark.parametrize("width", [1, 50, 96, 384, 1024])
def test_a_rotation_keeps_lengths_and_angles_and_can_be_undone(width: int) -> None:
    rotation = Rotation(width)
    x = torch.randn(70, width, generator=torch.Generator().manual_seed(0))
    y = rotation.forward(x)
    assert y.shape == (70, rotation.padded)
    assert rotation.padded % 32 == 0
    assert torch.allclose(y @ y.T, x @ x.T, atol=1e-3 * width**0.5)
    assert torch.allclose(rotation.inverse(y), x, atol=1e-5)


def test_one_large_component_is_spread_over_all() -> None:
    x = torch.zeros(1, 384)
    x[0, 7] = 50.0
    y = Rotation(384).forward(x)
    assert float(y.abs().max()) < 5 * float(y.std())
    units = Rotation(384).directions(x)
    assert float(torch.cosine_similarity(units.float(), y)) > 0.9995
    assert int(Rotation(384).directions(torch.zeros(1, 384)).abs().max()) == 0


def test_a_row_is_rotated_alike_in_any_batch_and_torch_gives_the_bits_of_numba() -> None:
    rotation = Rotation(96)
    x = torch.randn(50, 96, generator=torch.Generator().manual_seed(1))
    y = rotation.forward(x)
    for start, stop in ((0, 1), (3, 20), (17, 50)):
        assert torch.equal(rotation.forward(x[start:stop]), y[start:stop])
    z = torch.nn.functional.pad(x, (0, rotation.padded - 96))
    for sign, order in zip(rotation._signs, rotation._order, strict=True):
        z = (rotation._blocks(z * torch.from_numpy(sign)) * float(rotation._factor))[:, torch.from_numpy(order)]
    assert torch.equal(z, y)
    norm = tree_sum(y.double() ** 2).sqrt()[:, None]
    by_torch = (y * (rotation.length / norm).float()).round().clamp(-127, 127).to(torch.int8)
    assert torch.equal(quantised(y, rotation.length), by_torch)


def test_what_is_left_of_a_row_is_orthogonal_and_its_centroid_leaves_nothing() -> None:
    rotation = Rotation(64)
    x = rotation.directions(torch.randn(200, 64, generator=torch.Generator().manual_seed(2)))
    code = torch.arange(200, dtype=torch.int32) % 5
    left = project_rows(x, code, x[:5], rotation.length)
    assert bool((left[:5] == 0).all())
    products = (left.long() * x[:5][code.long()].long()).sum(1)
    assert int(products.abs().max()) < 0.02 * rotation.length**2
    assert torch.equal(project_rows(x[7:8], code[7:8], x[:5], rotation.length), left[7:8])

"""Coding rows: greedy and beam search against brute force, least squares, and what the codes must not depend on."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from codebook_workers import clustered
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import Tensor

from hymirec.codebook import ResidualCodebook
from hymirec.codebook.kernels import TorchKernel, choose
from hymirec.codebook.search import Search
from hymirec.errors import NonFiniteEmbeddingError

CPU = torch.device("cpu")
MODES = [(1, False), (1, True), (2, False), (5, True), (16, True)]
FLOATS = st.floats(-100, 100, width=32).map(lambda x: 0.0 if abs(x) < 1e-3 else x)
ROWS = hnp.arrays(np.float32, st.tuples(st.integers(1, 6), st.just(5)), elements=FLOATS)


def make_codebook(layers: int, centroids: int, width: int, seed: int = 0) -> ResidualCodebook:
    return ResidualCodebook(torch.randn(layers, centroids, width, generator=torch.Generator().manual_seed(seed)))


def left_of(codebook: ResidualCodebook, x_ND: Tensor, codes_NL: Tensor, magnitudes_NL: Tensor) -> Tensor:
    """Squared length of what codes and magnitudes leave, fp64 (N,)."""
    rest = x_ND.double()
    for layer, centroids in enumerate(codebook.centroids_LKD.double()):
        rest = rest - magnitudes_NL[:, layer, None].double() * centroids[codes_NL[:, layer].long()]
    return (rest * rest).sum(1)


@pytest.mark.parametrize(("width", "centroids"), [(24, 200), (96, 500), (384, 500)])
def test_greedy_search_takes_the_nearest_centroid_and_seldom_another_almost_as_near(width: int, centroids: int) -> None:
    x, codebook = torch.from_numpy(clustered(2000, width)), make_codebook(3, centroids, width)
    codes, magnitudes = codebook.encode(x)
    residual = x.double()
    for layer, table in enumerate(codebook.centroids_LKD.double()):
        products = residual @ table.T / residual.norm(dim=1, keepdim=True)
        chosen = products.gather(1, codes[:, layer, None].long())[:, 0]
        lost = products.max(1)[0] - chosen
        assert float(lost.mean()) < 1e-5
        assert float((lost > 1e-6).double().mean()) < 0.01
        assert torch.allclose(chosen * residual.norm(dim=1), magnitudes[:, layer].double(), atol=1e-5)
        before = residual.norm(dim=1)
        residual = residual - magnitudes[:, layer, None].double() * table[codes[:, layer].long()]
        assert float((residual * table[codes[:, layer].long()]).sum(1).abs().max()) < 1e-5
        assert bool((residual.norm(dim=1) <= before).all())


@pytest.mark.parametrize(("beam", "refit"), MODES)
def test_codes_do_not_depend_on_kernel_batch_order_or_threads(beam: int, refit: bool) -> None:
    x, codebook = torch.from_numpy(clustered(3000, 48)), make_codebook(3, 100, 48)
    codes, magnitudes = codebook.encode(x, beam, refit)
    reference = Search(codebook.centroids_LKD, TorchKernel(CPU)).code(x, beam, refit)
    assert torch.equal(codes, reference[0])
    assert torch.equal(magnitudes, reference[1])
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    shuffled = codebook.encode(x[order], beam, refit)
    assert torch.equal(codes[order], shuffled[0])
    assert torch.equal(magnitudes[order], shuffled[1])
    for size in (1, 37):
        parts = [codebook.encode(part, beam, refit) for part in x[:100].split(size)]
        assert torch.equal(codes[:100], torch.cat([part[0] for part in parts]))
        assert torch.equal(magnitudes[:100], torch.cat([part[1] for part in parts]))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        again = codebook.encode(x, beam, refit)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(codes, again[0])
    assert torch.equal(magnitudes, again[1])


@settings(max_examples=60, deadline=None)
@given(ROWS, st.integers(0, 5), st.booleans())
def test_refitted_magnitudes_never_leave_more(rows: np.ndarray, seed: int, twins: bool) -> None:
    x, codebook = torch.from_numpy(rows), make_codebook(3, 4, 5, seed)
    if twins:
        # All layers share their centroids, and two of a layer are equal.
        centroids = codebook.centroids_LKD[:1].repeat(3, 1, 1)
        centroids[:, 1] = centroids[:, 0]
        codebook = ResidualCodebook(centroids)
    codes, greedy = codebook.encode(x, 1, False)
    same, refitted = codebook.encode(x, 1, True)
    assert torch.equal(codes, same)
    assert bool(torch.isfinite(refitted).all())
    square = (x.double() ** 2).sum(1)
    assert bool((left_of(codebook, x, codes, refitted) <= left_of(codebook, x, codes, greedy) + 1e-6 * square).all())


def test_refitted_magnitudes_are_those_of_least_squares() -> None:
    x, codebook = torch.from_numpy(clustered(200, 32)), make_codebook(4, 20, 32)
    codes, magnitudes = codebook.encode(x, 1, True)
    for row in range(len(x)):
        chosen = torch.stack([codebook.centroids_LKD[layer, codes[row, layer]] for layer in range(4)]).double()
        expected = torch.linalg.lstsq(chosen.T, x[row, :, None].double()).solution[:, 0]
        assert torch.allclose(magnitudes[row].double(), expected, atol=1e-4)


def test_nearly_equal_centroids_do_not_give_huge_magnitudes() -> None:
    base = torch.nn.functional.normalize(torch.randn(1, 1, 32, generator=torch.Generator().manual_seed(0)), dim=2)
    nearby = base + 1e-3 * torch.randn(3, 4, 32, generator=torch.Generator().manual_seed(1))
    x = torch.from_numpy(clustered(100, 32))
    for beam in (1, 4):
        magnitudes = ResidualCodebook(nearby).encode(x, beam, True)[1]
        assert bool((magnitudes.abs().sum(1) <= 4 * x.norm(dim=1)).all())


@pytest.mark.parametrize("refit", [False, True])
def test_a_wider_beam_leaves_less_on_average(refit: bool) -> None:
    x, codebook = torch.from_numpy(clustered(1000, 48)), make_codebook(4, 60, 48)
    left = [float(left_of(codebook, x, *codebook.encode(x, beam, refit)).mean()) for beam in (1, 2, 4, 8, 16)]
    assert left == sorted(left, reverse=True)
    assert left[-1] < 0.99 * left[0]


@pytest.mark.parametrize(("centroids", "beam", "refit"), [(6, 6, False), (4, 16, False), (4, 16, True)])
def test_a_beam_as_wide_as_a_tiny_codebook_is_exhaustive(centroids: int, beam: int, refit: bool) -> None:
    codebook = make_codebook(2, centroids, 8)
    x = torch.from_numpy(clustered(50, 8))
    found = left_of(codebook, x, *codebook.encode(x, beam, refit))
    best = torch.full((len(x),), torch.inf, dtype=torch.float64)
    for pair in itertools.product(range(centroids), repeat=2):
        chosen = torch.stack([codebook.centroids_LKD[layer, code].double() for layer, code in enumerate(pair)])
        if refit:
            magnitudes = torch.linalg.lstsq(chosen.T, x.double().T).solution.T
            left = x.double() - magnitudes @ chosen
        else:
            left = x.double()
            for centroid in chosen:
                left = left - (left @ centroid)[:, None] * centroid
        best = torch.minimum(best, (left * left).sum(1))
    assert torch.allclose(found, best, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("beam", "refit"), MODES)
def test_zero_rows_and_rows_used_up_have_zeros(beam: int, refit: bool) -> None:
    codebook = make_codebook(3, 16, 5)
    x = torch.stack([torch.zeros(5), 3 * codebook.centroids_LKD[0, 7]])
    codes, magnitudes = codebook.encode(x, beam, refit)
    assert codes.tolist() == [[0, 0, 0], [7, 0, 0]]
    assert magnitudes[0].tolist() == [0.0, 0.0, 0.0]
    assert magnitudes[1].tolist() == pytest.approx([3.0, 0.0, 0.0], abs=1e-5)


@pytest.mark.parametrize(("beam", "refit"), MODES)
def test_equal_centroids_are_a_tie_that_the_lower_code_wins(beam: int, refit: bool) -> None:
    centroid = torch.tensor([[0.0, 1.0], [1.0, 0.0], [1.0, 0.0]]).repeat(2, 12, 1)
    assert ResidualCodebook(centroid).encode(torch.tensor([[2.0, 0.0]]), beam, refit)[0].tolist() == [[1, 0]]


@pytest.mark.parametrize("scale", [1e-42, 1e-30, 1e30, 1e38])
def test_rows_of_any_length_are_coded_like_unit_rows(scale: float) -> None:
    codebook = make_codebook(3, 40, 16)
    x = torch.nn.functional.normalize(torch.from_numpy(clustered(50, 16)), dim=1)
    power = 2.0 ** round(np.log2(scale))
    codes, magnitudes = codebook.encode(x)
    scaled_codes, scaled = codebook.encode((x.double() * power).float())
    if scale >= 1e-30:
        assert torch.equal(codes, scaled_codes)
        assert torch.equal((magnitudes.double() * power).float(), scaled)
    assert bool(torch.isfinite(scaled).all())


def test_the_codebook_says_how_it_is_coded_and_calls_may_differ() -> None:
    x, plain = torch.from_numpy(clustered(300, 24)), make_codebook(3, 30, 24)
    told = ResidualCodebook(plain.centroids_LKD, {"beam": 4, "refit": True})
    for ours, theirs in ((told.encode(x), plain.encode(x, 4, True)), (told.encode(x, 1, False), plain.encode(x))):
        assert torch.equal(ours[0], theirs[0])
        assert torch.equal(ours[1], theirs[1])
    codes = plain.encode(x)[0]
    with torch.no_grad():
        told.centroids_LKD.copy_(told.centroids_LKD.flip(1))
    assert torch.equal(told.encode(x, 1, False)[0], 29 - codes)


def test_wrong_input_is_refused() -> None:
    codebook = make_codebook(2, 10, 6)
    x = torch.ones(9000, 6)
    x[8765, 3] = -torch.inf
    with pytest.raises(NonFiniteEmbeddingError, match="row 8765 "):
        codebook.encode(x, 2)
    with pytest.raises(ValueError, match=r"beam of 1\.\.16"):
        codebook.encode(x[:1], 17)
    with pytest.raises(NonFiniteEmbeddingError, match="row 8775 "):
        Search(codebook.centroids_LKD, choose("auto", CPU)).code(x, first=10)

"""Decoding: the plain formula bit for bit, for any batch and threads, from packed rows and from 8-bit tables."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hymirec.codebook import ResidualCodebook
from hymirec.codebook.decode import Int8Tables, _decode_torch, decode, decode_items, decode_padded
from hymirec.codebook.magnitudes import fit_magnitudes
from hymirec.codebook.table import ItemCodes
from hymirec.recommender.light import decode_events


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def draw(rows: int, layers: int, centroids: int, width: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randint(0, centroids, (rows, layers), generator=generator),
        torch.randn(rows, layers, generator=generator),
        torch.randn(layers, centroids, width, generator=generator),
    )


def plain(codes: Tensor, magnitudes: Tensor, tables: Tensor) -> Tensor:
    result = magnitudes[:, 0, None] * tables[0][codes[:, 0]]
    for layer in range(1, len(tables)):
        result = result + magnitudes[:, layer, None] * tables[layer][codes[:, layer]]
    return result


@given(st.integers(0, 30), st.integers(1, 16), st.integers(1, 9), st.integers(1, 70), st.integers(0, 2**31))
@settings(max_examples=60, deadline=None)
def test_decoding_is_the_plain_formula(rows: int, layers: int, centroids: int, width: int, seed: int) -> None:
    codes, magnitudes, tables = draw(rows, layers, centroids, width, seed)
    expected = plain(codes, magnitudes, tables)
    for kind in (torch.uint16, torch.int32, torch.int64):
        assert torch.equal(decode(codes.to(kind), magnitudes, tables), expected)
    other = _decode_torch(codes, magnitudes, tables, torch.empty(rows, width))
    assert torch.allclose(other, expected, atol=1e-5)


def test_decoding_is_what_the_codebook_says() -> None:
    codes, magnitudes, tables = draw(50, 3, 8, 20)
    codebook = ResidualCodebook(tables)
    found = decode(codes, magnitudes, codebook.centroids_LKD)
    assert torch.equal(found, codebook.decode(codes, magnitudes))


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("eight", [False, True])
def test_a_row_does_not_depend_on_its_batch_or_on_threads(threads: int, eight: bool) -> None:
    codes, magnitudes, drawn = draw(700, 4, 30, 512)
    tables = Int8Tables.of(drawn) if eight else drawn
    torch.set_num_threads(1)
    alone = torch.cat([decode(codes[i : i + 1], magnitudes[i : i + 1], tables) for i in range(0, 700, 50)])
    torch.set_num_threads(threads)
    assert torch.equal(decode(codes, magnitudes, tables)[::50], alone)


def test_decoding_is_linear_in_the_magnitudes() -> None:
    codes, magnitudes, tables = draw(40, 3, 8, 33)
    other = torch.randn(40, 3)
    for table in (tables, Int8Tables.of(tables)):
        both = decode(codes, magnitudes + 2 * other, table)
        assert torch.allclose(both, decode(codes, magnitudes, table) + 2 * decode(codes, other, table), atol=1e-4)
        assert not decode(codes, torch.zeros(40, 3), table).any()


def test_8_bits_are_off_by_no_more_than_half_a_step_a_layer() -> None:
    codes, magnitudes, tables = draw(200, 3, 16, 64)
    tables[1, 3] = 0
    small = Int8Tables.of(tables)
    steps = torch.stack([small.scale_LK[layer][codes[:, layer]] for layer in range(3)], dim=1)
    bound = (magnitudes.abs() * steps / 2).sum(1, keepdim=True)
    exact, rounded = plain(codes, magnitudes, tables), decode(codes, magnitudes, small)
    assert bool(((exact - rounded).abs() <= bound * 1.001 + 1e-6).all())
    assert float(torch.cosine_similarity(exact, rounded).mean()) > 0.9999
    other = _decode_torch(codes, magnitudes, small, torch.empty(200, 64))
    assert torch.allclose(other, rounded, atol=1e-5)
    with pytest.raises(ValueError, match="finite"):
        Int8Tables.of(tables / 0)


@pytest.mark.parametrize("kind", ["lloyd4", "float16", "float32"])
@pytest.mark.parametrize("threads", [1, 2])
def test_packed_rows_decode_as_their_codes_do(kind: str, threads: int) -> None:
    torch.set_num_threads(threads)
    codes, magnitudes, tables = draw(500, 3, 20, 256)
    codec = fit_magnitudes(kind, magnitudes.numpy())
    items = ItemCodes.of(codes.numpy(), magnitudes.numpy(), 20, codec)
    index = np.random.default_rng(0).integers(0, 500, 3000)
    out = torch.full((3000, 256), torch.nan)
    found = decode_items(items, index, tables, out)
    assert found.data_ptr() == out.data_ptr()
    assert torch.equal(found, plain(codes[index], torch.from_numpy(items.magnitudes_NL[index]), tables))
    # Histories of 7, 0 and 5 events, end to end or padded.
    mask = np.zeros((3, 7), bool)
    for row, length in enumerate((7, 0, 5)):
        mask[row, :length] = True
    padded = np.zeros((3, 7), np.int64)
    padded[mask] = index[:12]
    events = decode_padded(items, padded, mask, tables)
    assert torch.equal(events[torch.from_numpy(mask)], found[:12])
    assert not events[torch.from_numpy(~mask)].any()


def test_the_light_tower_decodes_the_same_with_and_without_gradients() -> None:
    codes, magnitudes, tables = draw(60, 3, 9, 32)
    shape = (4, 15, 3)
    learned = tables.clone().requires_grad_()
    with_gradient = decode_events(codes.view(shape), magnitudes.view(shape), learned)
    assert with_gradient.requires_grad
    with torch.no_grad():
        without = decode_events(codes.view(shape), magnitudes.view(shape), learned)
    assert torch.allclose(without, with_gradient, atol=1e-5)
    assert decode_events(codes.view(shape)[:, :0], magnitudes.view(shape)[:, :0], tables).shape == (4, 0, 32)


def test_what_does_not_fit_is_refused() -> None:
    codes, magnitudes, tables = draw(5, 3, 8, 16)
    items = ItemCodes.of(codes.numpy(), magnitudes.numpy(), 8, fit_magnitudes("float32", magnitudes.numpy()))
    for wrong, match in (
        ((codes + 5, magnitudes, tables), r"codes 0\.\.7"),
        ((codes[:, :2], magnitudes[:, :2], tables), "shape"),
        ((codes.float(), magnitudes, tables), "whole codes"),
        ((codes, magnitudes.double(), tables), "fp32 magnitudes"),
        ((codes, magnitudes, tables.half()), "fp32 tables"),
        ((codes, magnitudes, tables, torch.empty(4, 16)), "out"),
        ((codes, magnitudes, tables, torch.empty(16, 5).T), "contiguous"),
    ):
        with pytest.raises(ValueError, match=match):
            decode(*wrong)
    with pytest.raises(IndexError):
        decode_items(items, np.array([5]), tables)
    with pytest.raises(ValueError, match="3 x 8"):
        decode_items(items, np.array([1]), tables[:2])

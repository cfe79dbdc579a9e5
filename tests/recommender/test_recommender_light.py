"""Projected decoding against decoding and then projecting; empty, padded and permuted histories."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hymirec.recommender.light import LightTower, decode_events


def tower(queries: int = 3) -> LightTower:
    torch.manual_seed(0)
    return LightTower(content_width=10, hidden=8, layers=2, heads=2, queries=queries, dropout=0.1).eval()


def history(events: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    codes = torch.randint(0, 5, (2, events, 3), generator=generator)
    magnitudes = torch.rand(2, events, 3, generator=generator)
    age = torch.randint(0, 70, (2, events), generator=generator)
    return codes, magnitudes, age, torch.ones(2, events, dtype=torch.bool)


@settings(deadline=None, max_examples=15)
@given(st.integers(1, 3), st.integers(1, 9), st.integers(1, 4))
def test_projecting_the_codebook_equals_projecting_the_events(batch: int, events: int, layers: int) -> None:
    torch.manual_seed(batch * 100 + events * 10 + layers)
    centroids, weight = torch.randn(layers, 6, 11), torch.randn(4, 11)
    codes, magnitudes = torch.randint(0, 6, (batch, events, layers)), torch.randn(batch, events, layers)
    decoded = (magnitudes[..., None] * centroids[torch.arange(layers), codes]).sum(dim=2)
    found = decode_events(codes, magnitudes, centroids @ weight.T)
    torch.testing.assert_close(found, decoded @ weight.T, rtol=1e-4, atol=1e-4)


def test_an_attached_projection_equals_the_codebook() -> None:
    light, centroids = tower(), torch.randn(3, 5, 10)
    full = light(*history(7), centroids, False)
    torch.testing.assert_close(light(*history(7), light.project(centroids), True), full)


def test_a_table_longer_than_the_history_is_read_the_same_and_trains_the_same() -> None:
    light, rows = tower(), torch.randn(1, 400, 10)
    _, _, age, mask = history(7)
    codes, ones = torch.randint(0, 400, (2, 7, 1)), torch.ones(2, 7, 1)
    grads = []
    for table, projected in ((rows, False), (light.project(rows), True)):
        light.zero_grad()
        light(codes, ones, age, mask, table, projected).square().sum().backward()
        assert light.input_HD.grad is not None
        grads.append(light.input_HD.grad.clone())
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-4, atol=1e-5)
    assert float(grads[0].abs().max()) > 0


def test_an_empty_history_is_defined_and_equal_to_a_masked_one() -> None:
    light, centroids = tower(), torch.randn(3, 5, 10)
    codes, magnitudes, age, mask = history(7)
    empty = light(codes[:, :0], magnitudes[:, :0], age[:, :0], mask[:, :0], centroids, False)
    masked = light(codes, magnitudes, age, torch.zeros_like(mask), centroids, False)
    assert torch.isfinite(empty).all()
    torch.testing.assert_close(empty, masked)


def test_padding_may_stand_anywhere() -> None:
    light, centroids = tower(), torch.randn(3, 5, 10)
    codes, magnitudes, age, mask = history(7)
    mask[:, [0, 4]] = False
    kept = mask[0].nonzero().squeeze(1)
    short = light(codes[:, kept], magnitudes[:, kept], age[:, kept], mask[:, kept], centroids, False)
    torch.testing.assert_close(light(codes, magnitudes, age, mask, centroids, False), short, rtol=0, atol=1e-5)


def test_age_changes_what_is_read() -> None:
    light, centroids = tower(), torch.randn(3, 5, 10)
    codes, magnitudes, age, mask = history(7)
    assert not torch.allclose(
        light(codes, magnitudes, age, mask, centroids, False), light(codes, magnitudes, age + 1, mask, centroids, False)
    )


def test_gradients_reach_the_projection_of_the_codebook() -> None:
    light = tower()
    light(*history(4), torch.randn(3, 5, 10), False).square().sum().backward()
    assert light.input_HD.grad is not None
    assert light.input_HD.grad.abs().sum() > 0

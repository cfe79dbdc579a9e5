"""Projection, encoding and decoding: the identities of the method, and files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from codebook_workers import clustered
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from hymirec.codebook import ResidualCodebook, project_out
from hymirec.errors import (
    ArtifactDamagedError,
    ArtifactMissingError,
    NonFiniteEmbeddingError,
    ZeroCentroidError,
)

FLOATS = st.floats(-100, 100, width=32).map(lambda x: 0.0 if abs(x) < 1e-3 else x)
ROWS = hnp.arrays(np.float32, st.tuples(st.integers(1, 6), st.just(5)), elements=FLOATS)


def make_codebook(layers: int = 3, centroids: int = 16, width: int = 5, seed: int = 0) -> ResidualCodebook:
    return ResidualCodebook(torch.randn(layers, centroids, width, generator=torch.Generator().manual_seed(seed)))


@settings(max_examples=80, deadline=None)
@given(ROWS)
def test_a_residual_is_orthogonal_to_its_centroid_and_never_longer(rows: np.ndarray) -> None:
    x = torch.from_numpy(rows)
    centroid = 7.5 * make_codebook(1, 6).centroids_LKD[0, : len(x)]
    left, magnitude = project_out(x, centroid)
    length = x.norm(dim=1)
    assert torch.all((left * centroid).sum(1).abs() <= 1e-5 * (length * 7.5 + 1))
    assert torch.all(left.norm(dim=1) <= length * (1 + 1e-6))
    assert torch.allclose(left.norm(dim=1) ** 2 + magnitude**2, length**2, rtol=1e-5, atol=1e-6)


@settings(max_examples=80, deadline=None)
@given(ROWS)
def test_squared_magnitudes_and_what_is_left_add_up_to_the_squared_norm(rows: np.ndarray) -> None:
    x, codebook = torch.from_numpy(rows), make_codebook()
    codes, magnitudes = codebook.encode(x)
    left = x - codebook.decode(codes, magnitudes)
    total = (magnitudes.double() ** 2).sum(1) + (left.double() ** 2).sum(1)
    assert torch.allclose(total, (x.double() ** 2).sum(1), rtol=1e-4, atol=1e-5)


def test_centroids_too_near_for_rounded_directions_are_told_apart() -> None:
    base = torch.randn(64, generator=torch.Generator().manual_seed(1))
    nearby = base + 1e-4 * torch.randn(3, 64, generator=torch.Generator().manual_seed(2))
    codebook = ResidualCodebook(nearby[None])
    assert codebook.encode(nearby)[0][:, 0].tolist() == [0, 1, 2]


def test_equal_centroids_are_a_tie_that_the_lower_code_wins() -> None:
    codebook = ResidualCodebook(torch.tensor([[[0.0, 1.0], [1.0, 0.0], [1.0, 0.0]]]))
    assert codebook.encode(torch.tensor([[2.0, 0.0]]))[0].tolist() == [[1]]


def test_a_row_is_coded_alike_alone_and_among_others() -> None:
    x, codebook = torch.from_numpy(clustered(700, 24)), make_codebook(3, 50, 24)
    codes, magnitudes = codebook.encode(x)
    for size in (1, 33, 256):
        parts = [codebook.encode(part) for part in x.split(size)]
        assert torch.equal(codes, torch.cat([part[0] for part in parts]))
        assert torch.equal(magnitudes, torch.cat([part[1] for part in parts]))


def test_decoding_is_linear_in_the_magnitudes_and_takes_stored_types() -> None:
    codebook = make_codebook()
    codes = torch.randint(0, 16, (7, 3), generator=torch.Generator().manual_seed(0))
    a, b = torch.randn(2, 7, 3, generator=torch.Generator().manual_seed(1)).unbind(0)
    mixed = codebook.decode(codes, 2.0 * a - 3.0 * b)
    assert torch.allclose(mixed, 2.0 * codebook.decode(codes, a) - 3.0 * codebook.decode(codes, b), atol=1e-5)
    stored = codebook.decode(codes.numpy().astype(np.uint16), a.numpy().astype(np.float16))
    assert torch.allclose(stored, codebook.decode(codes, a), atol=1e-2)


def test_projecting_the_codebook_is_projecting_what_it_decodes_to() -> None:
    codebook = make_codebook()
    weight = torch.randn(4, 5, generator=torch.Generator().manual_seed(3), requires_grad=True)
    codes, magnitudes = codebook.encode(torch.from_numpy(clustered(9, 5)))
    table = codebook.project(weight)
    read = sum(magnitudes[:, layer, None] * table[layer][codes[:, layer].long()] for layer in range(3))
    assert isinstance(read, torch.Tensor)
    assert torch.allclose(read, codebook.decode(codes, magnitudes) @ weight.T, atol=1e-5)
    read.sum().backward()
    assert weight.grad is not None


def test_nothing_is_coded_as_zeros() -> None:
    codebook = make_codebook()
    codes, magnitudes = codebook.encode(torch.zeros(2, 5))
    assert codes.tolist() == [[0, 0, 0]] * 2
    assert magnitudes.tolist() == [[0.0, 0.0, 0.0]] * 2
    # A row that is a centroid leaves nothing to later layers.
    codes, magnitudes = codebook.encode(3 * codebook.centroids_LKD[0, 7][None])
    assert codes.tolist() == [[7, 0, 0]]
    assert magnitudes[0].tolist() == pytest.approx([3.0, 0.0, 0.0], abs=1e-5)
    assert tuple(codebook.encode(torch.empty(0, 5))[0].shape) == (0, 3)


def test_a_row_that_is_not_finite_is_named() -> None:
    x = torch.ones(5000, 5)
    x[4321, 2] = torch.nan
    with pytest.raises(NonFiniteEmbeddingError, match="row 4321 "):
        make_codebook().encode(x)


def test_centroids_without_direction_are_refused() -> None:
    centroids = torch.ones(2, 4, 3)
    centroids[1, 2] = 0
    with pytest.raises(ZeroCentroidError, match="centroid 2 of layer 1 "):
        ResidualCodebook(centroids)
    with pytest.raises(ZeroCentroidError, match="row 1 "):
        project_out(torch.ones(2, 3), torch.tensor([[1.0, 0, 0], [0, 0, 0]]))


def test_wrong_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="layers, centroids, width"):
        ResidualCodebook(torch.ones(4, 3))
    with pytest.raises(ValueError, match=r"\(N, 5\)"):
        make_codebook().encode(torch.ones(2, 4))
    with pytest.raises(ValueError, match=r"\(N, 3\)"):
        make_codebook().decode(torch.zeros(2, 2, dtype=torch.int64), torch.zeros(2, 2))


def test_a_saved_codebook_comes_back_bit_for_bit(tmp_path: Path) -> None:
    codebook = ResidualCodebook(make_codebook().centroids_LKD, {"balance": "prices"})
    codebook.save_pretrained(tmp_path / "a")
    loaded = ResidualCodebook.from_pretrained(tmp_path / "a")
    loaded.save_pretrained(tmp_path / "b")
    assert torch.equal(loaded.centroids_LKD, codebook.centroids_LKD)
    assert (loaded.layers, loaded.centroids, loaded.width) == (3, 16, 5)
    assert loaded.info == {"balance": "prices"}
    for name in ("config.json", "codebook.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_missing_and_damaged_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactMissingError, match=r"config\.json"):
        ResidualCodebook.from_pretrained(tmp_path)
    make_codebook().save_pretrained(tmp_path)
    weights = (tmp_path / "codebook.safetensors").read_bytes()
    (tmp_path / "codebook.safetensors").write_bytes(weights[:100])
    with pytest.raises(ArtifactDamagedError, match=r"codebook\.safetensors"):
        ResidualCodebook.from_pretrained(tmp_path)
    (tmp_path / "codebook.safetensors").unlink()
    with pytest.raises(ArtifactMissingError, match=r"codebook\.safetensors"):
        ResidualCodebook.from_pretrained(tmp_path)
    (tmp_path / "codebook.safetensors").write_bytes(weights)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"centroids": 99}))
    with pytest.raises(ArtifactDamagedError, match="99"):
        ResidualCodebook.from_pretrained(tmp_path)

"""The state of a fit on disk, and usage by hand."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from hymirec.codebook import FitState, Usage
from hymirec.errors import ArtifactDamagedError, ArtifactMissingError


def make_state() -> FitState:
    units = torch.arange(12, dtype=torch.int8).view(3, 4)
    price = torch.tensor([0.1, -0.2, 0.1], dtype=torch.float64)
    usage, centroids = (Usage(1.5, 0.2, 2.5, 0),), torch.rand(1, 3, 4)
    return FitState("owner", 1, 2, 0.1 + 0.2, units[None], centroids, units + 1, price, usage)


def test_a_state_comes_back_whole(tmp_path: Path) -> None:
    state = make_state()
    state.save(tmp_path)
    loaded = FitState.load(tmp_path)
    for name in ("owner", "layer", "iteration", "step", "usage"):
        assert getattr(loaded, name) == getattr(state, name)
    for name in ("finished_LKP", "centroids_LKD", "units_KP", "price_K"):
        assert torch.equal(getattr(loaded, name), getattr(state, name))


def test_half_a_state_is_not_believed(tmp_path: Path) -> None:
    with pytest.raises(ArtifactMissingError):
        FitState.load(tmp_path)
    make_state().save(tmp_path)
    tensors = tmp_path / "fit.safetensors"
    whole = tensors.read_bytes()
    tensors.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(ArtifactDamagedError, match="damaged"):
        FitState.load(tmp_path)
    tensors.unlink()
    with pytest.raises(ArtifactDamagedError, match="no state"):
        FitState.load(tmp_path)
    tensors.write_bytes(whole)
    (tmp_path / "fit.json").write_text('{"layer": 1')
    with pytest.raises(ArtifactDamagedError, match="JSON"):
        FitState.load(tmp_path)


def test_usage_is_what_one_counts_by_hand() -> None:
    usage = Usage.of(torch.tensor([4, 0, 2, 2]))
    assert usage.max_over_mean == 2.0
    assert usage.cv == pytest.approx(math.sqrt((4 + 4) / 4) / 2, abs=1e-6)
    assert usage.perplexity == pytest.approx(math.exp(0.5 * math.log(2) + 0.5 * math.log(4)), abs=1e-3)
    assert usage.dead == 1
    even = Usage.of(torch.full((8,), 5))
    assert (even.max_over_mean, even.cv, even.perplexity, even.dead) == (1.0, 0.0, 8.0, 0)
    assert Usage.of(torch.zeros(3, dtype=torch.int64)) == Usage(0.0, 0.0, 1.0, 3)

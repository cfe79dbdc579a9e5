"""The hybrid model: save and load, what it needs attached, independence of padding and batch, what training moves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from toy_run import LAYERS, WIDTH, toy_config

from hymirec.codebook import ItemCodes, ResidualCodebook
from hymirec.codebook.magnitudes import magnitude_codec
from hymirec.errors import ArtifactMissingError, ConfigError, ModelError
from hymirec.recommender.extend import extend_recommender
from hymirec.recommender.hybrid import SERVING_FILE, HybridConfig, HybridModel
from hymirec.recommender.llm import empty_llm, llm_architecture

N = 30


def codes() -> ItemCodes:
    rng = np.random.default_rng(0)
    drawn = rng.integers(0, 8, (N, LAYERS)), rng.random((N, LAYERS))
    return ItemCodes.of(*drawn, 8, magnitude_codec("float16"))


def fresh(*assignments: str) -> HybridModel:
    torch.manual_seed(0)
    settings = toy_config(*assignments).recommender
    config = HybridConfig(
        items=N,
        content_width=WIDTH,
        recommender=settings.model_dump(mode="json"),
        llm=llm_architecture(settings.llm),
    )
    model = HybridModel(config)
    model.reset_parameters()
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    model.attach_content(torch.randn(N, WIDTH))
    model.attach_codes(codes(), torch.randn(LAYERS, 8, WIDTH))
    return model.eval()


def request(batch: int, recent: int, long: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(2)
    return {
        "long_items": torch.randint(0, N, (batch, long), generator=generator),
        "long_ts": torch.randint(0, 1_000, (batch, long), generator=generator).sort(dim=1).values,
        "items": torch.randint(0, N, (batch, recent), generator=generator),
        "ts": 1_000 + torch.randint(0, 1_000, (batch, recent), generator=generator).sort(dim=1).values,
    }


def answer(model: HybridModel, r: dict[str, Tensor], now: int = 3_000) -> Tensor:
    full = {name: torch.ones_like(r[name], dtype=torch.bool) for name in ("items", "long_items")}
    mask = r.get("mask", full["items"])
    long_mask = r.get("long_mask", full["long_items"])
    at = torch.full((len(r["items"]),), now)
    with torch.no_grad():
        coarse = model.coarse(r["long_items"], r["long_ts"], long_mask, torch.full_like(at, 1_000))
        return model.interests(coarse, r["items"], r["ts"], mask, at)


@pytest.mark.parametrize(
    "change",
    [(), ("recommender.light.enabled=false",), ("recommender.item.text=false",), ("recommender.dmil.interests=1",)],
)
def test_what_is_saved_is_loaded_bit_for_bit_and_serves_without_content(
    tmp_path: Path, change: tuple[str, ...]
) -> None:
    model = fresh(*change)
    model.save_pretrained(tmp_path)
    model.save_serving(tmp_path)
    loaded = HybridModel.open(tmp_path, codes())
    for (name, a), (other, b) in zip(model.named_parameters(), loaded.named_parameters(), strict=True):
        assert name == other
        assert torch.equal(a, b), name
    assert not len(loaded.items.content_ND)
    assert torch.equal(loaded.item_vectors(), model.item_vectors())
    r = request(4, 5, 9)
    torch.testing.assert_close(answer(loaded, r), answer(model, r), rtol=0, atol=1e-6)


def test_saving_twice_gives_equal_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        model = fresh()
        model.save_pretrained(tmp_path / name)
        model.save_serving(tmp_path / name)
    for file in ("config.json", "model.safetensors", SERVING_FILE):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_an_interest_is_as_long_as_its_gate_is_open_and_the_first_is_the_state_of_the_last_item() -> None:
    model, r = fresh("recommender.dmil.interests=3"), request(4, 5, 9)
    found = answer(model, r)
    assert found.shape == (4, 3, 16)
    torch.testing.assert_close(found[:, 0].norm(dim=1), torch.ones(4))
    assert (found[:, 1:].norm(dim=2) < 1).all()
    with torch.no_grad():
        model.gate.bias.fill_(-20)
    closed = answer(model, r)
    torch.testing.assert_close(closed[:, 0], found[:, 0])
    assert closed[:, 1:].norm(dim=2).max() < 1e-6
    with torch.no_grad():
        model.gate.bias.fill_(20)
        for parameter in model.heads.parameters():
            parameter.zero_()
        model.recency.weight_SK.copy_(model.recency.weight_SK[:1].expand(3, -1))
    same = answer(model, r)
    torch.testing.assert_close(same[:, 0], found[:, 0], rtol=0, atol=1e-6)
    torch.testing.assert_close(same[:, 1], same[:, 0])


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_side_and_amount_of_padding_do_not_matter(side: str) -> None:
    model, r = fresh(), request(3, 4, 6)
    expected = answer(model, r)
    pad = {"left": (3, 0), "right": (0, 3)}[side]
    padded = {name: torch.nn.functional.pad(value, pad) for name, value in r.items()}
    for name in ("items", "long_items"):
        mask = torch.nn.functional.pad(torch.ones_like(r[name]), pad).bool()
        padded["mask" if name == "items" else "long_mask"] = mask
    torch.testing.assert_close(answer(model, padded), expected, rtol=0, atol=1e-5)


def test_a_user_gets_the_same_alone_and_in_a_batch() -> None:
    model, r = fresh(), request(5, 4, 6)
    expected = answer(model, r)
    for row in range(5):
        alone = answer(model, {name: value[row : row + 1] for name, value in r.items()})
        torch.testing.assert_close(alone[0], expected[row], rtol=0, atol=1e-5)


def test_an_empty_history_is_answered() -> None:
    assert torch.isfinite(answer(fresh(), request(2, 0, 0))).all()
    assert torch.isfinite(answer(fresh("recommender.light.enabled=false"), request(2, 0, 0))).all()


def test_the_time_of_the_request_matters_unless_time_is_off() -> None:
    r = request(3, 4, 6)
    assert not torch.allclose(answer(fresh(), r, 3_000), answer(fresh(), r, 3_000_000))
    off = fresh("recommender.llm.time=false")
    torch.testing.assert_close(answer(off, r, 3_000), answer(off, r, 3_000_000))


def test_coarse_interests_do_not_change_between_requests_with_one_boundary() -> None:
    model, r = fresh(), request(2, 4, 6)
    mask = torch.ones(2, 6, dtype=torch.bool)
    with torch.no_grad():
        coarse = model.coarse(r["long_items"], r["long_ts"], mask, torch.tensor([1_000, 1_000]))
        later = model.coarse(r["long_items"], r["long_ts"], mask, torch.tensor([1_000, 9_000_000]))
    torch.testing.assert_close(coarse[0], later[0])
    assert not torch.allclose(coarse[1], later[1])


def test_the_long_history_is_read() -> None:
    model, r = fresh(), request(3, 4, 6)
    other = r | {"long_items": (r["long_items"] + 1) % N}
    assert not torch.allclose(answer(model, r), answer(model, other))


def test_missing_or_foreign_tables_are_refused(tmp_path: Path) -> None:
    model = fresh()
    with pytest.raises(ModelError, match="item vectors of shape"):
        model.attach_item_vectors(torch.randn(N + 1, 16))
    with pytest.raises(ModelError, match="expected content embeddings"):
        model.attach_content(torch.randn(N, WIDTH + 1))
    with pytest.raises(ModelError, match="codes of 30 items, got 29"):
        model.attach_codes(codes().take(np.arange(1, N)), torch.randn(LAYERS, 8, WIDTH))
    with pytest.raises(ArtifactMissingError, match=r"config\.json"):
        HybridModel.open(tmp_path, codes())


def test_a_model_without_texts_takes_no_new_items(tmp_path: Path) -> None:
    model = fresh("recommender.item.text=false")
    model.save_pretrained(tmp_path)
    model.save_serving(tmp_path)
    directions = torch.nn.functional.normalize(torch.randn(LAYERS, 8, WIDTH), dim=2)
    new = codes().take(np.arange(2))
    with pytest.raises(ModelError, match="text=false"):
        extend_recommender(
            tmp_path, tmp_path / "new", ResidualCodebook(directions), codes(), new, np.ones((2, WIDTH), np.float32)
        )


def test_an_unknown_model_type_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match="no model type"):
        empty_llm({"model_type": "no_such_model"}, gradient_checkpointing=False)


def test_a_frozen_llm_keeps_its_weights_out_of_training() -> None:
    model = fresh("recommender.llm.freeze=true")
    assert not any(p.requires_grad for p in model.llm.parameters())
    assert model.item_in.weight.requires_grad

"""The content encoder: padding, gradients, round trips, center."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn.functional import pad
from transformers import BertConfig, BertModel

from hymirec.config import EncoderConfig
from hymirec.encoder import ContentEncoder, ContentEncoderConfig
from hymirec.encoder.tokenizer import train_tokenizer

TEXTS = ["Title: red lantern", "Title: blue mug with a handle", "", "Title: cream sign"]
TINY = EncoderConfig(hidden_size=32, layers=2, heads=4, vocab_size=300, max_tokens=16)


@pytest.fixture
def causal() -> ContentEncoder:
    return ContentEncoder.build(TINY, TEXTS, seed=5)


@pytest.fixture
def bidirectional() -> ContentEncoder:
    tokenizer = train_tokenizer(TEXTS, 300, TINY.special_token)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=32,
        hidden_dropout_prob=0.0,
    )
    encoder = ContentEncoder(ContentEncoderConfig(BertModel(config).config.to_dict(), TINY.special_token, 16)).eval()
    encoder.tokenizer = tokenizer
    return encoder


@pytest.mark.parametrize("kind", ["causal", "bidirectional"])
def test_padding_may_stand_on_either_side(kind: str, request: pytest.FixtureRequest) -> None:
    encoder: ContentEncoder = request.getfixturevalue(kind)
    expected = torch.cat([encoder.encode([text]) for text in TEXTS])
    right = encoder.tokenize(TEXTS)
    left = {name: torch.zeros_like(value) for name, value in right.items()}
    for row, length in enumerate(right["attention_mask"].sum(dim=1).tolist()):
        for name, value in right.items():
            left[name][row, -length:] = value[row, :length]
    more = {name: pad(value, (0, 5)) for name, value in right.items()}
    for batch in (right, left, more):
        torch.testing.assert_close(encoder(**batch), expected, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("kind", ["causal", "bidirectional"])
def test_every_weight_has_a_gradient_down_to_the_token_embeddings(kind: str, request: pytest.FixtureRequest) -> None:
    encoder: ContentEncoder = request.getfixturevalue(kind)
    encoder.encode(TEXTS).square().sum().backward()
    without = [name for name, p in encoder.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert without == []
    assert float(encoder.backbone.get_input_embeddings().weight.grad.abs().sum()) > 0


@pytest.mark.parametrize("kind", ["causal", "bidirectional"])
def test_what_was_saved_is_read_back_bit_by_bit(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    encoder: ContentEncoder = request.getfixturevalue(kind)
    encoder.centered(TEXTS, batch=2)
    encoder.save_pretrained(tmp_path / "a")
    again = ContentEncoder.from_pretrained(tmp_path / "a")
    assert torch.equal(again.encode(TEXTS), encoder.encode(TEXTS))
    assert again.width == 32
    again.save_pretrained(tmp_path / "b")
    files = {path.name for path in (tmp_path / "a").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= files
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in files)
    assert str(tmp_path) not in (tmp_path / "b" / "config.json").read_text()


def test_equal_seeds_give_equal_weights_and_leave_the_callers_random_numbers_alone() -> None:
    torch.manual_seed(1)
    a = ContentEncoder.build(TINY, TEXTS, seed=5)
    drawn = torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(1), drawn)
    b = ContentEncoder.build(TINY, TEXTS, seed=5)
    c = ContentEncoder.build(TINY, TEXTS, seed=6)
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))
    assert not torch.equal(a.encode(TEXTS), c.encode(TEXTS))


def test_centered_embeddings_of_the_catalogue_have_mean_zero(causal: ContentEncoder) -> None:
    before = causal.encode(TEXTS).detach()
    after = causal.centered(TEXTS, batch=3).encode(TEXTS).detach()
    torch.testing.assert_close(after, before - before.mean(dim=0), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(causal.centered(TEXTS, batch=1).encode(TEXTS).detach(), after, atol=1e-6, rtol=1e-5)


def test_bf16_weights_stay_near_fp32(causal: ContentEncoder, tmp_path: Path) -> None:
    causal.save_pretrained(tmp_path)
    half = ContentEncoder.from_pretrained(tmp_path, dtype=torch.bfloat16).encode(TEXTS)
    assert half.dtype == torch.bfloat16
    cosine = torch.nn.functional.cosine_similarity(half.float(), causal.encode(TEXTS), dim=1)
    assert float(cosine.detach().min()) > 0.99


def test_gradient_checkpointing_changes_no_gradient(causal: ContentEncoder) -> None:
    causal.train().encode(TEXTS).square().sum().backward()
    plain = {name: p.grad.clone() for name, p in causal.named_parameters()}
    causal.zero_grad()
    causal.recompute_activations()
    causal.encode(TEXTS).square().sum().backward()
    for name, p in causal.named_parameters():
        torch.testing.assert_close(p.grad, plain[name])

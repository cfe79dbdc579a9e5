"""Presets: real weights run, missing ones say what to do."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn.functional import cosine_similarity
from transformers import BartConfig, BartModel

from hymirec.config import EncoderConfig
from hymirec.encoder import ContentEncoder
from hymirec.encoder.tokenizer import train_tokenizer
from hymirec.errors import ConfigError, ModelMissingError

SENTENCES = [
    "Title: a red garden lantern with a candle",
    "Title: red lantern for candles",
    "Title: tax law for lawyers",
]


@pytest.mark.models
@pytest.mark.parametrize(("preset", "width"), [("minilm", 384), ("smollm2", 576)])
def test_real_weights_put_like_texts_nearer_and_survive_a_round_trip(preset: str, width: int, tmp_path: Path) -> None:
    encoder = ContentEncoder.build(EncoderConfig(preset=preset), (), seed=0)  # type: ignore[arg-type]
    assert encoder.width == width
    with torch.inference_mode():
        near_a, near_b, far = encoder.encode(SENTENCES)
        assert cosine_similarity(near_a, near_b, dim=0) > cosine_similarity(near_a, far, dim=0) + 0.02
        encoder.save_pretrained(tmp_path)
        again = ContentEncoder.from_pretrained(tmp_path)
        assert torch.equal(again.encode(SENTENCES), encoder.encode(SENTENCES))
    assert "site-packages" not in (tmp_path / "config.json").read_text()


@pytest.mark.models
def test_the_special_token_of_real_weights_is_one_token_with_a_start_of_its_own() -> None:
    encoder = ContentEncoder.build(EncoderConfig(preset="minilm", max_tokens=8), (), seed=0)
    batch = encoder.tokenize(["lantern " * 50])
    special = encoder.tokenizer.convert_tokens_to_ids("<|item|>")
    assert batch["input_ids"].shape == (1, 8)
    assert int(batch["input_ids"][0, -1]) == special
    rows = encoder.backbone.get_input_embeddings().weight
    assert torch.equal(rows[special], rows[encoder.tokenizer.sep_token_id])


@pytest.mark.models
def test_more_tokens_than_the_model_reads_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"encoder.max_tokens=600, but .* reads 512 tokens at most"):
        ContentEncoder.build(EncoderConfig(preset="minilm", max_tokens=600), (), seed=0)


def test_weights_that_are_nowhere_say_what_to_do(tmp_path: Path) -> None:
    config = EncoderConfig(preset="custom", model=str(tmp_path / "nothing"))
    with pytest.raises(ModelMissingError, match=r"encoder.preset=custom and encoder.model=DIRECTORY"):
        ContentEncoder.build(config, (), seed=0)


def test_a_model_with_a_decoder_of_its_own_is_refused(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(SENTENCES, 300, "<|item|>")
    sizes = {"encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
    model = BartModel(BartConfig(vocab_size=300, d_model=8, encoder_ffn_dim=8, decoder_ffn_dim=8, **sizes))
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="choose a causal or a BERT-like model"):
        ContentEncoder.build(EncoderConfig(preset="custom", model=str(tmp_path)), (), seed=0)

"""Real LLM weights inside the recommender: parity of the packed pass, and the size of what enters."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from toy_run import toy_config

from hymirec.config import LLMConfig
from hymirec.errors import ModelMissingError
from hymirec.recommender.hybrid import HybridConfig, HybridModel
from hymirec.recommender.llm import empty_llm, llm_architecture, load_llm_weights


def test_tiny_needs_no_weights_and_has_no_token_table() -> None:
    config = LLMConfig()
    model = empty_llm(llm_architecture(config), gradient_checkpointing=False)
    assert load_llm_weights(model, config) == 1.0
    assert not any("embed_tokens" in name for name, _ in model.named_parameters())


def test_a_missing_model_is_said(tmp_path: Path) -> None:
    with pytest.raises(ModelMissingError, match="neither a directory with a model"):
        llm_architecture(LLMConfig(preset="custom", model=str(tmp_path)))


@pytest.mark.models
def test_smollm2_answers_packed_anchors_as_if_each_were_served_alone() -> None:
    settings = toy_config("recommender.item.text=false", "recommender.llm.preset=smollm2").recommender
    torch.manual_seed(0)
    model = HybridModel(
        HybridConfig(
            items=30, content_width=8, recommender=settings.model_dump(mode="json"), llm=llm_architecture(settings.llm)
        )
    )
    size = load_llm_weights(model.llm, settings.llm)
    model.reset_parameters(size)
    model.eval()
    assert 0 < size < 1
    items = torch.randint(0, 30, (1, 5))
    ts = torch.arange(5)[None] * 100
    request = torch.arange(6)[None] * 100
    coarse = torch.randn(1, 2, 16)
    with torch.no_grad():
        vectors = model.item_vectors()[items]
        # A token enters with the size of a token embedding.
        assert float(model.item_in(vectors).square().mean().sqrt()) < 3 * size
        mask = torch.ones(1, 5, dtype=torch.bool)
        _, packed = model.refine(coarse, vectors, ts, mask, request, torch.tensor([[5, 2]]))
        for column, prefix in enumerate((5, 2)):
            cut = slice(0, prefix)
            alone = model.interests(coarse, items[:, cut], ts[:, cut], mask[:, cut], request[:, prefix])
            torch.testing.assert_close(packed[:, column], alone, rtol=0, atol=1e-5)

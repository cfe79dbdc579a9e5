"""The packed layout against serving each request alone, for a tiny Llama and a Qwen2; who sees whom, by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from toy_run import toy_config
from transformers import Qwen2Config

from hymirec.recommender.hybrid import HybridConfig, HybridModel
from hymirec.recommender.llm import llm_architecture
from hymirec.recommender.masks import TimeBias, additive, pack
from hymirec.recommender.ticks import AGE_BUCKETS, age_buckets


def architectures() -> dict[str, dict[str, Any]]:
    qwen = Qwen2Config(
        vocab_size=1,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        pad_token_id=None,
        bos_token_id=None,
        eos_token_id=None,
    ).to_dict()
    return {"tiny": llm_architecture(toy_config().recommender.llm), "qwen2": qwen}


def model_of(architecture: dict[str, Any], *assignments: str) -> HybridModel:
    torch.manual_seed(0)
    settings = toy_config("recommender.item.text=false", *assignments).recommender
    model = HybridModel(
        HybridConfig(items=30, content_width=8, recommender=settings.model_dump(mode="json"), llm=architecture)
    )
    model.reset_parameters()
    # Away from the zeros that training starts from, so that a wrong bias or head would be seen.
    for parameter in model.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    return model.eval()


@pytest.mark.parametrize("kind", ["tiny", "qwen2"])
def test_many_anchors_in_one_pass_equal_each_request_served_alone(kind: str) -> None:
    model = model_of(architectures()[kind], "recommender.dmil.interests=3")
    torch.manual_seed(1)
    batch, most = 3, 6
    length = torch.tensor([6, 4, 1])
    mask = torch.arange(most) < length[:, None]
    items = torch.randint(0, 30, (batch, most))
    ts = torch.randint(0, 100_000, (batch, most)).sort(dim=1).values + 1_600_000_000
    request = torch.cat([ts, ts[:, -1:] + 3_600], dim=1)
    anchors = torch.stack([length, (length - 1).clamp(min=0), torch.zeros(3, dtype=torch.int64)], dim=1)
    coarse = torch.randn(batch, 2, 16)
    with torch.no_grad():
        vectors = model.item_vectors()[items]
        _, packed = model.refine(coarse, vectors, ts, mask, request, anchors)
        for row in range(batch):
            for column, prefix in enumerate(anchors[row].tolist()):
                now = request[row, prefix][None]
                one = slice(row, row + 1)
                alone = model.interests(coarse[one], items[one, :prefix], ts[one, :prefix], mask[one, :prefix], now)
                torch.testing.assert_close(packed[row, column], alone[0], rtol=0, atol=1e-5)


def test_who_sees_whom_by_hand() -> None:
    # One coarse token, two items (the second is padding), anchors 1 and 0 with two queries each.
    layout = pack(torch.tensor([[True, False]]), torch.tensor([[1, 0]]), coarse=1, queries=2)
    expected = [
        # c  s  1  2  q  q  r  r
        [1, 0, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 0, 0],
        [1, 1, 1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 1, 0, 0, 0],
        [1, 1, 1, 0, 1, 1, 0, 0],
        [1, 1, 0, 0, 0, 0, 1, 0],
        [1, 1, 0, 0, 0, 0, 1, 1],
    ]
    assert layout.allowed_BXX[0].int().tolist() == expected
    assert layout.position_BX[0].tolist() == [0, 1, 2, 3, 3, 4, 2, 3]


def test_a_row_is_biased_by_the_age_of_the_column_at_its_own_request() -> None:
    bias = TimeBias(1)
    bias.table.data = torch.arange(bias.table.numel(), dtype=torch.float32).view(1, -1)
    ts, request, anchors = torch.tensor([[100, 160]]), torch.tensor([[100, 160, 5_000]]), torch.tensor([[2]])
    layout = pack(torch.ones(1, 2, dtype=torch.bool), anchors, coarse=1, queries=1)
    found = bias(layout, ts, request, anchors)[0, 0]
    # Row of item 1 is asked at 160, that of item 2 and the query at 5,000.
    assert found[2, 2] == age_buckets(torch.tensor(160), torch.tensor(100))
    assert found[3, 2] == age_buckets(torch.tensor(5_000), torch.tensor(100))
    assert found[4, 3] == age_buckets(torch.tensor(5_000), torch.tensor(160))
    assert found[4, 0] == AGE_BUCKETS


def test_the_mask_is_float_and_forbids_with_the_least_number() -> None:
    layout = pack(torch.ones(1, 2, dtype=torch.bool), torch.zeros(1, 0, dtype=torch.int64), coarse=0, queries=0)
    mask = additive(layout, None, torch.float32)
    assert mask.dtype == torch.float32
    assert mask[0, 0, 0, 1] == torch.finfo(torch.float32).min
    assert mask[0, 0, 1, 0] == 0


def test_buckets_tell_the_same_second_from_the_next_and_clamp_the_future() -> None:
    now = torch.tensor(1_000)
    same, next_second, future = (int(age_buckets(now, torch.tensor(t))) for t in (1_000, 999, 2_000))
    assert same == future == 0
    assert next_second > 0
    assert int(age_buckets(torch.tensor(2**32 - 1), torch.tensor(0))) == AGE_BUCKETS - 1

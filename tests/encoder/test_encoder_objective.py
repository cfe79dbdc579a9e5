"""The stage-1 objective against a loop written out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import normalize

from hymirec.config import EncoderConfig
from hymirec.encoder import ContentEncoder
from hymirec.encoder.objective import GROUPS, Stage1Model, grouped
from hymirec.encoder.tokenizer import token_ids

TEXTS = [f"Title: {kind} {thing}" for kind in ("red", "blue") for thing in ("lantern", "mug", "sign", "big old clock")]
CONFIG = EncoderConfig(hidden_size=16, layers=1, heads=2, vocab_size=300, max_tokens=12)
SLOTS = torch.tensor([[-1, 0, 3, 5], [2, 4, 6, 1], [-1, -1, -1, 2]])


@pytest.fixture
def model() -> Stage1Model:
    torch.manual_seed(0)
    return Stage1Model(ContentEncoder.build(CONFIG, TEXTS, seed=1), user_layers=1, length=4, scale=10.0).eval()


def batch_of(model: Stage1Model, texts: list[str]) -> dict[str, torch.Tensor]:
    encoder = model.encoder
    rows = sorted(token_ids(encoder.tokenizer, texts, CONFIG.special_token, CONFIG.max_tokens), key=len)
    return grouped(rows, encoder.tokenizer.pad_token_id) | {"slots": SLOTS}


def by_hand(model: Stage1Model, batch: dict[str, torch.Tensor]) -> float:
    """One user, one position, one candidate at a time; each history alone, without padding."""
    unit = model.items(batch)
    losses = []
    for row in SLOTS.tolist():
        history = [slot for slot in row if slot >= 0]
        for t in range(len(history) - 1):
            seen = torch.tensor([[-1] * (len(row) - 1 - t) + history[: t + 1]])
            # Positions count from the end of the whole row, not of what is seen.
            shift = len(history) - 1 - t
            seen = torch.cat([seen[:, shift:], torch.full((1, shift), history[0])], dim=1) if shift else seen
            state = model.states(unit, seen)[0, -1 - shift]
            target = history[t + 1]
            exponents = {
                u: math.exp(10.0 * float(state @ unit[u]))
                for u in range(len(unit))
                if u == target or batch["text"][u] != batch["text"][target]
            }
            losses.append(-math.log(exponents[target] / sum(exponents.values())))
    return sum(losses) / len(losses)


def test_the_loss_is_the_one_written_out_by_hand(model: Stage1Model) -> None:
    batch = batch_of(model, TEXTS)
    with torch.no_grad():
        assert float(model(batch)["loss"]) == pytest.approx(by_hand(model, batch), rel=1e-4)


def test_an_item_with_the_targets_own_text_is_no_negative(model: Stage1Model) -> None:
    """Rows 2 and 3 are one text under two ids: with the twin masked the loss is as if it were not there."""
    texts = sorted(TEXTS, key=lambda text: len(text))
    twins = [*texts[:3], texts[2], *texts[3:7]]
    batch = batch_of(model, twins)
    assert batch["text"].tolist() == [0, 1, 2, 2, 4, 5, 6, 7]
    with torch.no_grad():
        assert float(model(batch)["loss"]) == pytest.approx(by_hand(model, batch), rel=1e-4)


def test_giving_all_items_one_embedding_does_not_pay(model: Stage1Model) -> None:
    """The loss of a guess among all items; it was 0 when what is the same product was told from the embeddings."""
    model.encoder.center.fill_(-1e4)
    batch = batch_of(model, TEXTS)
    with torch.no_grad():
        unit = model.items(batch)
        assert float((unit @ unit.T).min()) > 0.9999
        assert float(model(batch)["loss"]) == pytest.approx(math.log(len(TEXTS)), rel=1e-3)


def test_groups_hold_every_row_once_and_little_padding(model: Stage1Model) -> None:
    batch = batch_of(model, TEXTS)
    encoder = model.encoder
    rows = sorted(token_ids(encoder.tokenizer, TEXTS, CONFIG.special_token, CONFIG.max_tokens), key=len)
    held = [
        ids[mask.bool()].tolist()
        for g in range(GROUPS)
        for ids, mask in zip(batch[f"input_ids.{g}"], batch[f"attention_mask.{g}"], strict=True)
    ]
    assert held == rows
    one_by_one = torch.cat(
        [normalize(encoder(torch.tensor([r]), torch.ones(1, len(r), dtype=torch.int64))) for r in rows]
    )
    torch.testing.assert_close(model.items(batch), one_by_one, atol=2e-6, rtol=1e-5)


def test_fewer_items_than_groups_still_work(model: Stage1Model) -> None:
    batch = batch_of(model, TEXTS[:2]) | {"slots": torch.tensor([[-1, -1, 0, 1]])}
    with torch.no_grad():
        assert math.isfinite(float(model(batch)["loss"]))


def test_no_position_sees_its_future(model: Stage1Model) -> None:
    batch = batch_of(model, TEXTS)
    with torch.no_grad():
        unit = model.items(batch)
        a = model.states(unit, torch.tensor([[2, 4, 6, 1]]))
        b = model.states(unit, torch.tensor([[2, 4, 0, 7]]))
    torch.testing.assert_close(a[:, :2], b[:, :2])
    assert not torch.allclose(a[:, 2], b[:, 2])


def test_bf16_parameters_beside_fp32_buffers_give_a_finite_loss_and_gradients(model: Stage1Model) -> None:
    for p in model.parameters():
        p.data = p.data.to(torch.bfloat16)
    with torch.no_grad():
        assert model.states(model.items(batch_of(model, TEXTS)), SLOTS).dtype == torch.bfloat16
    out = model(batch_of(model, TEXTS))
    out["loss"].backward()
    assert math.isfinite(float(out["loss"].detach()))
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_the_scale_never_passes_its_cap(model: Stage1Model) -> None:
    with torch.no_grad():
        model.log_scale.fill_(20.0)
        assert float(model(batch_of(model, TEXTS))["scale"]) == 100.0

"""MoRec, HLLM and PatchRec: they learn from texts alone, end to end, and answer as they were trained.

The toy set's users walk through the items of a topic; the titles tell topic and number.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812
from toy_run import ITEMS, TOPICS, toy_config, toy_tables

from hymirec.catalog.prepare import prepare
from hymirec.catalog.prepared import Sequences
from hymirec.config import BaselineConfig, EncoderConfig, PatchConfig
from hymirec.recommender.baselines import hllm, morec, patchrec
from hymirec.recommender.baselines.patchrec import PatchTower, lay_out
from hymirec.recommender.baselines.sequential import Chunks, SequentialBaseline
from hymirec.recommender.baselines.texts import TextTower
from hymirec.recommender.batches import Chunk, draw_chunks, epoch_batches, request_batch, training_batch
from hymirec.recommender.requests import users_with_targets

BUILDERS: dict[str, Callable[[BaselineConfig, EncoderConfig, Sequence[str], int], SequentialBaseline]] = {
    "morec": morec.build,
    "hllm": hllm.build,
    "patchrec": patchrec.build,
}
KINDS = list(BUILDERS)
ENCODER = EncoderConfig(hidden_size=32, layers=1, heads=2, vocab_size=400, encode_batch=20)
PATCH = PatchConfig(session=2, items=4, texts=2)
TEXTS = [f"topic {i % TOPICS} thing {i}" for i in range(ITEMS)]
# An item that nobody has met; its text is known.
UNSEEN, UNSEEN_TOPIC = ITEMS, 2
CATALOGUE = [*TEXTS, f"topic {UNSEEN_TOPIC} thing {ITEMS + UNSEEN_TOPIC}"]


def built(kind: str, texts: Sequence[str] = CATALOGUE, **changes: Any) -> SequentialBaseline:
    values = {"width": 32, "layers": 1, "length": 12, "dropout": 0.0, "patch": PATCH, **changes}
    return BUILDERS[kind](BaselineConfig.model_validate({"kind": kind, **values}), ENCODER, texts, 17)


@pytest.fixture(scope="module")
def sequences(tmp_path_factory: pytest.TempPathFactory) -> Sequences:
    directory = tmp_path_factory.mktemp("data")
    prepare(toy_tables(), toy_config().data, directory)
    return Sequences.open(directory)


def losses(
    model: SequentialBaseline, sequences: Sequences, steps: int, lr: float, known_only: bool = False
) -> list[float]:
    """Train some steps; the loss of each. `known_only`: the unseen item is no candidate."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr)
    seen: list[float] = []
    for epoch in range(steps):
        rng = np.random.default_rng(epoch)
        for chunk in epoch_batches(sequences, model.reach.recent, 64, 1, 0, rng)[: steps - len(seen)]:
            negatives = np.resize(np.arange(ITEMS), ITEMS * len(chunk.user)) if known_only else None
            out = model(training_batch(sequences, chunk, model.reach, negatives, rng))
            out["loss"].backward()
            optimizer.step()
            optimizer.zero_grad()
            seen.append(float(out["loss"].detach()))
    model.eval()
    return seen


@pytest.fixture(scope="module")
def trained(sequences: Sequences) -> Callable[[str], SequentialBaseline]:
    """Models by kind, each trained once."""

    @cache
    def of(kind: str) -> SequentialBaseline:
        torch.manual_seed(1)
        model = built(kind, dropout=0.1)
        losses(model, sequences, 100, 5e-3, known_only=True)
        return model

    return of


def batch_of(sequences: Sequences, model: SequentialBaseline, count: int = 16) -> dict[str, Tensor]:
    rng = np.random.default_rng(3)
    drawn = draw_chunks(sequences, model.reach.recent, rng)
    chunk = Chunk(drawn.user[:count], drawn.start[:count], drawn.length[:count])
    return training_batch(sequences, chunk, model.reach, None, rng)


def states(model: SequentialBaseline, batch: dict[str, Tensor]) -> Tensor:
    """States (B, T, W) of a training batch."""
    items = batch["items"].masked_fill(~batch["mask"], 0)
    with torch.no_grad():
        vectors = F.embedding(items, model.item_vectors())
        return model.states(Chunks(vectors, items, batch["ts"], batch["mask"], batch["request"][:, 1:]))


@pytest.mark.parametrize("kind", KINDS)
def test_the_next_item_of_the_walk_is_ranked_first(
    kind: str, sequences: Sequences, trained: Callable[[str], SequentialBaseline]
) -> None:
    model = trained(kind)
    users = users_with_targets(sequences, "validation")
    with torch.no_grad():
        scores_BN = model.answer(request_batch(sequences, users, "validation", model.reach))[:, 0] @ (
            model.item_vectors().T
        )
    last = np.array([sequences.history(int(user), "validation")[0][-1] for user in users])
    first = scores_BN.argmax(dim=1).numpy()
    assert (first % TOPICS == last % TOPICS).mean() > 0.9
    assert (first == (last + TOPICS) % ITEMS).mean() > 0.6


@pytest.mark.parametrize("kind", KINDS)
def test_an_unseen_item_lies_among_the_items_of_its_topic(
    kind: str, trained: Callable[[str], SequentialBaseline]
) -> None:
    model = trained(kind)
    with torch.no_grad():
        vectors_NW = model.item_vectors()
    cosine_N = vectors_NW[:UNSEEN] @ vectors_NW[UNSEEN]
    own_N = torch.arange(UNSEEN) % TOPICS == UNSEEN_TOPIC
    assert own_N[cosine_N.argmax()]
    assert cosine_N[own_N].mean() > cosine_N[~own_N].mean() + 0.15


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_reaches_every_weight_of_the_text_encoder(kind: str, sequences: Sequences) -> None:
    model = built(kind).train()
    batch = batch_of(sequences, model)
    model(batch)["loss"].backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []


@pytest.mark.parametrize("kind", KINDS)
def test_a_later_item_changes_no_earlier_state(kind: str, sequences: Sequences) -> None:
    model = built(kind).eval()
    batch = batch_of(sequences, model)
    before = states(model, batch)
    spot = batch["items"].shape[1] - 1
    changed = {**batch, "items": batch["items"].clone()}
    changed["items"][:, spot] = (changed["items"][:, spot] + 1) % ITEMS
    after = states(model, changed)
    asked = model.trained_at(batch["mask"]).clone()
    asked[:, spot] = False
    torch.testing.assert_close(after[asked], before[asked], atol=1e-5, rtol=0)
    full = batch["mask"][:, spot]
    assert full.any()
    assert (after[full, spot] - before[full, spot]).abs().amax() > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_padding_and_neighbours_in_the_batch_change_nothing(kind: str, sequences: Sequences) -> None:
    model = built(kind).eval()
    batch = batch_of(sequences, model)
    together = states(model, batch)
    lengths = batch["mask"].sum(dim=1)
    assert lengths.min() < lengths.max()
    for row, length in enumerate(lengths.tolist()):
        alone = {name: batch[name][row : row + 1, :length] for name in ("items", "ts", "mask")}
        alone["request"] = batch["request"][row : row + 1, : length + 1]
        asked = model.trained_at(alone["mask"])[0]
        torch.testing.assert_close(states(model, alone)[0][asked], together[row, :length][asked], atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_request_is_answered_with_the_state_of_training(kind: str, sequences: Sequences) -> None:
    model = built(kind).eval()
    batch = batch_of(sequences, model)
    rows = torch.arange(len(batch["mask"]))
    last = batch["mask"].sum(dim=1) - 1
    state_BW = F.normalize(states(model, batch)[rows, last], dim=-1)
    request = {name: batch[name] for name in ("items", "ts", "mask")} | {"now": batch["request"][rows, last + 1]}
    with torch.no_grad():
        torch.testing.assert_close(model.answer(request)[:, 0], state_BW, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_the_whole_catalogue_as_sampled_negatives_is_the_full_softmax(kind: str, sequences: Sequences) -> None:
    model = built(kind, TEXTS, mask_same_text=False).train()
    batch = batch_of(sequences, model)
    full = model(batch)["loss"]
    sampled = model(batch | {"negatives": torch.randperm(ITEMS).reshape(len(batch["mask"]), -1)})["loss"]
    torch.testing.assert_close(sampled, full, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_items_of_one_text_are_no_negatives_of_each_other(kind: str, sequences: Sequences) -> None:
    double = built(kind, [*TEXTS, TEXTS[0]]).train()
    single = built(kind, TEXTS, mask_same_text=False).train()
    batch = batch_of(sequences, double)
    batch["next"] = torch.where(batch["next"] >= 0, 0, -1)
    single.load_state_dict(double.state_dict())
    expected = single(batch)["loss"]
    torch.testing.assert_close(double(batch)["loss"], expected, atol=1e-5, rtol=0)
    everything = torch.arange(ITEMS + 1).expand(len(batch["mask"]), -1)[:1]
    torch.testing.assert_close(double(batch | {"negatives": everything})["loss"], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_evaluation_uses_the_weights_of_the_moment(kind: str, sequences: Sequences) -> None:
    model = built(kind).eval()
    with torch.no_grad():
        before = model.item_vectors()
        assert model.item_vectors() is before
    losses(model, sequences, 1, 1e-2)
    with torch.no_grad():
        assert (model.item_vectors() - before).abs().max() > 1e-3
        for p in model.parameters():
            p.zero_()
        assert not model.item_vectors().any()


def test_items_encoded_together_are_what_each_is_alone() -> None:
    model = built("hllm", [f"{text} {'of the endless desert ' * (i % 3)}" for i, text in enumerate(TEXTS)]).eval()
    tower = model.tower
    assert isinstance(tower, TextTower)
    index = torch.randperm(ITEMS)[:40]
    alone = torch.cat([tower(i[None]) for i in index])
    torch.testing.assert_close(tower(index), alone, atol=1e-5, rtol=0)
    with torch.no_grad():
        torch.testing.assert_close(tower(index), alone, atol=1e-5, rtol=0)


GOLDEN: dict[str, list[float]] = {
    "morec": [4.55772, 3.86208, 3.8194, 3.78707, 3.63429],
    "hllm": [10.68475, 3.4006, 3.26738, 3.22323, 3.12782],
    "patchrec": [4.86874, 4.18347, 3.81463, 3.51018, 3.37926],
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_curve_of_five_steps(kind: str, sequences: Sequences) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        curve = losses(built(kind), sequences, 5, 5e-3)
    finally:
        torch.set_num_threads(threads)
    assert curve == pytest.approx(GOLDEN[kind], rel=1e-3)


def test_patches_are_laid_out_from_the_end() -> None:
    """A history of 9: sessions {0}, {1, 2, 3}; item patches 4, 5, 6; texts 7, 8 of 4 and 2 tokens. And one of 3."""
    mask = torch.arange(9) < torch.tensor([[9], [3]])
    tokens = torch.tensor([[9, 9, 9, 9, 9, 9, 9, 4, 2], [3, 5, 2, 0, 0, 0, 0, 0, 0]])
    layout = lay_out(mask, tokens, PatchConfig(session=3, items=3, texts=2))
    assert layout.own[0].tolist() == [True, False, False, True, True, True, True, True, True]
    assert layout.first[0].tolist() == [0, 1, 1, 1, 2, 3, 4, 5, 9]
    assert layout.last[0][layout.own[0]].tolist() == [0, 1, 2, 3, 4, 8, 10]
    assert layout.share[0].tolist() == pytest.approx([1, 1 / 3, 1 / 3, 1 / 3, 1, 1, 1, 0, 0])
    assert layout.text[0].tolist() == [False] * 7 + [True] * 2
    assert layout.own[1].tolist() == [True] * 3 + [False] * 6
    assert layout.first[1, :3].tolist() == [0, 1, 6]
    assert layout.last[1, :3].tolist() == [0, 5, 7]
    assert layout.share[1].tolist() == [1] + [0] * 8


def test_the_order_of_items_matters_everywhere_but_inside_a_session(sequences: Sequences) -> None:
    model = built("patchrec").eval()
    batch = batch_of(sequences, model)
    assert batch["mask"][:, -1].any()
    batch = {name: value[batch["mask"][:, -1]] for name, value in batch.items()}
    before = states(model, batch)[:, -1]

    def swapped(left: int) -> float:
        order = torch.arange(12)
        order[left], order[left + 1] = left + 1, left
        after = states(model, batch | {"items": batch["items"][:, order]})[:, -1]
        return float((after - before).abs().max())

    # 12 items: sessions {0, 1}, {2, 3}, {4, 5}, item patches 6..9, texts 10, 11.
    assert all(swapped(left) < 1e-5 for left in (0, 2, 4))
    assert all(swapped(left) > 1e-4 for left in (1, 3, 5, 6, 8, 10))


def test_positions_inside_a_session_carry_no_loss(sequences: Sequences) -> None:
    model = built("patchrec").train()
    batch = batch_of(sequences, model)
    inside = torch.zeros_like(batch["next"], dtype=torch.bool)
    inside[:, 1:] = batch["mask"] & ~model.trained_at(batch["mask"])
    assert inside.any()
    other = batch | {"next": torch.where(inside, (batch["next"] + 1) % ITEMS, batch["next"])}
    torch.testing.assert_close(model(other)["loss"], model(batch)["loss"])


def test_a_patch_is_the_mean_of_the_titles_tokens() -> None:
    tower = built("patchrec").tower
    assert isinstance(tower, PatchTower)
    tokens, mask = tower.table(torch.tensor([5]))
    title = tokens[0, : int(mask.sum()) - 1]
    with torch.no_grad():
        expected = tower.project(tower.token.weight[title].mean(dim=0))
        torch.testing.assert_close(tower(torch.tensor([7, 5]))[1], expected)

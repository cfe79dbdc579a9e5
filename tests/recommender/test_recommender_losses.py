"""The fused contrastive loss against the formula written out, values and gradients."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize, one_hot

from hymirec.recommender import losses
from hymirec.recommender.losses import Candidates, Twins, diversity, overlap, same_content
from hymirec.recommender.negatives import sample_negatives

R, W, N = 23, 6, 40
TWINS = ((3, 1), (3, 2), (7, 9))


def problem(interests: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    query = normalize(torch.randn(R, interests, W, dtype=torch.float64), dim=-1).requires_grad_()
    vectors = normalize(torch.randn(N, W, dtype=torch.float64), dim=-1).requires_grad_()
    scale = torch.tensor(9.0, dtype=torch.float64, requires_grad=True)
    target = torch.randint(0, N, (R,))
    target[:3] = torch.tensor([3, 7, 3])
    return query, vectors, scale, target, torch.rand(R, dtype=torch.float64)


def written_out(query: Tensor, vectors: Tensor, own: Tensor, scale: Tensor, masked: Tensor, weight: Tensor) -> Tensor:
    score = (query @ vectors.T).amax(dim=1) * scale
    positive = (query @ own[:, :, None]).squeeze(2).amax(dim=1) * scale
    logits = torch.cat([positive[:, None], score.masked_fill(masked, -torch.inf)], dim=1)
    return ((logits.logsumexp(dim=1) - positive) * weight).sum() / weight.sum()


@pytest.mark.parametrize("interests", [1, 3])
@pytest.mark.parametrize("chunk", [1, 100, 1 << 19])
def test_full_softmax_and_its_gradients(interests: int, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "CHUNK_SCORES", chunk)
    query, vectors, scale, target, weight = problem(interests)
    left, right = (torch.tensor(side) for side in zip(*TWINS, strict=True))
    found = Candidates(vectors, None, scale, twins=Twins(left, right))
    masked = one_hot(target, N).bool()
    for item, twin in TWINS:
        masked[target == item, twin] = True
    check(
        found.loss(query, target, vectors[target], weight),
        written_out(query, vectors, vectors[target], scale, masked, weight),
        (query, vectors, scale),
    )


@pytest.mark.parametrize("interests", [1, 2])
def test_sampled_negatives_of_the_targets_content_do_not_count(interests: int) -> None:
    query, vectors, scale, target, weight = problem(interests)
    ids = torch.randint(0, N, (15,))
    content = normalize(torch.randn(N, 5), dim=-1)
    near = content[target] @ content[ids].T > 0.5
    masked = (ids == target[:, None]) | near
    assert near.any()
    check(
        Candidates(vectors[ids], ids, scale, same_content(content, ids, 0.5)).loss(
            query, target, vectors[target], weight
        ),
        written_out(query, vectors[ids], vectors[target], scale, masked, weight),
        (query, vectors, scale),
    )


def test_content_that_many_items_share_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Items 0 to 3 are as near as 4 and 5, but there are too many of them for one product."""
    monkeypatch.setattr(losses, "MOST_TWINS", 2)
    content = normalize(torch.tensor([[1.0, 0]] * 4 + [[0, 1.0]] * 2), dim=1)
    found = Twins.find(content, 0.99)
    assert found.items_T.tolist() == [4, 5]
    assert found.twins_T.tolist() == [5, 4]
    everything = torch.arange(6)
    assert same_content(content, everything, 0.99)(everything).nonzero().tolist() == [[4, 4], [4, 5], [5, 4], [5, 5]]


def check(ours: Tensor, expected: Tensor, inputs: tuple[Tensor, ...]) -> None:
    assert ours.item() == pytest.approx(expected.item(), rel=1e-6)
    for a, b in zip(torch.autograd.grad(ours, inputs), torch.autograd.grad(expected, inputs), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_no_rows_give_zero_and_a_gradient() -> None:
    query, vectors, scale, target, _ = problem(1)
    loss = Candidates(vectors, None, scale).loss(query[:0], target[:0], vectors[:0])
    loss.backward()
    assert loss.item() == 0


def test_twins_are_items_with_equal_content() -> None:
    content = normalize(torch.tensor([[1.0, 0], [0, 1.0], [1.0, 0.001], [0.0, 0.0]]), dim=1)
    twins = Twins.find(content, 0.99)
    row, twin = twins.of(torch.tensor([1, 2, 3, 0, 0]))
    # Rows 1, 3 and 4 ask for items 2, 0 and 0.
    assert list(zip(row.tolist(), twin.tolist(), strict=True)) == [(1, 0), (3, 2), (4, 2)]


def test_diversity_and_overlap_by_hand() -> None:
    pair = torch.tensor([[[1.0, 0.0], [0.6, 0.8]]])
    assert float(overlap(pair)) == pytest.approx(0.6)
    assert float(diversity(pair)) == pytest.approx(0.36)
    assert float(overlap(pair[:, :1])) == 1
    assert float(diversity(pair[:, :1])) == 0


def test_negatives_depend_on_the_seed_alone() -> None:
    first, again = (sample_negatives(np.random.default_rng(3), 100, 50) for _ in range(2))
    assert (first == again).all()
    assert first.min() >= 0
    assert first.max() < 100

"""Contrastive losses on cosines.

The candidates are the whole catalogue (full softmax) or items sampled once a step and shared by all rows. Candidates
that are the target itself, or the same product under another id, are no negatives. What is the same product is told
from what training cannot change (texts, frozen embeddings): were it told from the vectors that are trained, a model
could make its loss 0 by giving all items one vector.

R rows (query, target)  S interests of a row  W width  M candidates  N catalogue
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# Cosines that are held at once: they stay in a core's cache, and memory does not grow with rows or catalogue.
CHUNK_SCORES = 1 << 19
CHUNK_SCORES_GPU = 1 << 26
# An item with more others as near as this is not one product under many ids: its text says nothing, or there is none.
MOST_TWINS = 50


@dataclass(frozen=True)
class Twins:
    """Pairs of items that are one product: `items_T` ascending, and the twin of each, `twins_T`."""

    items_T: Tensor
    twins_T: Tensor

    @classmethod
    def find(cls, content_ND: Tensor, threshold: float) -> Twins:
        """Pairs of different items whose unit content embeddings have a cosine above the threshold.

        None for items that have more than `MOST_TWINS`.
        """
        step = max(1, CHUNK_SCORES // max(1, len(content_ND)))
        left, right = [], []
        for start in range(0, len(content_ND), step):
            near = content_ND[start : start + step] @ content_ND.T > threshold
            near.diagonal(start).fill_(False)
            row, column = _few(near).nonzero(as_tuple=True)
            left.append(row + start)
            right.append(column)
        return cls(torch.cat(left), torch.cat(right))

    def of(self, target_R: Tensor) -> tuple[Tensor, Tensor]:
        """(row, twin) for every twin of every target."""
        first = torch.searchsorted(self.items_T, target_R)
        count = torch.searchsorted(self.items_T, target_R, right=True) - first
        row = torch.arange(len(target_R), device=target_R.device).repeat_interleave(count)
        within = torch.arange(len(row), device=row.device) - (count.cumsum(0) - count).repeat_interleave(count)
        return row, self.twins_T[first.repeat_interleave(count) + within]


@dataclass(frozen=True)
class Candidates:
    """What targets are told apart from.

    `vectors_MW` are unit vectors, `ids_M` their item indices (None: candidate m is item m, full softmax). `scale`
    multiplies cosines. Masked are the target, and beside it what `same` says of targets (R,) and all candidates, a
    bool (R, M); or, in a full softmax where that would cost a product as big as the loss itself, the target's `twins`.
    """

    vectors_MW: Tensor
    ids_M: Tensor | None
    scale: Tensor
    same: Callable[[Tensor], Tensor] | None = None
    twins: Twins | None = None

    def loss(self, query_RSW: Tensor, target_R: Tensor, target_RW: Tensor, weight_R: Tensor | None = None) -> Tensor:
        """Weighted mean over rows of -log exp(c q.t) / (exp(c q.t) + sum_m exp(c q.n_m)); 0 without rows.

        q.t is the largest cosine over a row's S queries, as in retrieval; with S = 1 it is the plain contrastive loss.
        Queries (R, S, W), targets' unit vectors (R, W), targets (R,), weights (R,) or None.
        Source: HyMiRec, arXiv 2510.13738, L_ctr; learnable capped scale as in HLLM, arXiv 2409.12740.
        """
        if not len(target_R):
            return query_RSW.sum() * 0
        weight = torch.ones_like(target_RW[:, 0]) if weight_R is None else weight_R
        weight = weight / weight.sum().clamp(min=1e-9)
        loss: Tensor = _Contrastive.apply(query_RSW, self.vectors_MW, target_RW, self.scale, target_R, weight, self)
        return loss

    def mask(self, score_RM: Tensor, target_R: Tensor) -> None:
        """Put -inf, in place, where a candidate must not count against the target."""
        if self.ids_M is None:
            score_RM.scatter_(1, target_R[:, None], -torch.inf)
        else:
            score_RM.masked_fill_(self.ids_M[None, :] == target_R[:, None], -torch.inf)
        if self.same is not None:
            score_RM.masked_fill_(self.same(target_R), -torch.inf)
        if self.twins is not None and len(self.twins.items_T):
            score_RM[self.twins.of(target_R)] = -torch.inf


def same_content(content_ND: Tensor, ids_M: Tensor, threshold: float) -> Callable[[Tensor], Tensor]:
    """`Candidates.same` for sampled items: unit content embeddings with a cosine above the threshold.

    Nothing for a target that more than `MOST_TWINS` of them are as near to.
    """
    content_MD = content_ND[ids_M]

    def same(target_R: Tensor) -> Tensor:
        return _few(content_ND[target_R] @ content_MD.T > threshold)

    return same


def _few(near_RM: Tensor) -> Tensor:
    """The same, with rows of more than `MOST_TWINS` emptied in place."""
    return near_RM.masked_fill_((near_RM.sum(dim=1) > MOST_TWINS)[:, None], False)


class _Contrastive(torch.autograd.Function):
    """Loss and all gradients in one sweep over row chunks; the R x M scores never exist as a whole.

    The gradient of a weighted sum of cross-entropies is known as soon as the scores are, so nothing is kept for the
    backward pass but the gradients themselves. Halves a training step on a CPU (docs/lab-log.md).
    """

    @staticmethod
    def forward(
        ctx: Any,
        query_RSW: Tensor,
        vectors_MW: Tensor,
        target_RW: Tensor,
        scale: Tensor,
        target_R: Tensor,
        weight_R: Tensor,
        candidates: Candidates,
    ) -> Tensor:
        grads = [torch.zeros_like(t) for t in (query_RSW, vectors_MW, target_RW, scale)]
        loss = torch.zeros((), dtype=torch.float32, device=query_RSW.device)
        budget = CHUNK_SCORES_GPU if query_RSW.is_cuda else CHUNK_SCORES
        step = max(1, budget // (query_RSW.shape[1] * max(1, len(vectors_MW))))
        for start in range(0, len(target_R), step):
            rows = slice(start, start + step)
            part = _Rows(query_RSW[rows], target_RW[rows], target_R[rows], weight_R[rows])
            loss = loss + _sweep(part, vectors_MW, scale, candidates, rows, grads)
        ctx.save_for_backward(*grads)
        return loss

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        query, vectors, target, scale = (grad * grad_outputs[0] for grad in ctx.saved_tensors)
        return query, vectors, target, scale, None, None, None


@dataclass(frozen=True)
class _Rows:
    query_RSW: Tensor
    target_RW: Tensor
    target_R: Tensor
    weight_R: Tensor


def _sweep(
    rows: _Rows, vectors_MW: Tensor, scale: Tensor, candidates: Candidates, where: slice, grads: list[Tensor]
) -> Tensor:
    """Loss of some rows; their gradients are added to `grads` (query, vectors, target, scale)."""
    grad_query, grad_vectors, grad_target, grad_scale = grads
    count, interests, _ = rows.query_RSW.shape
    each = (rows.query_RSW.flatten(0, 1) @ vectors_MW.T).view(count, interests, -1)
    score_RM, best_RM = _largest(each)
    own_R, own_best_R = (rows.query_RSW @ rows.target_RW[:, :, None]).squeeze(2).max(dim=1)
    candidates.mask(score_RM, rows.target_R)
    largest = torch.maximum(score_RM.amax(dim=1), own_R)
    # exp(scale (score - largest)), in the scores' own memory.
    share_RM = score_RM.sub_(largest[:, None]).mul_(scale).exp_()
    own_share = ((own_R - largest) * scale).exp()
    total = share_RM.sum(dim=1) + own_share
    losses = total.log() - (own_R - largest) * scale
    # d loss / d (scale * score): probability for a candidate, probability - 1 for the target.
    share_RM.mul_((rows.weight_R / total)[:, None])
    pull_R = (own_share / total - 1) * rows.weight_R
    row = torch.arange(count, device=own_best_R.device)
    for interest in range(interests):
        slope = share_RM if best_RM is None else share_RM * (best_RM == interest)
        query = rows.query_RSW[:, interest]
        toward = slope @ vectors_MW
        grad_query[where, interest] += toward * scale
        grad_vectors.addmm_(slope.T, query * scale)
        grad_scale += (toward * query).sum()
    chosen = rows.query_RSW[row, own_best_R]
    grad_query[where][row, own_best_R] += (pull_R * scale)[:, None] * rows.target_RW
    grad_target[where] += (pull_R * scale)[:, None] * chosen
    grad_scale += (pull_R * own_R).sum()
    return (losses * rows.weight_R).sum().float()


def _largest(score_RSM: Tensor) -> tuple[Tensor, Tensor | None]:
    """The largest of S scores and which one it is (uint8; None for S = 1); `max(dim=1)` is three times slower here."""
    largest, which = score_RSM[:, 0], None
    for interest in range(1, score_RSM.shape[1]):
        other = score_RSM[:, interest]
        above = other > largest
        which = above.to(torch.uint8) if which is None else which.masked_fill_(above, interest)
        largest = torch.maximum(largest, other)
    return largest, which


def diversity(interests_GSW: Tensor) -> Tensor:
    """Mean squared cosine between two different interests of a request; 0 for a single interest."""
    return _pair_cosines(interests_GSW).square().mean() if interests_GSW.shape[1] > 1 else interests_GSW.new_zeros(())


def overlap(interests_GSW: Tensor) -> Tensor:
    """Mean cosine between two different interests of a request; 1 for a single interest."""
    return _pair_cosines(interests_GSW).mean() if interests_GSW.shape[1] > 1 else interests_GSW.new_ones(())


def _pair_cosines(interests_GSW: Tensor) -> Tensor:
    unit_GSW = torch.nn.functional.normalize(interests_GSW, dim=2)
    gram = unit_GSW @ unit_GSW.transpose(1, 2)
    off = ~torch.eye(gram.shape[1], dtype=torch.bool, device=gram.device)
    return gram[:, off]

"""Contrastive losses on cosines. R rows (query, target)  W width  M candidates  N catalogue  S interests

The candidates are the whole catalogue (full softmax) or items sampled once a step and shared by all rows. Candidates
that are the target itself, or lie nearer to it than a threshold, are no negatives: the same product under two ids.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812


@dataclass(frozen=True)
class Candidates:
    """What targets are told apart from.

    `vectors_MW` are unit vectors. `ids_M` are their item indices; None means candidate m is item m (full softmax).
    `scale` multiplies cosines; candidates with a cosine above `threshold` to the target are masked.
    """

    vectors_MW: Tensor
    ids_M: Tensor | None
    scale: Tensor
    threshold: float

    def losses(self, query_RW: Tensor, target_R: Tensor, target_RW: Tensor) -> Tensor:
        """Cross-entropy (R,) of each query's target among the candidates.

        -log exp(c q.t) / (exp(c q.t) + sum_m exp(c q.n_m)) with unit queries (R, W), target items (R,) and their unit
        vectors (R, W).
        Source: HyMiRec, arXiv 2510.13738, L_ctr; scale and cap as in HLLM, arXiv 2409.12740.
        """
        return self.losses_of_scores(query_RW @ self.vectors_MW.T, (query_RW * target_RW).sum(1), target_R, target_RW)

    def losses_of_scores(self, score_RM: Tensor, own_R: Tensor, target_R: Tensor, target_RW: Tensor) -> Tensor:
        """The same from cosines already at hand: with all candidates (R, M) and with the target (R,)."""
        logit_RM = score_RM * self.scale
        near = self._near(target_R, target_RW)
        if near is not None:
            logit_RM = logit_RM.masked_fill(near, -torch.inf)
        if self.ids_M is None:
            return F.cross_entropy(logit_RM, target_R, reduction="none")
        # The target is no candidate here: it is added to the denominator.
        own = own_R * self.scale
        return torch.logaddexp(own, logit_RM.logsumexp(dim=1)) - own

    def _near(self, target_R: Tensor, target_RW: Tensor) -> Tensor | None:
        """True (R, M) where a candidate must not count against the target; None when nothing is to be masked."""
        with torch.no_grad():
            if self.ids_M is not None:
                near = self.ids_M[None, :] == target_R[:, None]
                return near if self.threshold >= 1 else near | (target_RW @ self.vectors_MW.T > self.threshold)
            if self.threshold >= 1:
                return None
            # One row of the mask belongs to an item, so with fewer items than rows it is cheaper by item.
            if len(self.vectors_MW) < len(target_R):
                twins = self.vectors_MW @ self.vectors_MW.T > self.threshold
                twins.fill_diagonal_(False)
                return twins[target_R]
            near = target_RW @ self.vectors_MW.T > self.threshold
            near[torch.arange(len(target_R), device=near.device), target_R] = False
            return near


def diversity(interests_GSW: Tensor) -> Tensor:
    """Mean squared cosine between two different interests of a request; 0 for a single interest."""
    count = interests_GSW.shape[1]
    if count < 2:
        return interests_GSW.new_zeros(())
    gram = interests_GSW @ interests_GSW.transpose(1, 2)
    off = ~torch.eye(count, dtype=torch.bool, device=gram.device)
    return gram[:, off].square().mean()


def overlap(interests_GSW: Tensor) -> Tensor:
    """Mean cosine between two different interests of a request; 1 for a single interest."""
    count = interests_GSW.shape[1]
    if count < 2:
        return interests_GSW.new_ones(())
    gram = interests_GSW @ interests_GSW.transpose(1, 2)
    off = ~torch.eye(count, dtype=torch.bool, device=gram.device)
    return gram[:, off].mean()

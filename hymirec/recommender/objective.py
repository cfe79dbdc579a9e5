"""What the hybrid model is trained for: the next item everywhere, and several future items at the anchors.

    loss = next_item_weight L_trunk + max_weight L_max + weight L_DMIL + diversity D

L_trunk: the next item from the trunk's state after every prefix. L_max: the next item at the anchors with the score
that retrieval uses, the largest cosine over the interests. L_DMIL: the window's targets, each from the interest that
its group was matched to, with weight decay^i. D: mean squared cosine between interests.

With `shield_trunk` the first interest is what L_trunk makes of it; L_max and L_DMIL teach the others to find what it
misses. Anchors are few beside prefixes, so a weight of 1 would make a row of theirs count many times a row of L_trunk:
the trunk then learned a fifth slower. All losses on all interests pull the trunk towards later items, which costs
accuracy at 10 (docs/lab-log.md).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from hymirec.config import RecommenderConfig
from hymirec.recommender.dmil import assign_targets
from hymirec.recommender.losses import Candidates, diversity, overlap


@dataclass(frozen=True)
class Objective:
    """What targets are told apart from, and the settings."""

    candidates: Candidates
    settings: RecommenderConfig


def objective_losses(
    objective: Objective,
    state_BPW: Tensor,
    interests_BASW: Tensor,
    batch: dict[str, Tensor],
    vectors: Callable[[Tensor], Tensor],
) -> dict[str, Tensor]:
    """The loss and its parts. `vectors` maps item indices to unit vectors."""
    settings = objective.settings
    dmil = settings.dmil
    candidates = objective.candidates
    known = batch["next"] >= 0
    following = batch["next"][known]
    interests_GSW = interests_BASW.flatten(0, 1)
    window_GW = batch["window"].flatten(0, 1)
    if dmil.shield_trunk:
        interests_GSW = torch.cat([interests_GSW[:, :1].detach(), interests_GSW[:, 1:]], dim=1)
    first = window_GW[:, 0] >= 0
    target = window_GW[first, 0]
    out = {
        "next": candidates.loss(state_BPW[known][:, None], following, vectors(following)),
        "max": candidates.loss(interests_GSW[first], target, vectors(target)),
        "dmil": _dmil_loss(candidates, interests_GSW, window_GW, settings, vectors),
        "diversity": diversity(interests_GSW),
    }
    loss = dmil.next_item_weight * out["next"] + dmil.weight * out["dmil"]
    if interests_GSW.shape[1] > 1:
        loss = loss + dmil.max_weight * out["max"] + dmil.diversity * out["diversity"]
    return {"loss": loss, **out, "overlap": overlap(interests_GSW), "scale": candidates.scale}


def _dmil_loss(
    candidates: Candidates,
    interests_GSW: Tensor,
    window_GW: Tensor,
    settings: RecommenderConfig,
    vectors: Callable[[Tensor], Tensor],
) -> Tensor:
    """Each target of the window from its own interest."""
    dmil = settings.dmil
    if dmil.weight == 0:
        return interests_GSW.new_zeros(())
    valid_GW = window_GW >= 0
    target_GWD = vectors(window_GW)
    owner_GW = assign_targets(interests_GSW, target_GWD.detach(), valid_GW, dmil.lloyd_steps, dmil.matching)
    taught_GW = valid_GW & (owner_GW > 0) if dmil.shield_trunk and interests_GSW.shape[1] > 1 else valid_GW
    weight_W = dmil.decay ** torch.arange(window_GW.shape[1], device=window_GW.device, dtype=target_GWD.dtype)
    request, spot = taught_GW.nonzero(as_tuple=True)
    query_RW = interests_GSW[request, owner_GW[request, spot]]
    return candidates.loss(query_RW[:, None], window_GW[request, spot], target_GWD[request, spot], weight_W[spot])

"""Disentangled multi-interest learning: future items are grouped, and each group teaches one interest.

The targets of a request are the next w items. They are clustered by cosine into s groups; groups are given to interests
one to one so that the sum of cosines is largest. Everything is batched and stays on the device. A group without a
target (fewer distinct targets than interests) takes part in the matching with gain 0 and teaches nothing.

Source: HyMiRec, arXiv 2510.13738, DMIL section. G requests  W targets a request (the window)  S interests  D width
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from hymirec.recommender.matching import match


def group_targets(targets_GWD: Tensor, valid_GW: Tensor, groups: int, steps: int) -> Tensor:
    """Spherical k-means over each request's targets; returns the group (G, W) of each.

    Works on the Gram matrix (w x w), never on centroids: a centroid is the sum of its members, so its cosine with a
    target is a row sum of the Gram matrix over a root. Starts are the first target and then the farthest from those
    chosen. Targets are unit vectors; invalid ones get a group too but weigh nothing. Ties go to the lower group.
    """
    gram = targets_GWD @ targets_GWD.transpose(1, 2)
    weight = valid_GW.to(gram.dtype)
    starts = _farthest_first(gram, valid_GW, groups)
    group = _nearest(gram.gather(2, starts[:, None, :].expand(-1, gram.shape[1], -1)))
    for _ in range(steps):
        member = torch.nn.functional.one_hot(group, groups).to(gram.dtype) * weight[:, :, None]
        group = _nearest(_cosine_to_sums(gram, member))
    return group


def _farthest_first(gram: Tensor, valid_GW: Tensor, groups: int) -> Tensor:
    """Indices (G, groups) of the starting targets; the first is the first valid target."""
    chosen = [valid_GW.to(torch.int8).argmax(dim=1)]
    nearest = torch.full(valid_GW.shape, -torch.inf, dtype=gram.dtype, device=gram.device)
    for _ in range(groups - 1):
        row = gram.gather(1, chosen[-1][:, None, None].expand(-1, 1, gram.shape[2])).squeeze(1)
        nearest = torch.maximum(nearest, row)
        chosen.append(nearest.masked_fill(~valid_GW, torch.inf).argmin(dim=1))
    return torch.stack(chosen, dim=1)


def _nearest(cosine_GWS: Tensor) -> Tensor:
    """Nearest group; a difference below the rounding of a cosine is a tie and goes to the lower group."""
    best = cosine_GWS.amax(dim=2, keepdim=True)
    return (cosine_GWS >= best - 1e-6).to(torch.int8).argmax(dim=2)


def _cosine_to_sums(gram: Tensor, member_GWS: Tensor) -> Tensor:
    """Cosine (G, W, S) of each target with each group's sum; -inf for an empty group."""
    dot = gram @ member_GWS
    square = (member_GWS * dot).sum(dim=1).clamp(min=0)
    cosine = dot / square.clamp(min=1e-12).sqrt()[:, None, :]
    return cosine.masked_fill((member_GWS.sum(dim=1) == 0)[:, None, :], -torch.inf)


def group_gains(interests_GSD: Tensor, targets_GWD: Tensor, valid_GW: Tensor, group_GW: Tensor) -> Tensor:
    """Cosine (G, interest, group) of each interest with each group's centroid; 0 for an empty group."""
    count = interests_GSD.shape[1]
    member = torch.nn.functional.one_hot(group_GW, count).to(targets_GWD.dtype) * valid_GW[:, :, None]
    centroid = torch.nn.functional.normalize(member.transpose(1, 2) @ targets_GWD, dim=2)
    gain: Tensor = torch.nn.functional.normalize(interests_GSD, dim=2) @ centroid.transpose(1, 2)
    return gain


def assign_targets(
    interests_GSD: Tensor,
    targets_GWD: Tensor,
    valid_GW: Tensor,
    steps: int,
    matching: Literal["hungarian", "max"],
) -> Tensor:
    """The interest (G, W) that each target teaches. No gradient flows through the assignment.

    `max` lets every group choose its nearest interest, so that one interest may get them all (the paper's ablation).
    """
    count = interests_GSD.shape[1]
    with torch.no_grad():
        if count == 1:
            return torch.zeros(valid_GW.shape, dtype=torch.int64, device=valid_GW.device)
        group = group_targets(targets_GWD, valid_GW, count, steps)
        gain = group_gains(interests_GSD, targets_GWD, valid_GW, group)
        # The matching names a group for each interest; its inverse, an interest for each group.
        owner = gain.argmax(dim=1) if matching == "max" else match(gain).argsort(dim=1)
        return owner.gather(1, group)

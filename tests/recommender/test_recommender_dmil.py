"""Grouping of targets and exact matching, against SciPy and by hand."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment
from torch.nn.functional import normalize

from hymirec.recommender.dmil import assign_targets, group_gains, group_targets
from hymirec.recommender.matching import _match_on_device, match


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**31), st.integers(1, 8), st.integers(1, 6))
def test_matching_has_the_gain_of_scipys(seed: int, size: int, requests: int) -> None:
    gain = torch.from_numpy(np.random.default_rng(seed).standard_normal((requests, size, size)))
    columns = match(gain)
    for row in range(requests):
        assert sorted(columns[row].tolist()) == list(range(size))
        best = gain[row].numpy()[linear_sum_assignment(gain[row].numpy(), maximize=True)].sum()
        assert gain[row][torch.arange(size), columns[row]].sum() == pytest.approx(best)


@pytest.mark.parametrize("size", range(1, 9))
def test_ten_thousand_matchings_have_the_gain_of_scipys(size: int) -> None:
    # Half of them in whole numbers, where ties abound.
    gain = np.random.default_rng(size).standard_normal((2_000, size, size))
    gain[::2] = gain[::2].round()
    columns = match(torch.from_numpy(gain)).numpy()
    found = np.take_along_axis(gain, columns[:, :, None], axis=2).sum(axis=(1, 2))
    best = [own[linear_sum_assignment(own, maximize=True)].sum() for own in gain]
    assert (np.sort(columns, axis=1) == np.arange(size)).all()
    np.testing.assert_allclose(found, best, atol=1e-9)


@pytest.mark.parametrize("size", range(1, 9))
@pytest.mark.parametrize("requests", [1, 31, 256, 500])
def test_the_kernel_picks_the_very_columns_that_tensors_pick(size: int, requests: int) -> None:
    gain = torch.randn(requests, size, size, generator=torch.Generator().manual_seed(size))
    gain[::2] = gain[::2].round()
    assert torch.equal(match(gain), _match_on_device(gain))
    assert torch.equal(match(gain.double()), _match_on_device(gain.double()))


def test_steps_bring_targets_nearer_to_their_groups() -> None:
    targets = normalize(torch.randn(500, 8, 5, generator=torch.Generator().manual_seed(0)), dim=2)
    valid = torch.ones(500, 8, dtype=torch.bool)
    objectives = []
    for steps in range(6):
        member = torch.nn.functional.one_hot(group_targets(targets, valid, 3, steps), 3).float()
        # The sum of cosines to the centroids of a group is the length of its sum.
        objectives.append((member.transpose(1, 2) @ targets).norm(dim=2).sum(dim=1))
    for before, after in itertools.pairwise(objectives):
        assert (after >= before - 1e-4).all()


def test_two_tastes_become_two_groups() -> None:
    a, b = torch.tensor([1.0, 0.0, 0.05]), torch.tensor([0.0, 1.0, 0.05])
    targets = normalize(torch.stack([a, b, a + 0.1 * b, b + 0.1 * a]), dim=1)[None]
    group = group_targets(targets, torch.ones(1, 4, dtype=torch.bool), 2, 5)
    assert group.tolist() == [[0, 1, 0, 1]]


def test_equal_targets_leave_the_other_groups_empty() -> None:
    targets = normalize(torch.ones(1, 4, 3), dim=2)
    valid = torch.ones(1, 4, dtype=torch.bool)
    group = group_targets(targets, valid, 3, 5)
    assert group.tolist() == [[0, 0, 0, 0]]
    gain = group_gains(normalize(torch.randn(1, 3, 3), dim=2), targets, valid, group)
    assert gain[0, :, 1:].abs().max() == 0


def test_targets_beyond_the_window_do_not_move_groups() -> None:
    generator = torch.Generator().manual_seed(0)
    targets = normalize(torch.randn(1, 4, 8, generator=generator), dim=2)
    valid = torch.tensor([[True, True, False, False]])
    other = targets.clone()
    other[:, 2:] = normalize(torch.randn(1, 2, 8, generator=generator), dim=2)
    assert torch.equal(group_targets(targets, valid, 2, 5)[:, :2], group_targets(other, valid, 2, 5)[:, :2])


def test_no_target_at_all_is_defined() -> None:
    owner = assign_targets(
        normalize(torch.randn(2, 2, 4), dim=2),
        normalize(torch.randn(2, 3, 4), dim=2),
        torch.zeros(2, 3, dtype=torch.bool),
        5,
        "hungarian",
    )
    assert owner.shape == (2, 3)
    assert ((owner >= 0) & (owner < 2)).all()


def test_each_group_teaches_its_own_interest_though_one_interest_is_nearer_to_both() -> None:
    # Interest 0 is nearer to both groups than interest 1, which points away.
    interests = normalize(torch.tensor([[[1.0, 0.8, 0.0], [0.1, 0.0, 1.0]]]), dim=2)
    targets = torch.tensor([[[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]])
    valid = torch.ones(1, 2, dtype=torch.bool)
    hungarian = assign_targets(interests, targets, valid, 5, "hungarian")
    assert sorted(hungarian[0].tolist()) == [0, 1]
    assert assign_targets(interests, targets, valid, 5, "max").tolist() == [[0, 0]]


def test_a_single_interest_gets_every_target() -> None:
    owner = assign_targets(torch.randn(3, 1, 4), torch.randn(3, 2, 4), torch.ones(3, 2, dtype=torch.bool), 5, "max")
    assert owner.unique().tolist() == [0]

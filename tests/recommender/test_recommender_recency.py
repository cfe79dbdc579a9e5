"""Recency kernels and bucketed biases against plain loops."""

from __future__ import annotations

import torch

from hymirec.recommender.bias import bucket_bias
from hymirec.recommender.recency import LONGEST, SHORTEST, RecencyKernels


def test_a_kernel_weighs_each_item_by_its_distance_from_the_end_of_the_prefix() -> None:
    kernels = RecencyKernels(2, 3)
    torch.manual_seed(0)
    torch.nn.init.normal_(kernels.weight_SK)
    vectors, prefix = torch.randn(2, 5, 4), torch.tensor([[0, 1, 5], [2, 4, 3]])
    for interest in range(2):
        found = kernels(vectors, prefix, interest)
        for row in range(2):
            for column in range(3):
                length = int(prefix[row, column])
                expected = torch.zeros(4)
                for lag in range(min(3, length)):
                    expected = expected + kernels.weight_SK[interest, lag] * vectors[row, length - 1 - lag]
                torch.testing.assert_close(found[row, column], expected)


def test_kernels_start_from_a_short_to_a_long_memory() -> None:
    kernels = RecencyKernels(3, 200)
    kernels.reset_parameters()
    weight = kernels.weight_SK.detach()
    torch.testing.assert_close(weight.sum(dim=1), torch.ones(3))
    ratio = weight[:, 1] / weight[:, 0]
    torch.testing.assert_close(ratio, torch.tensor([SHORTEST, (SHORTEST + LONGEST) / 2, LONGEST]))


def test_a_bucketed_bias_is_indexing_forward_and_backward() -> None:
    torch.manual_seed(0)
    table = torch.randn(3, 7, requires_grad=True)
    bucket = torch.randint(0, 7, (2, 5, 5), dtype=torch.int32)
    weight = torch.randn(2, 3, 5, 5)
    (bucket_bias(table, bucket) * weight).sum().backward()
    counted = table.grad
    table.grad = None
    plain = table[:, bucket.long()].transpose(0, 1)
    torch.testing.assert_close(bucket_bias(table, bucket), plain)
    (plain * weight).sum().backward()
    torch.testing.assert_close(counted, table.grad)

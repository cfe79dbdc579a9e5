"""Time as the recommender sees it: the age of an event at the moment of a request, in logarithmic buckets.

HSTU (arXiv 2402.17152) uses floor(ln(max(1, |dt|)) / 0.301) of a difference in seconds. Here it is ln(1 + dt), so that
events of the very same second (a basket, a page of ratings) have a bucket of their own.
"""

from __future__ import annotations

import torch
from torch import Tensor

LOG_STEP = 0.301
# ln(1 + 2^32) / 0.301 = 73.7: any two 32-bit times in seconds.
AGE_BUCKETS = 74
# One more bucket for what has no time: coarse interests, the start token, padding.
NO_AGE = AGE_BUCKETS
BUCKETS = AGE_BUCKETS + 1


def age_buckets(now: Tensor, ts: Tensor) -> Tensor:
    """Bucket of the age of `ts` at `now` (int64 seconds, shapes broadcast); an event of the future counts as age 0."""
    age = (now - ts).clamp(min=0).to(torch.float32)
    return (torch.log1p(age) / LOG_STEP).to(torch.int64).clamp(max=AGE_BUCKETS - 1)

"""Recall, NDCG and MRR against an outside implementation, ranx, over whole rankings."""

from __future__ import annotations

import numpy as np
import pytest
from ranx import Qrels, Run, evaluate

from hymirec.evaluation.metrics import per_user

KS = (1, 5, 10, 50)
USERS, ITEMS = 40, 60


def rankings(rng: np.random.Generator, targets: int) -> tuple[np.ndarray, np.ndarray, Qrels, Run]:
    """Ranks (T,) and users (T,) of `targets` distinct items a user, and the same as relevance and scores."""
    ranks = np.stack([rng.choice(ITEMS, targets, replace=False) for _ in range(USERS)])
    # Of each user another item stands at each place.
    orders = [rng.permutation(ITEMS) for _ in range(USERS)]
    relevant = {f"u{u}": {f"i{orders[u][rank]}": 1 for rank in ranks[u]} for u in range(USERS)}
    scored = {f"u{u}": {f"i{item}": float(ITEMS - place) for place, item in enumerate(orders[u])} for u in range(USERS)}
    return ranks.ravel(), np.repeat(np.arange(USERS), targets), Qrels(relevant), Run(scored)


@pytest.mark.parametrize("targets", [1, 3, 12])
def test_equal_to_ranx(targets: int) -> None:
    ranks, users, qrels, run = rankings(np.random.default_rng(targets), targets)
    found = per_user(ranks, users, KS, USERS)
    theirs = {"R": "recall", "N": "ndcg", "MRR": "mrr"}
    for ours, name in theirs.items():
        for k in KS:
            evaluate(qrels, run, f"{name}@{k}")
            expected = [run.scores[f"{name}@{k}"][f"u{u}"] for u in range(USERS)]
            np.testing.assert_allclose(found[f"{ours}@{k}"], expected, atol=1e-9, err_msg=f"{name}@{k}")

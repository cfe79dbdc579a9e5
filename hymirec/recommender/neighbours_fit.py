"""Choose the neighbours' bonus of a trained model: its weight, and how fast a history's events are forgotten."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hymirec.catalog.prepared import Sequences
from hymirec.config import EvaluationConfig, NeighboursConfig
from hymirec.recommender.bonus_fit import choose_bonus
from hymirec.recommender.contract import Recommender
from hymirec.recommender.neighbours import Neighbours, similarity
from hymirec.recommender.requests import recent_items


class _Option(NamedTuple):
    weight: float
    keep: float


NONE = _Option(0.0, 0.8)
# Any gain is taken: below its standard error it was 1.3 to 3 times as much on test on small sets (docs/lab-log.md).
ERRORS = 0.0


def fit_neighbours(
    model: Recommender, sequences: Sequences, config: NeighboursConfig, evaluation: EvaluationConfig
) -> tuple[Neighbours, dict[str, Any]]:
    """The best bonus of the config's grid, or none if each loses; and how it was chosen, for JSON."""
    size = len(model.item_vectors())
    options = [_Option(weight, keep) for keep in config.keep for weight in config.weights]
    table_NN = similarity(sequences, size, config.most) if options else None
    shared: dict[str, Any] = {"of": None}

    def bonus(option: _Option, users: NDArray[np.int64]) -> NDArray[np.float32]:
        of = (option.keep, users.tobytes())
        if shared["of"] != of:
            recent = recent_items(model, sequences, users, "validation")
            shared.update(of=of, log_BN=Neighbours(1.0, option.keep, table_NN).bonus(recent).toarray())
        found: NDArray[np.float32] = np.float32(option.weight) * shared["log_BN"]
        return found

    chosen = choose_bonus(model, sequences, evaluation, NONE, options, bonus, ERRORS)
    about = chosen.report()
    if chosen.option == NONE:
        return Neighbours(), about
    assert table_NN is not None
    about["kept_an_item"] = round(table_NN.nnz / size, 1)
    return Neighbours(*chosen.option, table_NN), about

"""Popularity by hand."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import numpy as np
import pyarrow as pa
import pytest

from hymirec.catalog.normalise import Tables
from hymirec.catalog.prepare import prepare
from hymirec.catalog.prepared import Catalog, Sequences
from hymirec.config import CLOSED_FORM_KINDS, TEXT_KINDS, BaselineConfig, DataConfig
from hymirec.errors import ModelError
from hymirec.recommender.baselines import History, Popularity, RecentPopularity
from hymirec.recommender.baselines.registry import CLOSED_FORMS, TEXT_MODELS, TRAINED

DAY = 86_400


@pytest.fixture
def data(tmp_path: Path) -> tuple[Sequences, Catalog]:
    # The last two events of each user are validation and test: training counts are 2, 1, 1 for items 0, 1, 2.
    users = {1: [0, 1, 3, 3], 2: [0, 2, 3, 3]}
    rows = [(u, item, 100 * DAY * (step + 1)) for u, items in users.items() for step, item in enumerate(items)]
    user, item, ts = (list(column) for column in zip(*rows, strict=True))
    items = pa.table({"item": [0, 1, 2, 3], "title": list("abcd")})
    config = DataConfig(min_user_interactions=3, repeats="keep")
    prepare(Tables(items, pa.table({"user": user, "item": item, "ts": ts})), config, tmp_path)
    return Sequences.open(tmp_path), Catalog.open(tmp_path)


def history(now: int) -> History:
    return History(np.array([0], np.int32), np.array([0], np.int64), now)


def test_popularity_counts_training_events_alone(data: tuple[Sequences, Catalog]) -> None:
    model = Popularity()
    model.fit(*data)
    assert model.score([history(0), history(9)]).tolist() == [[2, 1, 1, 0]] * 2


def test_recent_popularity_counts_what_was_before_the_request(data: tuple[Sequences, Catalog]) -> None:
    model = RecentPopularity(days=30)
    model.fit(*data)
    scores = model.score([history(100 * DAY), history(101 * DAY), history(201 * DAY)])
    assert np.floor(scores).tolist() == [[0, 0, 0, 0], [2, 0, 0, 0], [0, 1, 1, 0]]
    # Without recent events the counts of all time decide.
    assert scores[0].argmax() == 0


@pytest.mark.parametrize("model", [Popularity(), RecentPopularity()])
def test_scoring_before_fitting_is_refused(model: Popularity | RecentPopularity) -> None:
    with pytest.raises(ModelError, match="call fit"):
        model.score([history(0)])


def test_the_config_knows_the_kinds_of_the_registry() -> None:
    assert set(CLOSED_FORM_KINDS) == set(CLOSED_FORMS)
    assert set(TEXT_KINDS) == set(TEXT_MODELS)
    assert {*CLOSED_FORMS, *TRAINED} == set(get_args(BaselineConfig.model_fields["kind"].annotation))

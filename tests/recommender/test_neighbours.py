"""What stands beside what: similarities and bonuses by hand, the choice on validation, and the table on disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import scipy.sparse as sp
import torch
from indifferent import Indifferent

from hymirec.catalog.prepared import Sequences
from hymirec.config import EvaluationConfig, NeighboursConfig, PipelineConfig, parse
from hymirec.errors import ConfigError
from hymirec.evaluation.evaluate import evaluate_model
from hymirec.recommender.contract import Recommender
from hymirec.recommender.neighbours import (
    BACKWARD,
    REACH,
    SHRINK,
    TABLE_FILE,
    Neighbours,
    extend_neighbours,
    open_neighbours,
    save_neighbours,
    similarity,
)
from hymirec.recommender.neighbours_fit import fit_neighbours

ITEMS = 60


def sequences_of(histories: list[list[int]]) -> Sequences:
    """One user each; the last item is the test target and the one before it the validation target."""
    offsets = np.concatenate([[0], np.cumsum([len(own) for own in histories])])
    items = np.concatenate(histories).astype(np.int32)
    ts = np.concatenate([1_000 * np.arange(len(own)) for own in histories]).astype(np.int64)
    train = np.array([len(own) - 2 for own in histories], np.int32)
    return Sequences(pa.array(range(len(histories))), offsets, items, ts, train, train + 1)


def test_similarities_by_hand() -> None:
    """0 then 1 then 2, and 0 then 1 again; items 3 and 4 are targets and no training events."""
    table = similarity(sequences_of([[0, 1, 2, 3, 4], [0, 1, 3, 4]]), 5, most=50).toarray()
    n = [2, 2, 1]
    expected = np.zeros((5, 5))
    for i, j, count in ((0, 1, 2), (0, 2, 1 / 2), (1, 2, 1)):
        norm = np.sqrt(n[i] * n[j]) + SHRINK
        expected[i, j], expected[j, i] = count / norm, BACKWARD * count / norm
    # The largest is 1, and halves of it are exact to eleven bits.
    np.testing.assert_allclose(table, expected / expected.max(), rtol=1e-3)


def test_only_the_nearest_are_kept() -> None:
    rng = np.random.default_rng(0)
    histories = sequences_of([rng.integers(0, ITEMS, 30).tolist() for _ in range(40)])
    whole, few = (similarity(histories, ITEMS, most).toarray() for most in (ITEMS, 7))
    assert (np.count_nonzero(few, axis=1) == 7).all()
    for row, kept in zip(whole, few, strict=True):
        assert kept[kept > 0].min() >= np.sort(row)[-7]
    assert np.diagonal(whole).tolist() == [0] * ITEMS


def test_a_bonus_by_hand() -> None:
    """The newest item weighs 1 and the one before it .5; nothing for an empty history or an item without neighbours."""
    table = sp.csr_matrix(np.array([[0, 1, 1], [1, 0, 0], [0, 0, 0]], np.float32))
    own = Neighbours(0.1, 0.5, table)
    found = own.bonus([np.array([1, 0]), np.array([], np.int64), np.array([2])]).toarray()
    weights = np.array([0.5, 1.0, 1.0]) / 2.5
    np.testing.assert_allclose(found, [0.1 * np.log1p(100 * weights), [0, 0, 0], [0, 0, 0]], rtol=1e-5)


def test_what_is_older_than_the_reach_is_not_read() -> None:
    table = sp.csr_matrix(np.eye(3, k=1, dtype=np.float32))
    own = Neighbours(0.1, 1.0, table)
    old = np.array([0] + [1] * REACH)
    assert own.bonus([old]).toarray()[0, 1] == 0
    assert own.bonus([old[:-1]]).toarray()[0, 1] > 0


def walks(users: int) -> Sequences:
    """After item i comes i + 7."""
    rng = np.random.default_rng(1)
    starts, steps = rng.integers(0, ITEMS, users), np.arange(8)
    return sequences_of(((starts[:, None] + 7 * steps) % ITEMS).tolist())


def test_neighbours_are_found_where_items_follow_each_other(tmp_path: Path) -> None:
    """And survive the disk, and items added at the end."""
    sequences, model, evaluation = walks(150), Indifferent(ITEMS), EvaluationConfig(mask_history=False)
    before = evaluate_model(model, sequences, "test", evaluation)
    model.neighbours, about = fit_neighbours(model, sequences, NeighboursConfig(), evaluation)
    assert model.neighbours.weight > 0
    assert about["validation_ndcg@10"] > about["validation_ndcg@10_without"] + 0.2
    after = evaluate_model(model, sequences, "test", evaluation)
    assert after.means["R@10"] > max(0.9, before.means["R@10"] + 0.2)
    assert after.settings == {"neighbours.weight": model.neighbours.weight, "neighbours.keep": model.neighbours.keep}
    save_neighbours(tmp_path, about, model.neighbours)
    again = open_neighbours(tmp_path)
    recent = [np.array([3, 10]), np.array([59])]
    assert (again.bonus(recent) != model.neighbours.bonus(recent)).nnz == 0
    extend_neighbours(tmp_path, tmp_path / "more", 2)
    more = open_neighbours(tmp_path / "more")
    longer = more.bonus([*recent, np.array([ITEMS + 1])]).toarray()
    np.testing.assert_array_equal(longer[:2, :ITEMS], again.bonus(recent).toarray())
    assert not longer[:, ITEMS:].any()
    assert not longer[2].any()


def test_a_gain_within_its_error_is_taken() -> None:
    """The trend's guard (see `choose_bonus`) would refuse this one."""
    anything = sequences_of(np.random.default_rng(11).integers(0, ITEMS, (150, 8)).tolist())
    found, about = fit_neighbours(Indifferent(ITEMS), anything, NeighboursConfig(), EvaluationConfig())
    assert 0 < about["validation_ndcg@10"] - about["validation_ndcg@10_without"] < about["standard_error"]
    assert found.weight > 0


class Knowing(Indifferent):
    """Answers with the item 7 after the last one."""

    def answer(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        last = batch["items"].gather(1, batch["mask"].sum(dim=1, keepdim=True) - 1).squeeze(1)
        return self.item_vectors()[(last + 7) % ITEMS][:, None]


@pytest.mark.parametrize(("model", "weights"), [(Knowing(ITEMS), NeighboursConfig().weights), (Indifferent(ITEMS), ())])
def test_no_bonus_where_nothing_is_to_gain(model: Recommender, weights: tuple[float, ...], tmp_path: Path) -> None:
    """Since the model knows, or since nothing is tried."""
    config = NeighboursConfig(weights=weights)
    found, about = fit_neighbours(model, walks(150), config, EvaluationConfig(mask_history=False))
    assert about["validation_ndcg@10"] == about["validation_ndcg@10_without"] == (1.0 if weights else 0.0)
    assert found == Neighbours()
    save_neighbours(tmp_path, about, found)
    assert open_neighbours(tmp_path) == Neighbours()
    assert not (tmp_path / TABLE_FILE).exists()


@pytest.mark.parametrize("value", [{"weights": [0]}, {"keep": [1.5]}, {"keep": []}, {"most": 0}])
def test_what_cannot_be_is_refused(value: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="neighbours"):
        parse(PipelineConfig, {"recommender": {"neighbours": value}})

"""ItemKNN, EASE and tuned popularity on data whose answer is known, and the search that tunes them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from hymirec.catalog.normalise import Tables
from hymirec.catalog.prepare import prepare
from hymirec.catalog.prepared import Catalog, Sequences
from hymirec.config import DataConfig, EvaluationConfig
from hymirec.errors import ModelError
from hymirec.evaluation import evaluate_baseline
from hymirec.recommender.baselines import EASE, Baseline, History, ItemKNN, RecentPopularity
from hymirec.recommender.baselines.ease import item_weights
from hymirec.recommender.baselines.tuning import Settings, Validation, search
from hymirec.recommender.baselines.weights import training_rows, weighted_rows

DAY = 86_400
Data = tuple[Sequences, Catalog]
Event = tuple[int, float]
"""Item, day."""

PLAIN_KNN = {
    "keep": (1.0,),
    "days": (0,),
    "trend": (0,),
    "trend_days": (30,),
    "window": (0,),
    "backward": (1,),
    "shrink": (0,),
    "alpha": (0.5,),
    "beta": (0,),
    "neighbours": (100,),
}
PLAIN_EASE = {"keep": (1.0,), "days": (0,), "l2": (1,), "run": (0,), "halflife": (0,)}


@pytest.fixture
def build(tmp_path: Path) -> Callable[..., Data]:
    def prepared(users: list[list[Event]], items: int, split: str = "leave-one-out") -> Data:
        """The last two events of each user are its validation and test targets."""
        rows = [(user, item, int(day * DAY)) for user, events in enumerate(users) for item, day in events]
        user, item, ts = (list(column) for column in zip(*rows, strict=True))
        catalog = pa.table({"item": list(range(items)), "title": [f"item {i}" for i in range(items)]})
        config = DataConfig(min_user_interactions=3, repeats="keep", split=split)
        prepare(Tables(catalog, pa.table({"user": user, "item": item, "ts": ts})), config, tmp_path)
        return Sequences.open(tmp_path), Catalog.open(tmp_path)

    return prepared


def days(items: list[int], targets: tuple[int, int] = (0, 0), start: float = 0) -> list[Event]:
    """One event a day, then two targets."""
    return [(item, start + step) for step, item in enumerate([*items, *targets])]


def history(items: list[int], at: list[float] | None = None) -> History:
    ts = np.array([day * DAY for day in (at or range(len(items)))], np.int64)
    return History(np.array(items, np.int32), ts, 1000 * DAY)


def random_users(users: int, items: int, seed: int = 0) -> list[list[Event]]:
    rng = np.random.default_rng(seed)
    return [
        [(int(rng.zipf(1.5)) % items, float(day)) for day in np.sort(rng.uniform(0, 400, rng.integers(4, 30)))]
        for _ in range(users)
    ]


def knn(**space: float) -> ItemKNN:
    return ItemKNN(trials=1, space={**PLAIN_KNN, **{key: (value,) for key, value in space.items()}})


def ease(**space: float) -> EASE:
    return EASE(trials=1, space={**PLAIN_EASE, **{key: (value,) for key, value in space.items()}})


def order(model: Baseline, items: list[int], at: list[float] | None = None) -> list[int]:
    """Items that are not in the history, best first."""
    scores = model.score([history(items, at)])[0]
    return [int(item) for item in np.argsort(-scores, kind="stable") if item not in items]


@pytest.mark.parametrize("model", [knn(), knn(window=1), ease(), ease(run=2)])
def test_an_item_leads_to_the_one_it_is_bought_with(model: Baseline, build: Callable[..., Data]) -> None:
    model.fit(*build([days([2 * pair, 2 * pair + 1]) for pair in (0, 1, 2) for _ in range(4)], 6))
    assert [order(model, [item])[0] for item in range(6)] == [1, 0, 3, 2, 5, 4]


@pytest.mark.parametrize("make", [knn, ease])
def test_recency_of_the_history_flips_the_answer(make: Callable[..., Baseline], build: Callable[..., Data]) -> None:
    data = build([days([2 * pair, 2 * pair + 1]) for pair in (0, 1) for _ in range(4)], 4)
    by_place, by_time = make(keep=0.5), make(days=1)
    by_place.fit(*data)
    by_time.fit(*data)
    assert order(by_place, [0, 2]) == [3, 1]
    assert order(by_place, [2, 0]) == [1, 3]
    assert order(by_time, [0, 2], at=[0, 3]) == [3, 1]
    # Events of one moment weigh the same, however far back in the list.
    np.testing.assert_allclose(*by_time.score([history([0, 2], at=[3, 3])])[0, [1, 3]])


def test_weights_of_a_history_by_hand() -> None:
    rows = weighted_rows([history([]), history([1, 0, 1], at=[0, 2, 2])], 3, keep=0.5, days=2)
    np.testing.assert_allclose(rows[:1].toarray(), 0)
    np.testing.assert_allclose(rows[1].data, [0.25 * np.exp(-1), 0.5, 1], rtol=1e-6)
    assert rows[1].indices.tolist() == [1, 0, 1]


def test_shrink_removes_chance_pairs(build: Callable[..., Data]) -> None:
    # Item 2 has one user, who also has item 0: cosine 1 / sqrt(10). Item 1 shares 3 of its 10 users with item 0: .3.
    users = [days([0, 1])] * 3 + [days([0, 2])] + [days([0, 3])] * 6 + [days([1, 3])] * 7
    data = build(users, 4)
    plain, shrunk = knn(), knn(shrink=5)
    plain.fit(*data)
    shrunk.fit(*data)
    np.testing.assert_allclose(plain.score([history([0])])[0, [1, 2]], [0.3, 10**-0.5], rtol=1e-6)
    np.testing.assert_allclose(shrunk.score([history([0])])[0, [1, 2]], [3 / 15, 1 / (10**0.5 + 5)], rtol=1e-6)


def test_exponents_of_popularity_by_hand(build: Callable[..., Data]) -> None:
    model = knn(alpha=0.75, beta=0.5)
    model.fit(*build([days([0, 1])] * 4 + [days([1, 2])] * 5, 3))
    expected = 4 / (4**0.75 * 9**0.25) / 9**0.5
    assert model.score([history([0])])[0, 1] == pytest.approx(expected, rel=1e-6)


def test_a_window_knows_what_comes_next(build: Callable[..., Data]) -> None:
    data = build([days([0, 1, 2])] * 3, 4)
    forward, both = knn(window=1, backward=0), knn(window=1, backward=1)
    forward.fit(*data)
    both.fit(*data)
    assert forward.score([history([1])])[0, 2] == 1
    assert (forward.score([history([1])])[0, [0, 1, 3]] < 0).all()
    np.testing.assert_allclose(both.score([history([1])])[0, [0, 2]], 1)


def test_the_trend_of_the_day_is_blended_in_by_shares(build: Callable[..., Data]) -> None:
    data = build([days([0, 1, 2])] * 2 + [days([0, 1])] * 2 + [days([3, 3, 2], start=500)], 5)
    alone, blended = knn(), knn(trend=0.5, trend_days=2)
    alone.fit(*data)
    blended.fit(*data)
    request = history([0])._replace(now=503 * DAY)
    shares = np.maximum(alone.score([request])[0], 0)
    # Items 3 and 2 have one event each within two days of the request, item 3 has a second one before.
    np.testing.assert_allclose(
        blended.score([request])[0, 1:4], (shares / shares.sum() + [0, 0, 0.25, 0.25, 0])[1:4], rtol=1e-6
    )
    # Nobody did anything for 500 days: the neighbours alone; and without a history the trend alone.
    assert order(blended, [0]) == order(alone, [0])
    assert np.argsort(-blended.score([history([])._replace(now=503 * DAY)])[0], kind="stable")[:2].tolist() == [2, 3]


def test_only_the_nearest_neighbours_are_kept_and_ties_go_to_the_lower_index(build: Callable[..., Data]) -> None:
    model = knn(neighbours=2)
    model.fit(*build([days([0, 1, 2, 3])] * 2 + [days([0, 3])], 4))
    scores = model.score([history([0])])[0]
    assert (scores[[3, 1]] > 0).all()
    assert scores[2] < 0


def test_ease_is_the_closed_form(build: Callable[..., Data]) -> None:
    sequences, catalog = build(random_users(40, 12), 12)
    model = ease(l2=3)
    model.fit(sequences, catalog)
    x = np.zeros((len(sequences), 12))
    for user in range(len(sequences)):
        x[user, sequences.targets(user, "train")[0]] = 1
    inverse = np.linalg.inv(x.T @ x + 3 * np.eye(12))
    expected = np.eye(12) - inverse / np.diag(inverse)
    np.testing.assert_allclose(np.diag(expected), 0, atol=1e-12)
    weights = item_weights((x.T @ x).astype(np.float32), 3)
    np.testing.assert_allclose(weights, expected, atol=2e-6)
    assert (np.diag(weights) == 0).all()
    warm = catalog.popularity > 0
    np.testing.assert_allclose(model.score([history([0, 3, 5])])[0, warm], expected[[0, 3, 5]].sum(0)[warm], atol=5e-6)


def test_rows_of_a_run_by_hand(build: Callable[..., Data]) -> None:
    sequences, _ = build([days([0, 1, 2, 2, 3]), days([3, 0])], 4)
    rows, last = training_rows(sequences, 4, run=2)
    assert rows.toarray().tolist() == [[1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1], [1, 0, 0, 1]]
    assert (last / DAY).tolist() == [1, 3, 4, 1]


def test_newer_rows_weigh_more_with_a_halflife(build: Callable[..., Data]) -> None:
    data = build([days([0, 1])] * 3 + [days([0, 2], start=300)] * 3, 3)
    plain, recent = ease(), ease(halflife=90)
    plain.fit(*data)
    recent.fit(*data)
    first, second = plain.score([history([0])])[0, 1:]
    assert first == pytest.approx(second)
    assert order(recent, [0]) == [2, 1]


@pytest.mark.parametrize("model", [ItemKNN(trials=4), EASE(trials=4), RecentPopularity(None)])
def test_scores_do_not_depend_on_the_batch(model: Baseline, build: Callable[..., Data]) -> None:
    model.fit(*build(random_users(50, 20), 22))
    rng = np.random.default_rng(1)
    histories = [
        History(rng.integers(0, 22, size).astype(np.int32), np.sort(rng.integers(0, 400 * DAY, size)), int(now) * DAY)
        for size, now in zip(rng.integers(0, 40, 30), rng.integers(1, 500, 30), strict=True)
    ]
    alone = np.concatenate([model.score([one]) for one in histories])
    assert np.array_equal(model.score(histories), alone)
    assert np.array_equal(model.score(histories[::-1]), alone[::-1])


@pytest.mark.parametrize("model", [knn(), knn(window=3), ease()])
def test_cold_items_come_last_and_nothing_is_nan(model: Baseline, build: Callable[..., Data]) -> None:
    # Item 4 is a target alone, item 5 is nowhere.
    users = [days([0, 1], (4, 4))] * 3 + [days([2, 3], (4, 4))] * 2 + [days([0, 2, 1], (4, 4))]
    model.fit(*build(users, 6))
    scores = model.score([history([]), history([5]), history([4, 5]), history([0, 4]), history([3])])
    assert np.isfinite(scores).all()
    assert (scores[:, 4:].max(axis=1) < scores[:, :4].min(axis=1)).all()
    # Without anything to go by, popularity decides: counts are 4, 4, 3, 2.
    assert np.argsort(-scores[0], kind="stable").tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("mask_history", [True, False])
@pytest.mark.parametrize("split", ["leave-one-out", "global-time"])
def test_tuning_judges_as_the_evaluation_does(split: str, mask_history: bool, build: Callable[..., Data]) -> None:
    sequences, catalog = build(random_users(60, 25), 25, split)
    model = knn()
    model.fit(sequences, catalog)
    config = EvaluationConfig(ks=(10,), mask_history=mask_history, bootstrap=0)
    expected = evaluate_baseline(model, sequences, catalog, "validation", config).means["N@10"]
    assert 0 < expected < 1
    assert Validation(sequences, mask_history).ndcg(model.score) == pytest.approx(expected)


def test_the_search_finds_the_planted_best_within_its_budget() -> None:
    judged: list[tuple[float, ...]] = []

    def judge(settings: Settings) -> float:
        judged.append(tuple(settings.values()))
        return -abs(settings["a"] - 7) - abs(settings["b"] - 2) * 0.1 - settings["a"] * settings["b"] * 0.01

    space = {"a": range(10), "b": range(10)}
    tuned = search(space, judge, trials=60, draws=5)
    assert tuned.settings == {"a": 7, "b": 2}
    assert tuned.report() == {"a": 7, "b": 2, "trials": len(judged), "validation_ndcg@10": -0.14}
    assert len(judged) == len(set(judged)) < 60
    judged.clear()
    assert search(space, judge, trials=8, draws=5).trials == len(judged) == 8


def test_item_knn_tunes_itself_to_successions(build: Callable[..., Data]) -> None:
    # The next item is always the last one's successor on a ring of 20; users start anywhere, go 3 to 8 steps.
    rng = np.random.default_rng(0)
    walks = [(int(rng.integers(20)), int(rng.integers(3, 9))) for _ in range(80)]
    users = [[((start + step) % 20, step) for step in range(length + 2)] for start, length in walks]
    space = {**PLAIN_KNN, "keep": (1.0, 0.5), "window": (0, 1), "backward": (1, 0)}
    model = ItemKNN(trials=30, mask_history=False, space=space)
    model.fit(*build(users, 20))
    assert {key: model.settings[key] for key in ("window", "backward")} == {"window": 1, "backward": 0}
    assert model.settings["validation_ndcg@10"] == 1
    assert model.settings["trials"] <= 30


def test_ease_tunes_itself_to_recent_items(build: Callable[..., Data]) -> None:
    # Pairs of items in random order, whose halves stand beside each other: the partner of the last item is next.
    rng = np.random.default_rng(0)
    users = []
    for _ in range(60):
        items = [2 * pair + half for pair in rng.permutation(12)[:5] for half in rng.permutation(2)]
        users.append(days(items[:-1], (items[-1], 0)))
    model = EASE(space={"keep": (1.0, 0.5), "run": (0, 2)})
    model.fit(*build(users, 24))
    assert model.settings["keep"] == 0.5
    assert model.settings["validation_ndcg@10"] > 0.9


def test_recent_popularity_finds_its_window(build: Callable[..., Data]) -> None:
    # Everyone takes the item of the day, and the day before a request three users did.
    users = [[(day % 30 + 10, day + 0.1 * step) for step in range(3)] for day in range(60) for _ in range(3)]
    model = RecentPopularity(None, mask_history=False)
    model.fit(*build(users, 40))
    assert model.settings["days"] == 1
    assert model.settings["trials"] == 6
    assert model.name == "popularity, last 1 days"


def test_recent_popularity_counts_each_request_on_its_own(build: Callable[..., Data]) -> None:
    sequences, catalog = build(random_users(40, 15), 15)
    model = RecentPopularity(30)
    model.fit(sequences, catalog)
    _, items, ts = sequences.training_events()
    requests = [History(items[:0], ts[:0], day * DAY) for day in (200, 3, 399, 90, 90, 2000)]
    for scores, request in zip(model.score(requests), requests, strict=True):
        inside = (ts >= request.now - 30 * DAY) & (ts < request.now)
        assert np.floor(scores).tolist() == np.bincount(items[inside], minlength=15).tolist()


@pytest.mark.parametrize("make", [lambda: ItemKNN(trials=12), lambda: EASE(trials=8), lambda: RecentPopularity(None)])
def test_fitting_twice_gives_the_same(make: Callable[[], Baseline], build: Callable[..., Data]) -> None:
    data = build(random_users(60, 25), 25)
    first, second = make(), make()
    first.fit(*data)
    second.fit(*data)
    assert first.settings == second.settings
    assert np.array_equal(first.score([history([1, 2, 3])]), second.score([history([1, 2, 3])]))


def test_ease_refuses_a_catalogue_that_is_too_large(build: Callable[..., Data]) -> None:
    sequences, catalog = build(random_users(5, 5), 5)
    with pytest.raises(ModelError, match=r"20,001 have training events.*ItemKNN"):
        EASE().fit(sequences, replace(catalog, popularity=np.ones(20_001, np.int64)))


@pytest.mark.parametrize("model", [ItemKNN(), EASE()])
def test_scoring_before_fitting_is_refused(model: Baseline) -> None:
    with pytest.raises(ModelError, match="call fit"):
        model.score([history([0])])

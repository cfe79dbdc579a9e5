"""Recommendations without a server: what a request gets, and that it is what was evaluated."""

from __future__ import annotations

import dataclasses
import itertools
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_run import ITEMS, RECENT, build_tiny_run, neighboured, tiny_config, trending

from hymirec import HyMiRec
from hymirec.answers import Query
from hymirec.catalog.keys import item_keys
from hymirec.catalog.prepared import Sequences
from hymirec.errors import BundleMismatchError, RequestError
from hymirec.inference import Recommendations, mean_cosines
from hymirec.recommender.requests import split_ranks, users_with_targets
from hymirec.recommender.trend import Trend

NOW = 1_800_000_000
DAY = 86_400


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_run(tmp_path_factory.mktemp("inference"))


@pytest.fixture(scope="module")
def model(run_dir: Path) -> HyMiRec:
    return HyMiRec.from_pretrained(run_dir / "bundle")


def ids(found: Recommendations) -> list[str | int]:
    return [item.item_id for item in found.items]


def some(model: HyMiRec, count: int, start: int = 0) -> list[tuple[str | int, int]]:
    """`count` different items, one a day, the last one yesterday."""
    return [(model.bundle.catalog.item_id(start + i), NOW - (count - i) * DAY) for i in range(count)]


def test_an_answer_names_items_scores_interests_titles_and_the_bundle(model: HyMiRec) -> None:
    found = model.recommend(some(model, 10), k=7, now=NOW)
    assert (len(found.items), found.reason, found.degraded, found.unknown_items) == (7, "full", False, 0)
    assert found.bundle == model.bundle_id
    scores = [item.score for item in found.items]
    assert scores == sorted(scores, reverse=True)
    catalog = model.bundle.catalog
    for item in found.items:
        index = catalog.index_of(item.item_id)
        assert index is not None
        assert item.title == catalog.titles[index].as_py() != ""
        assert item.interest in range(model.bundle.model.settings.dmil.interests)


def test_the_api_answers_what_was_evaluated(model: HyMiRec, run_dir: Path) -> None:
    sequences, config = Sequences.open(run_dir / "data"), tiny_config()
    users = users_with_targets(sequences, "test")
    for chosen, ranks, interests in split_ranks(model.bundle.model, sequences, "test", users, 32, mask_history=True):
        for user, own, expected in zip(chosen, ranks, interests.numpy(), strict=True):
            items, ts = sequences.history(int(user), "test")
            (target,), (now,) = sequences.targets(int(user), "test")
            history = [(model.bundle.catalog.item_id(int(i)), int(t)) for i, t in zip(items, ts, strict=True)]
            assert np.allclose(model.interests(history, now=int(now)), expected, atol=1e-5)
            found = model.recommend(history, k=ITEMS, now=int(now))
            place = ids(found).index(model.bundle.catalog.item_id(int(target)))
            assert abs(place - int(own[0])) <= 1  # scores nearer than rounding may change places
    assert config.evaluation.mask_history


@pytest.mark.parametrize("history", [[], ["no such item"], [("nor this", 5), "no such item"]])
def test_a_history_without_a_known_item_gets_popular_items(model: HyMiRec, history: list[object]) -> None:
    found = model.recommend(history, k=5, now=NOW)  # type: ignore[arg-type]
    popularity = model.bundle.catalog.popularity
    best = sorted(range(ITEMS), key=lambda i: (-popularity[i], i))[:5]
    assert ids(found) == [model.bundle.catalog.item_id(i) for i in best]
    assert (found.reason, found.degraded, found.unknown_items) == ("cold_start", False, len(history))
    assert found.items[0].score == 1.0
    assert found.items[0].interest is None


def test_unknown_items_are_skipped_and_counted(model: HyMiRec) -> None:
    history = some(model, 8)
    mixed = [*history[:4], ("discontinued", NOW - 5 * DAY), *history[4:], ("not yet", NOW - 1)]
    found = model.recommend(mixed, now=NOW)
    assert found.unknown_items == 2
    assert found.items == model.recommend(history, now=NOW).items


def test_more_than_the_catalogue_is_all_of_it(model: HyMiRec) -> None:
    history = some(model, 10)
    everything = model.recommend(history, k=10 * ITEMS, now=NOW, filter_seen=False)
    assert len(set(ids(everything))) == ITEMS
    unseen = model.recommend(history, k=10 * ITEMS, now=NOW)
    assert set(ids(unseen)) == set(ids(everything)) - {item for item, _ in history}
    popular = model.recommend([], k=10 * ITEMS, now=NOW, exclude=[history[0][0]])
    assert set(ids(popular)) == set(ids(everything)) - {history[0][0]}


def test_excluded_items_are_left_out_and_unknown_ones_do_not_matter(model: HyMiRec) -> None:
    history = some(model, 10)
    best = ids(model.recommend(history, k=20, now=NOW))
    found = model.recommend(history, k=10, now=NOW, exclude=[*best[:10], "no such item"])
    assert ids(found) == best[10:]


def test_the_order_of_a_history_is_its_time(model: HyMiRec) -> None:
    history = some(model, 12)
    assert model.recommend(history[::-1], now=NOW) == model.recommend(history, now=NOW)


def test_items_without_a_time_happen_now(model: HyMiRec) -> None:
    plain = [item for item, _ in some(model, 5)]
    assert model.recommend(plain, now=NOW) == model.recommend([(item, NOW) for item in plain], now=NOW)
    assert model.recommend(plain).reason == "full"


def test_what_lies_before_the_recent_items_counts(model: HyMiRec) -> None:
    recent = some(model, RECENT)
    long = [(item, at - 100 * DAY) for item, at in some(model, 20, start=50)]
    assert not np.array_equal(model.interests(recent, now=NOW), model.interests(long + recent, now=NOW))


def test_many_at_once_get_what_each_gets_alone(model: HyMiRec) -> None:
    histories = [some(model, n, start=n) for n in (0, 1, 3, RECENT, RECENT + 1, 30)] + [[("no such item", 4)]]
    times = [NOW + i for i in range(len(histories))]
    together = model.recommend_many(histories, k=ITEMS, now=times)
    for history, now, found in zip(histories, times, together, strict=True):
        alone = model.recommend(history, k=ITEMS, now=now)
        assert dataclasses.replace(found, items=[]) == dataclasses.replace(alone, items=[])
        a, b = ({item.item_id: item.score for item in result.items} for result in (found, alone))
        assert a.keys() == b.keys()
        assert np.allclose([a[item] for item in a], [b[item] for item in a], atol=1e-5)
    assert model.recommend_many([], k=3) == []
    with pytest.raises(RequestError, match="one for each of 7"):
        model.recommend_many(histories, now=[NOW])


def test_each_request_of_a_batch_keeps_its_options(model: HyMiRec) -> None:
    history = some(model, 20)
    keys, ts = item_keys(item for item, _ in history), np.array([at for _, at in history])
    best = model.recommend(history, k=20, now=NOW)
    hidden = item_keys(ids(best)[:3])
    plain = Query(keys, ts, 20, NOW, item_keys([]))
    options: list[dict[str, Any]] = [{}, {"k": 4}, {"exclude": hidden}, {"filter_seen": False}, {"now": NOW + 9 * DAY}]
    found = model.recommend_batch([dataclasses.replace(plain, **changes) for changes in options])
    assert ids(found[1]) == ids(best)[:4]
    assert ids(found[2])[:17] == ids(best)[3:]
    for changes, together in zip(options, found, strict=True):
        alone = model.recommend_batch([dataclasses.replace(plain, **changes)])[0]
        assert ids(together) == ids(alone)
        assert [i.score for i in together.items] == pytest.approx([i.score for i in alone.items], abs=1e-5)


def test_the_mean_cosine_of_interests_is_that_of_all_pairs() -> None:
    vectors = np.random.default_rng(0).normal(size=(5, 4, 8)).astype(np.float32)
    unit = vectors / np.linalg.norm(vectors, axis=2, keepdims=True)
    pairs = [[row[i] @ row[j] for i, j in itertools.combinations(range(4), 2)] for row in unit]
    assert np.allclose(mean_cosines(vectors), np.mean(pairs, axis=1), atol=1e-6)
    same = np.repeat(vectors[:, :1], 3, axis=1) * np.array([1.0, 0.5, 0.1], np.float32)[:, None]
    assert np.allclose(mean_cosines(same), 1.0, atol=1e-6)
    assert len(mean_cosines(vectors[:, :1])) == 0


def test_coarse_interests_that_were_kept_change_nothing(model: HyMiRec) -> None:
    history = some(model, 30)
    kept = model.coarse(history, now=NOW)
    # Coarse interests belong to the boundary between long and recent, not to the time of the request.
    later = NOW + 5 * DAY
    assert model.recommend(history, now=later, coarse=kept) == model.recommend(history, now=later)


def test_outdated_coarse_interests_are_computed_again_or_used_and_said_so(model: HyMiRec) -> None:
    history = some(model, 30)
    kept = model.coarse(history[:20], now=NOW)
    exact = model.recommend(history, now=NOW)
    assert model.recommend(history, now=NOW, coarse=kept) == exact
    keys, ts = item_keys(item for item, _ in history), np.array([at for _, at in history])
    stale = model.recommend_keys(keys, ts, 20, now=NOW, coarse=kept, stale_ok=True)
    assert (stale.reason, stale.degraded) == ("cached_coarse", True)
    fresh = model.recommend_keys(keys, ts, 20, now=NOW, coarse=model.coarse(history, now=NOW), stale_ok=True)
    assert fresh == exact


def test_a_long_history_of_the_same_length_and_boundary_is_another_one(model: HyMiRec) -> None:
    history = some(model, 30)
    other = [(model.bundle.catalog.item_id(140), history[0][1]), *history[1:]]
    kept = model.coarse(other, now=NOW)
    assert kept.source != model.coarse(history, now=NOW).source
    assert model.recommend(history, now=NOW, coarse=kept) == model.recommend(history, now=NOW)


def test_coarse_interests_of_another_bundle_are_refused(model: HyMiRec) -> None:
    history = some(model, 30)
    foreign = dataclasses.replace(model.coarse(history, now=NOW), bundle="0" * 64)
    with pytest.raises(BundleMismatchError, match="compute them again"):
        model.recommend(history, now=NOW, coarse=foreign)


@pytest.mark.parametrize("k", [0, -3, 2.5, True])
def test_an_impossible_k_is_refused(model: HyMiRec, k: int) -> None:
    for call in (lambda: model.recommend(some(model, 3), k=k), lambda: model.recommend([], k=k)):
        with pytest.raises(RequestError, match="k must be"):
            call()


@pytest.mark.parametrize(
    "history", ["one string", [None], [1.5], [True], [("a", "b")], [("a", -1)], [("a", 1 << 40)], [("a", 1, 2)]]
)
def test_what_is_no_history_is_refused(model: HyMiRec, history: object) -> None:
    with pytest.raises(RequestError, match="history is a list"):
        model.recommend(history)  # type: ignore[arg-type]


def test_an_impossible_time_or_exclusion_is_refused(model: HyMiRec) -> None:
    with pytest.raises(RequestError, match="now"):
        model.recommend([], now=-1)
    with pytest.raises(RequestError, match="list of item ids"):
        model.recommend([], exclude="item-000000001")


def test_threads_share_a_model(model: HyMiRec) -> None:
    histories = [some(model, n, start=n) for n in range(1, 25)]
    alone = [model.recommend(history, now=NOW) for history in histories]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda history: model.recommend(history, now=NOW), histories)) == alone


def test_integer_ids_come_back_as_integers_and_numpy_gives_them(tmp_path: Path) -> None:
    model = HyMiRec.from_pretrained(build_tiny_run(tmp_path, seed=1, string_ids=False) / "bundle")
    found = model.recommend([(3, NOW - 5), (8, NOW - 2)], k=4, now=NOW)
    assert all(isinstance(item.item_id, int) for item in found.items)
    assert model.recommend([("3", NOW - 5), ("8", NOW - 2)], k=4, now=NOW) == found
    pairs = np.array([[3, NOW - 5], [8, NOW - 2]])
    assert model.recommend([tuple(pair) for pair in pairs], k=4, now=NOW) == found


def with_trend(run_dir: Path, directory: Path, trend: Trend) -> HyMiRec:
    """The run's model with this trend."""
    return HyMiRec.from_pretrained(trending(run_dir, directory / "bundle", trend))


def test_what_is_popular_now_counts(run_dir: Path, tmp_path: Path) -> None:
    """Scores are the model's and a bonus by hand; after a long silence they are the model's alone.

    A count below 2^-10 is none: a bonus of .0003 here.
    """
    model = with_trend(run_dir, tmp_path / "without", Trend())
    trending = with_trend(run_dir, tmp_path / "with", Trend(0.3, 2.0))
    sequences = Sequences.open(run_dir / "data")
    end = int(sequences.ts.max()) + 1
    history = [(model.bundle.catalog.item_id(i), end - 100 + i) for i in range(9)]
    plain = {item.item_id: item.score for item in model.recommend(history, k=ITEMS, now=end).items}
    weights = 2.0 ** ((sequences.ts - end) / (2 * DAY))
    bonus = 0.3 * np.log1p(np.bincount(sequences.items, weights, minlength=ITEMS))
    found = trending.recommend(history, k=ITEMS, now=end)
    assert len(found.items) == ITEMS - len(history)
    for item in found.items:
        index = trending.bundle.catalog.index_of(item.item_id)
        assert index is not None
        assert item.score == pytest.approx(plain[item.item_id] + bonus[index], abs=4e-4)
    assert ids(found) != list(plain)
    many = trending.recommend_many([history, history], k=5, now=[end, end + 365 * DAY])
    assert many[0].items == trending.recommend(history, k=5, now=end).items
    assert many[1].items == model.recommend(history, k=5, now=end + 365 * DAY).items


def test_neighbours_of_the_last_items_count(run_dir: Path, tmp_path: Path) -> None:
    """Scores are the model's and the bonus of the items that the LLM reads, beside a trend or alone."""
    sequences = Sequences.open(run_dir / "data")
    end = int(sequences.ts.max()) + 1
    for trend in (Trend(), Trend(0.3, 2.0)):
        place = tmp_path / f"{trend.weight}"
        plain = with_trend(run_dir, place, trend)
        own = HyMiRec.from_pretrained(neighboured(place / "bundle", run_dir, place / "neighboured", 0.2, 0.7))
        table = own.bundle.model.neighbours
        long = [(own.bundle.catalog.item_id(i), end - 100 + i) for i in range(RECENT + 5)]
        for history in (long, long[-3:]):
            before = {item.item_id: item.score for item in plain.recommend(history, k=ITEMS, now=end).items}
            recent = [own.bundle.catalog.index_of(item) for item, _ in history[-RECENT:]]
            bonus = table.bonus([np.array(recent)]).toarray()[0]
            assert bonus.max() > 0.2
            found = own.recommend(history, k=ITEMS, now=end)
            assert len(found.items) == ITEMS - len(history)
            for item in found.items:
                index = own.bundle.catalog.index_of(item.item_id)
                assert item.score == pytest.approx(before[item.item_id] + bonus[index], abs=1e-5)
            assert ids(found) != list(before)
        many = own.recommend_many([long, long[-3:]], k=5, now=end)
        assert many[0].items == own.recommend(long, k=5, now=end).items


def test_events_are_observed(run_dir: Path, tmp_path: Path) -> None:
    """The least likely item becomes the first when all take it; unknown keys and counted events change nothing."""
    own = with_trend(run_dir, tmp_path, Trend(0.3, 2.0))
    end = int(Sequences.open(run_dir / "data").ts.max()) + 1
    history = [(own.bundle.catalog.item_id(i), end - 100 + i) for i in range(9)]
    before = own.recommend(history, k=ITEMS, now=end)
    last = before.items[-1]
    own.observe(item_keys(["no such item"] * 1000), np.full(1000, end))
    own.observe(item_keys([last.item_id] * 1000), np.full(1000, end - 1))
    assert own.recommend(history, k=ITEMS, now=end) == before
    own.observe(item_keys([last.item_id] * 1000), np.full(1000, end))
    assert own.recommend(history, k=1, now=end + 10).items[0].item_id == last.item_id


def test_newcomers_get_what_is_popular_now(run_dir: Path, tmp_path: Path) -> None:
    """First what everyone takes at that time, then the most popular of all time, each once."""
    own = with_trend(run_dir, tmp_path, Trend(0.3, 2.0))
    end = int(Sequences.open(run_dir / "data").ts.max()) + 1
    rare, rarer = own.bundle.popular[-2:].tolist()
    own.observe(item_keys([own.bundle.catalog.item_id(i) for i in [rare] * 900 + [rarer] * 800]), np.full(1700, end))
    found = own.recommend([], k=10 * ITEMS, now=end + 1)
    places = [own.bundle.catalog.index_of(item) for item in ids(found)]
    assert places[:2] == [rare, rarer]
    assert sorted(places) == list(range(ITEMS))
    scores = [item.score for item in found.items]
    assert scores == sorted(scores, reverse=True)
    assert scores[0] == 1.0
    without = own.recommend([], k=3, now=end + 1, exclude=[own.bundle.catalog.item_id(rare)])
    assert own.bundle.catalog.index_of(without.items[0].item_id) == rarer
    later = own.recommend([], k=5, now=end + 365 * DAY)
    assert [own.bundle.catalog.index_of(item) for item in ids(later)] == own.bundle.popular[:5].tolist()

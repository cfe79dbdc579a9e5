from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from service_kit import BASE_TS, LocalService, event

from hymirec import HyMiRec
from hymirec.errors import RequestError
from hymirec.service.explain import project

NOW = BASE_TS + 86_400


@pytest.fixture(scope="module")
def model(bundle: Path) -> HyMiRec:
    return HyMiRec.from_pretrained(bundle)


def test_an_explanation_has_the_recommended_items_and_what_the_library_says_of_them(
    service: LocalService, model: HyMiRec
) -> None:
    catalog = model.bundle.catalog
    ids = [str(catalog.item_id(i)) for i in (3, 5, 7, 5, 9)]
    history = [(item, BASE_TS + 60 * i) for i, item in enumerate(ids)]
    body = {"history": [*history, ("unheard of", BASE_TS)], "k": 7, "now": NOW, "exclude": [ids[0]]}
    reply = service.call("POST", "/v1/explain", json=body | {"nearest": 2, "finds": 3}).json()
    plain = service.recommend(**body)
    assert [{name: item[name] for name in plain["items"][0]} for item in reply["items"]] == plain["items"]
    assert (reply["bundle"], reply["reason"], reply["unknown_items"]) == (model.bundle_id, "full", 1)
    # Each different item once, where it was last.
    assert [(past["item_id"], past["ts"]) for past in reply["history"]] == [
        (ids[i], BASE_TS + 60 * i) for i in (0, 2, 3, 4)
    ]
    interests = model.interests(history, now=NOW)
    assert [interest["number"] for interest in reply["interests"]] == list(range(len(interests)))
    for interest, vector in zip(reply["interests"], interests, strict=True):
        assert interest["strength"] == pytest.approx(float(np.linalg.norm(vector)), abs=1e-5)
        cosines = model.bundle.index.vectors(np.array([3, 5, 7, 9])) @ vector / np.linalg.norm(vector)
        best = sorted(zip(cosines.tolist(), (3, 5, 7, 9), strict=True), reverse=True)[:2]
        assert [near["item_id"] for near in interest["nearest"]] == [str(catalog.item_id(i)) for _, i in best]
        assert [near["cosine"] for near in interest["nearest"]] == pytest.approx(
            [cosine for cosine, _ in best], abs=1e-5
        )
        cosines = model.bundle.index.vectors(np.arange(catalog.size)) @ vector / np.linalg.norm(vector)
        cosines[[3, 5, 7, 9]] = -np.inf
        alone = np.argsort(-cosines, kind="stable")[:3]
        assert [found["item_id"] for found in interest["finds"]] == [str(catalog.item_id(int(i))) for i in alone]
        assert [found["title"] for found in interest["finds"]] == [catalog.titles[int(i)].as_py() for i in alone]
        assert [found["cosine"] for found in interest["finds"]] == pytest.approx(cosines[alone].tolist(), abs=1e-5)
    for item in reply["items"]:
        index = catalog.index_of(item["item_id"])
        assert index is not None
        cosine = float(model.bundle.index.vectors(np.array([index]))[0] @ interests[item["interest"]])
        assert item["similarity"] == pytest.approx(cosine, abs=1e-5)
        assert item["similarity"] + item["popular_now"] == pytest.approx(item["score"], abs=1e-5)


def test_an_interest_finds_items_of_the_history_again_when_they_are_not_filtered(
    service: LocalService, model: HyMiRec
) -> None:
    ids = [str(model.bundle.catalog.item_id(i)) for i in range(model.bundle.catalog.size - 1)]
    body = {"history": ids, "k": 1, "finds": 50}
    for filtered, most in ((True, 1), (False, 50)):
        reply = service.call("POST", "/v1/explain", json=body | {"filter_seen": filtered}).json()
        assert {len(interest["finds"]) for interest in reply["interests"]} == {most}
    reply = service.call("POST", "/v1/explain", json=body | {"finds": 0}).json()
    assert [interest["finds"] for interest in reply["interests"]] == [[]] * len(reply["interests"])


def test_each_interest_chooses_when_it_is_asked_to(service: LocalService, model: HyMiRec) -> None:
    history = [(str(model.bundle.catalog.item_id(i)), BASE_TS + 60 * i) for i in (3, 5, 7, 9)]
    body = {"history": history, "k": 8, "now": NOW}
    counts = []
    for share in (0, 1, 4):
        items = service.recommend(**body, per_interest=share)["items"]
        counts.append([sum(item["interest"] == number for item in items) for number in range(2)])
    assert counts[-1] == [4, 4] != counts[0]
    assert [item["score"] for item in items] == sorted((item["score"] for item in items), reverse=True)
    explained = service.call("POST", "/v1/explain", json=body | {"per_interest": 4}).json()["items"]
    assert [(item["item_id"], item["interest"]) for item in explained] == [
        (item["item_id"], item["interest"]) for item in items
    ]
    library = model.recommend(history, 8, now=NOW, per_interest=4)
    assert [str(item.item_id) for item in library.items] == [item["item_id"] for item in items]
    assert service.call("POST", "/v1/recommend", json=body | {"per_interest": -1}).status_code == 422
    with pytest.raises(RequestError, match="per_interest must be at least 0"):
        model.recommend(history, 8, now=NOW, per_interest=-1)


def test_nobody_and_strangers_get_popular_items_without_interests(service: LocalService) -> None:
    for who in ({"user_id": "nobody at all"}, {"history": ["unheard of"]}):
        reply = service.call("POST", "/v1/explain", json={**who, "k": 3}).json()
        assert (reply["reason"], reply["interests"], reply["history"]) == ("cold_start", [], [])
        assert [item["interest"] for item in reply["items"]] == [None] * 3
        assert {item["similarity"] for item in reply["items"]} == {None}


def test_an_explanation_waits_for_the_newest_event_and_says_when_it_did_not_come(
    service: LocalService, model: HyMiRec
) -> None:
    item = str(model.bundle.catalog.item_id(4))
    service.post(event(0, "waits", item))
    reply = service.call("POST", "/v1/explain", json={"user_id": "waits", "min_ts": BASE_TS}).json()
    assert (reply["reason"], reply["degraded"]) == ("full", False)
    assert [past["item_id"] for past in reply["history"]] == [item]
    late = service.call("POST", "/v1/explain", json={"user_id": "waits", "min_ts": BASE_TS + 1_000}).json()
    assert (late["reason"], late["degraded"]) == ("behind", True)
    assert late["as_of"]["ts"] == BASE_TS


@pytest.mark.parametrize(
    "body", [{}, {"history": [], "nearest": 51}, {"history": [], "finds": 51}, {"history": [], "k": 0}]
)
def test_a_wrong_question_is_refused(service: LocalService, body: dict[str, object]) -> None:
    assert service.call("POST", "/v1/explain", json=body).status_code == 422


def test_a_map_keeps_two_dimensions_whole_and_says_what_it_loses() -> None:
    flat = (
        np.random.default_rng(0).normal(size=(9, 2)) @ np.linalg.qr(np.random.default_rng(1).normal(size=(8, 8)))[0][:2]
    )
    spots, share = project(flat.astype(np.float32))
    assert share == pytest.approx(1)
    places = np.array(spots)
    assert np.abs(places).max() == 1
    given = np.linalg.norm(flat[:, None] - flat[None], axis=2)
    shown = np.linalg.norm(places[:, None] - places[None], axis=2)
    assert shown[given > 0] / given[given > 0] == pytest.approx((shown[0, 1] / given[0, 1]).repeat(72), rel=1e-4)
    assert project(np.eye(5, dtype=np.float32))[1] == pytest.approx(0.5)
    assert project(np.ones((3, 4), np.float32)) == ([(0.0, 0.0)] * 3, 1.0)
    assert project(np.empty((0, 4), np.float32)) == ([], 1.0)

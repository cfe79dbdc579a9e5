"""The HTTP contract, without Ray: real ranker, writer, store and log."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from patience import until
from service_kit import BASE_TS, LocalService, another_release, event, service_config

from hymirec import HyMiRec
from hymirec.artifacts import read_manifest
from hymirec.config import LimitsConfig

NOW = BASE_TS + 1_000
PROBLEM = "application/problem+json"


@pytest.fixture(scope="module")
def model(bundle: Path) -> HyMiRec:
    return HyMiRec.from_pretrained(bundle)


@pytest.fixture(scope="module")
def items(model: HyMiRec) -> list[str]:
    return [str(model.bundle.catalog.item_id(i)) for i in range(model.bundle.catalog.size)]


def refused(service: LocalService, status: int, body: Any, path: str = "/v1/recommend") -> str:
    """The detail of a problem."""
    content = body if isinstance(body, bytes) else None
    reply = service.call("POST", path, content=content, json=None if content is not None else body)
    assert (reply.status_code, reply.headers["content-type"]) == (status, PROBLEM), reply.text
    found = reply.json()
    assert found["status"] == status
    assert found["title"]
    detail: str = found["detail"]
    return detail


def test_an_unknown_user_gets_popular_items(service: LocalService, model: HyMiRec) -> None:
    reply = service.recommend(user_id="nobody", k=4)
    assert (reply["reason"], reply["degraded"]) == ("cold_start", False)
    assert [item["item_id"] for item in reply["items"]] == [i.item_id for i in model.recommend([], k=4).items]
    assert reply["as_of"]["ts"] is None
    assert service.recommend(history=[])["reason"] == "cold_start"
    assert service.recommend(history=["no such item"])["unknown_items"] == 1


def test_http_and_python_answer_the_same(service: LocalService, model: HyMiRec, items: list[str]) -> None:
    history = [[item, BASE_TS + 86_400 * i] for i, item in enumerate(items[:30])]
    now = BASE_TS + 86_400 * 40
    reply = service.recommend(history=history, k=15, now=now, exclude=[items[50]])
    found = model.recommend([(i, t) for i, t in history], k=15, now=now, exclude=[items[50]])
    assert [(i["item_id"], i["score"], i["interest"], i["title"]) for i in reply["items"]] == [
        (i.item_id, i.score, i.interest, i.title) for i in found.items
    ]
    assert reply["bundle"] == model.bundle_id
    plain = service.recommend(history=items[:8], now=now)
    assert [i["item_id"] for i in plain["items"]] == [i.item_id for i in model.recommend(items[:8], now=now).items]


def test_events_move_recommendations_and_a_user_gets_what_the_same_history_gets(
    service: LocalService, model: HyMiRec, items: list[str]
) -> None:
    before = service.recommend(user_id="bob", k=10, now=NOW)
    service.post(*(event(i, "bob", item) for i, item in enumerate(items[:12])))
    found = service.history("bob", 12)
    assert [e["item_id"] for e in found["events"]] == items[:12]
    assert found["events"][0] | {"title": ""} == {
        "item_id": items[0],
        "title": "",
        "ts": BASE_TS,
        "action": "click",
    }
    assert found["as_of"]["ts"] == BASE_TS + 11
    # Offsets are what the answer has seen at least: they may be behind it for a moment.
    until(lambda: sum(service.history("bob", 12)["as_of"]["offsets"].values()) >= 12)
    after = service.recommend(user_id="bob", k=10, now=NOW)
    assert (after["reason"], after["as_of"]["ts"]) == ("full", BASE_TS + 11)
    assert after["items"] != before["items"]
    same = model.recommend([(item, BASE_TS + i) for i, item in enumerate(items[:12])], k=10, now=NOW)
    assert [(i["item_id"], i["score"]) for i in after["items"]] == [(i.item_id, i.score) for i in same.items]
    assert not {i["item_id"] for i in after["items"]} & set(items[:12])


def test_an_event_that_is_posted_twice_counts_once_and_numbers_are_ids_too(service: LocalService) -> None:
    one = {"event_id": 7, "user_id": 12, "item_id": 5, "ts": BASE_TS, "action": "never heard of", "extra": [1]}
    for _ in range(2):
        assert service.call("POST", "/v1/events", json=one).json() == {"accepted": 1}
    service.post(event(8, "12", "6"))
    found = service.history("12", 2)
    assert [e["item_id"] for e in found["events"]] == [None, None]
    assert found["events"][0]["action"] == "other"
    limited = service.call("GET", "/v1/users/12/history", params={"limit": 1}).json()
    assert (limited["count"], len(limited["events"])) == (2, 1)


def test_an_erased_user_is_gone_at_once_and_starts_afresh(service: LocalService, items: list[str]) -> None:
    service.post(*(event(i, "eve/1", item) for i, item in enumerate(items[:9])))
    user = quote("eve/1", safe="")
    service.history(user, 9)
    until(lambda: service.writer._cache.get("eve/1"))
    assert service.call("DELETE", f"/v1/users/{user}").status_code == 202
    assert service.call("GET", f"/v1/users/{user}/history").json()["count"] == 0
    assert service.recommend(user_id="eve/1")["reason"] == "cold_start"
    assert service.writer._cache.get("eve/1") is None
    service.post(event(100, "eve/1", items[3]))
    assert service.history(user, 1)["events"][0]["item_id"] == items[3]


def test_a_request_may_wait_for_what_it_has_just_posted(service: LocalService, items: list[str]) -> None:
    service.post(event(1, "may", items[1], ts=BASE_TS))
    found = service.recommend(user_id="may", min_ts=BASE_TS)
    assert (found["as_of"]["ts"], found["reason"]) == (BASE_TS, "full")
    late = service.recommend(user_id="may", min_ts=BASE_TS + 50)
    assert (late["reason"], late["degraded"], late["as_of"]["ts"]) == ("behind", True, BASE_TS)


def test_more_than_the_catalogue_is_all_of_it(service: LocalService, items: list[str]) -> None:
    reply = service.recommend(history=items[:3], k=500, filter_seen=False)
    assert sorted(item["item_id"] for item in reply["items"]) == sorted(items)
    assert len(service.recommend(history=items[:3], k=500)["items"]) == len(items) - 3


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        ({"user_id": "u", "k": 0}, r"body.k: Input should be greater than or equal to 1"),
        ({"user_id": "u", "k": 501}, "k may be at most 500, got 501"),
        ({"user_id": "u", "history": []}, "give either user_id or history"),
        ({}, "give either user_id or history"),
        ({"user_id": "u", "kk": 3}, "body.kk: Extra inputs are not permitted"),
        ({"user_id": True}, "body.user_id"),
        ({"user_id": "é" * 257}, "at most 512 bytes"),
        (rb'{"user_id": "\ud800"}', "body.user_id"),
        ({"user_id": "u", "now": -1}, "body.now"),
        ({"history": [["a", -1]]}, "body.history"),
        ({"history": ["a"] * 10_001}, "history may have at most 10000 items, got 10001"),
        ([], "body"),
    ],
)
def test_a_request_that_cannot_succeed_says_why(service: LocalService, body: Any, detail: str) -> None:
    assert detail in refused(service, 422, body)


@pytest.mark.parametrize("body", [b"{", b"\xff\xfe", b"{'k': 1}", b""])
def test_what_is_no_json_is_a_bad_request(service: LocalService, body: bytes) -> None:
    reply = service.call("POST", "/v1/recommend", content=body)
    assert reply.status_code in ((400,) if body else (422,))
    assert reply.headers["content-type"] == PROBLEM


@pytest.mark.parametrize(
    "change", [{"event_id": None}, {"item_id": ""}, {"ts": -1}, {"ts": 1 << 40}, {"ts": "soon"}, {"action": "x" * 65}]
)
def test_an_event_that_would_end_among_the_dead_letters_is_refused(service: LocalService, change: Any) -> None:
    good = event(1, "u", "i")
    assert next(iter(change)) in refused(service, 422, good | change, "/v1/events")
    assert next(iter(change)) in refused(service, 422, [good, good | change], "/v1/events")


def test_an_erasure_cannot_be_smuggled_in_as_an_event(service: LocalService, items: list[str]) -> None:
    service.post(event(1, "sam", items[0]) | {"type": "erase"}, event(2, "sam", items[1]))
    assert len(service.history("sam", 2)["events"]) == 2


def test_items_can_be_looked_up_and_found(service: LocalService, model: HyMiRec, items: list[str]) -> None:
    catalog = model.bundle.catalog
    title = catalog.titles[3].as_py()
    expected = {"item_id": items[3], "title": title, "popularity": int(catalog.popularity[3])}
    assert service.call("GET", f"/v1/items/{items[3]}").json() == expected
    absent = service.call("GET", "/v1/items/none/such")
    assert (absent.status_code, absent.headers["content-type"]) == (404, PROBLEM)
    words = title.upper().split()
    found = service.call("GET", "/v1/items", params={"q": f"{words[1]} {words[0]}"}).json()
    assert expected in found["items"]
    assert found["bundle"] == model.bundle_id
    popularity = [item["popularity"] for item in found["items"]]
    assert popularity == sorted(popularity, reverse=True)
    assert service.call("GET", "/v1/items", params={"q": "zzzz"}).json()["items"] == []


def test_health_and_readiness_say_what_serves(service: LocalService, model: HyMiRec) -> None:
    assert service.call("GET", "/healthz").json()["status"] == "ok"
    until(lambda: service.call("GET", "/readyz").status_code == 200)
    ready = service.call("GET", "/readyz").json()
    assert ready["bundle"] == model.bundle_id
    assert set(ready["lag"]) == {"0", "1"}


def test_openapi_describes_what_runs(service: LocalService) -> None:
    schema = service.call("GET", "/openapi.json").json()
    assert set(schema["paths"]) == {
        *("/v1/recommend", "/v1/events", "/v1/users/{user_id}/history", "/v1/users/{user_id}", "/v1/items"),
        *("/v1/items/{item_id}", "/v1/explain", "/v1/admin/bundle", "/healthz", "/readyz"),
    }
    request = schema["components"]["schemas"]["RecommendRequest"]["properties"]
    assert (request["k"]["minimum"], request["k"]["maximum"]) == (1, 500)
    for path in schema["paths"].values():
        for operation in path.values():
            for status, response in operation["responses"].items():
                assert list(response["content"]) == [PROBLEM if int(status) >= 400 else "application/json"]


def test_openapi_names_429_where_a_rate_is_configured_and_nowhere_else(
    service: LocalService, bundle: Path, tmp_path: Path
) -> None:
    limits = LimitsConfig(requests_per_second=0.001, burst=2)
    limited = LocalService(service_config(bundle, tmp_path, limits=limits), tmp_path)
    found = limited.call("GET", "/openapi.json").json()["paths"]
    limited.recommend(user_id="ada")
    assert "0.001 requests a second" in refused(limited, 429, {"user_id": "ada"})
    limited.close()
    without = service.call("GET", "/openapi.json").json()["paths"]
    assert found.keys() == without.keys()
    for path, operations in found.items():
        for method, operation in operations.items():
            has = operation["responses"].get("429", {}).get("content", {})
            assert list(has) == ([] if path in ("/healthz", "/readyz") else [PROBLEM]), path
            assert "429" not in without[path][method]["responses"]


def test_a_swap_serves_another_bundle_and_a_damaged_one_is_refused(bundle: Path, tmp_path: Path) -> None:
    first = another_release(bundle, tmp_path / "first", "first")
    second = another_release(bundle, tmp_path / "second")
    damaged = another_release(bundle, tmp_path / "damaged", "damaged")
    index = bytearray((damaged / "index.faiss").read_bytes())
    index[len(index) // 2] ^= 1
    (damaged / "index.faiss").write_bytes(index)
    config = service_config(first, tmp_path)
    service = LocalService(config, tmp_path)
    old, new = read_manifest(first).id, read_manifest(second).id
    assert "index.faiss is damaged" in refused(service, 409, {"path": "damaged"}, "/v1/admin/bundle")
    assert "is not there" in refused(service, 409, {"path": str(tmp_path / "absent")}, "/v1/admin/bundle")
    assert service.recommend(user_id="u")["bundle"] == old
    swapped = service.call("POST", "/v1/admin/bundle", json={"path": "second"})
    assert swapped.json() == {"bundle": new, "previous": old}
    assert service.recommend(user_id="u")["bundle"] == new
    service.close()
    again = LocalService(config, tmp_path)
    assert again.recommend(user_id="u")["bundle"] == new
    again.close()


@pytest.mark.parametrize("path", ["~nobody-knows-this-user/bundle", "nul\0within", "a" * 5_000, "\ud83d\n"])
def test_a_bundle_at_a_place_that_cannot_be_is_refused(service: LocalService, path: str) -> None:
    reply = service.call("POST", "/v1/admin/bundle", content=json.dumps({"path": path}))
    assert reply.status_code in (400, 409, 422), reply.text


def test_a_user_whose_id_has_a_line_break_can_be_read_and_erased(service: LocalService, items: list[str]) -> None:
    user = "two\nlines"
    service.post(event(0, user, items[0]))
    place = f"/v1/users/{quote(user, safe='')}"
    until(lambda: service.call("GET", f"{place}/history").json()["count"] == 1)
    assert service.call("DELETE", place).status_code == 202
    assert service.call("GET", f"{place}/history").json()["count"] == 0


def test_a_restart_loses_and_doubles_nothing(bundle: Path, tmp_path: Path, items: list[str]) -> None:
    config = service_config(bundle, tmp_path)
    service = LocalService(config, tmp_path)
    service.post(*(event(i, "ann", item) for i, item in enumerate(items[:10])))
    service.history("ann", 10)
    # Not waited for: what is in the log when the service stops is applied when it is back.
    service.post(*(event(i, "ann", item) for i, item in enumerate(items[5:15], start=5)))
    service.close()
    again = LocalService(config, tmp_path)
    found = again.history("ann", 15)
    assert [e["item_id"] for e in found["events"]] == items[:15]
    again.close()

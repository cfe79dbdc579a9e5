"""The ladder, with a real ranker behind a stage that fails in ways a cluster does."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from patience import until
from service_kit import BASE_TS, LocalService, event, service_config

from hymirec.answers import Query, Recommendations
from hymirec.config import LimitsConfig
from hymirec.errors import OverloadedError, StageUnavailableError
from hymirec.service.ladder import PopularList
from hymirec.service.stages import RankerStage

NOW = BASE_TS + 1_000
LIMITS = LimitsConfig(request_timeout_seconds=2.0, stage_timeout_seconds=0.3)


@dataclass
class Faulty:
    """A ranker with trouble in front: `broken` names methods, each with what it raises, or seconds it takes longer."""

    ranker: RankerStage
    broken: dict[str, Exception | float] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.ranker, name)

    async def _trouble(self, name: str) -> None:
        self.asked.append(name)
        trouble = self.broken.get(name)
        if isinstance(trouble, Exception):
            raise trouble
        await asyncio.sleep(trouble or 0)

    async def recommend(self, query: Query) -> Recommendations:
        await self._trouble("stale" if query.stale_ok else "full")
        return await self.ranker.recommend(query)

    async def popular(self, k: int) -> Recommendations:
        await self._trouble("popular")
        return await self.ranker.popular(k)


class Case:
    """A service whose ranker can be broken; the user `ada` has a long history and cached coarse interests."""

    def __init__(self, bundle: Path, directory: Path) -> None:
        self.faulty: Faulty

        def wrap(ranker: RankerStage) -> RankerStage:
            self.faulty = Faulty(ranker)
            return self.faulty  # type: ignore[return-value]

        self.service = LocalService(service_config(bundle, directory, limits=LIMITS), directory, wrap)
        catalog = self.service.ranker._model.bundle.catalog
        self.items = [str(catalog.item_id(i)) for i in range(40)]
        self.service.post(*(event(i, "ada", item) for i, item in enumerate(self.items[:20])))
        self.service.history("ada", 20)
        until(lambda: self.service.writer._cache.get("ada"))
        until(lambda: self.service.frontend._popular._found)

    def ask(self, **body: Any) -> dict[str, Any]:
        return self.service.recommend(**({"user_id": "ada", "k": 5, "now": NOW} | body))


@pytest.fixture(scope="module")
def case_of_module(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    case = Case(bundle, tmp_path_factory.mktemp("ladder"))
    yield case
    case.service.close()


@pytest.fixture
def case(case_of_module: Case) -> Iterator[Case]:
    yield case_of_module
    case_of_module.faulty.broken.clear()
    case_of_module.faulty.asked.clear()


def test_with_everything_well_the_answer_is_full(case: Case) -> None:
    reply = case.ask()
    assert (reply["reason"], reply["degraded"], len(reply["items"])) == ("full", False, 5)


def test_a_ranker_that_is_too_slow_for_the_full_answer_gives_one_from_cached_interests(case: Case) -> None:
    exact = case.ask()
    stale = case.service.writer._cache.get("ada")
    assert stale is not None
    # Interests from before the newest events, as they are while a refresh is under way.
    history = [[item, BASE_TS + i] for i, item in enumerate(case.items[:10])]
    old = case.service.run(_coarse(case, history))
    case.service.writer._cache.put("ada", old, case.service.writer._cache.ticket())
    try:
        case.faulty.broken["full"] = 30.0
        reply = case.ask()
        assert (reply["reason"], reply["degraded"]) == ("cached_coarse", True)
        assert [i["score"] for i in reply["items"]] != [i["score"] for i in exact["items"]]
        case.faulty.broken.clear()
        assert case.ask() == exact
    finally:
        case.service.writer._cache.put("ada", stale, case.service.writer._cache.ticket())


async def _coarse(case: Case, history: list[list[Any]]) -> Any:
    from hymirec.catalog.keys import item_keys

    keys, ts = item_keys(item for item, _ in history), np.array([at for _, at in history])
    return await case.service.ranker.coarse(keys, ts, NOW)


@pytest.mark.parametrize("trouble", [30.0, StageUnavailableError("every replica is dead")])
def test_a_ranker_that_does_not_answer_leaves_popular_items_the_user_has_not_seen(case: Case, trouble: Any) -> None:
    case.faulty.broken.update(full=trouble, stale=trouble)
    start = time.monotonic()
    reply = case.ask(k=100, exclude=[case.items[30]])
    assert time.monotonic() - start < LIMITS.request_timeout_seconds + 1
    assert (reply["reason"], reply["degraded"]) == ("popular", True)
    shown = [item["item_id"] for item in reply["items"]]
    assert len(shown) == 100
    assert not set(shown) & {*case.items[:20], case.items[30]}
    seen = case.ask(k=100, filter_seen=False)
    assert set(case.items[:20]) & {item["item_id"] for item in seen["items"]}


def test_a_history_in_the_request_goes_down_the_same_ladder(case: Case) -> None:
    case.faulty.broken["full"] = StageUnavailableError("dead")
    reply = case.ask(user_id=None, history=case.items[:5])
    assert (reply["reason"], reply["as_of"]["ts"]) == ("popular", NOW)


def test_overload_is_shed_and_not_answered_with_less(case: Case) -> None:
    case.faulty.broken["full"] = OverloadedError("the queue is full")
    reply = case.service.call("POST", "/v1/recommend", json={"user_id": "ada"})
    assert (reply.status_code, reply.headers["retry-after"]) == (503, "1")
    assert reply.json()["detail"] == "the queue is full"


@pytest.mark.parametrize(
    ("trouble", "tries"), [(30.0, ["full"]), (StageUnavailableError("died"), ["full", "full", "full", "stale"])]
)
def test_who_lost_the_time_in_a_crowd_does_not_ask_twice(case: Case, trouble: Any, tries: list[str]) -> None:
    case.faulty.broken.update(full=trouble, stale=StageUnavailableError("died"))
    limit = case.service.frontend.limit
    with ExitStack() as crowd:
        for _ in range(limit.value - 1):
            crowd.enter_context(limit.place())
        assert case.ask()["reason"] == "popular"
    assert [name for name in case.faulty.asked if name != "popular"][: len(tries)] == tries
    assert case.faulty.asked.count("stale") == (3 if "stale" in tries else 0)


def test_without_the_history_writer_there_are_popular_items(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    async def dead(*_: Any) -> Any:
        raise StageUnavailableError("the history writer died with the call")

    monkeypatch.setattr(case.service.writer, "snapshot", dead)
    reply = case.ask()
    assert (reply["reason"], reply["degraded"], len(reply["items"])) == ("popular", True, 5)
    assert case.service.call("GET", "/v1/users/ada/history").status_code == 503


def test_a_bug_is_an_error_and_no_degradation(case: Case) -> None:
    case.faulty.broken["full"] = ZeroDivisionError("a bug")
    reply = case.service.call("POST", "/v1/recommend", json={"user_id": "ada"})
    assert (reply.status_code, reply.headers["content-type"]) == (500, "application/problem+json")


def test_a_popular_list_that_was_never_read_is_no_answer(case: Case) -> None:
    fresh = PopularList(case.faulty, 10, 0.1)  # type: ignore[arg-type]
    with pytest.raises(StageUnavailableError, match="has not answered yet"):
        fresh.without(np.empty(0, np.uint64), 5)
    case.faulty.broken["popular"] = 30.0
    with pytest.raises(StageUnavailableError):
        case.service.run(fresh.refresh())

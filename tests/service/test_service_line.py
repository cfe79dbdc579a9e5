"""The line before the model, with a real model: who is answered together, who first, and who not at all."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
from collections.abc import Awaitable, Iterator, Sequence
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest
from service_kit import BASE_TS, Recorder

from hymirec import HyMiRec
from hymirec.answers import Query, Recommendations
from hymirec.catalog.keys import item_keys
from hymirec.errors import RequestError, StageLateError
from hymirec.service.line import Line
from hymirec.telemetry import BATCH_REQUESTS, DROPPED, STAGE_SECONDS

NOW = BASE_TS + 1_000
NO_KEYS = np.empty(0, np.uint64)


@pytest.fixture(scope="module")
def model(bundle: Path) -> HyMiRec:
    return HyMiRec.from_pretrained(bundle)


class Case:
    """A line whose thread is held up, so that requests come together, until `release`."""

    def __init__(self, most_events: int = 10_000) -> None:
        self.heard = Recorder()
        self.line = Line(most_events, observe=self.heard)
        self._go = threading.Event()
        self._thread = threading.Thread(target=lambda: self.line.first(self._go.wait))
        self._thread.start()

    def release(self) -> None:
        self._go.set()
        self._thread.join()

    async def gather(self, *calls: Awaitable[Any]) -> list[Any]:
        """What became of calls that are all in line before the first is taken; an exception is its own outcome."""
        tasks = [asyncio.ensure_future(call) for call in calls]
        await asyncio.sleep(0.05)
        self.release()
        return await asyncio.gather(*tasks, return_exceptions=True)

    @property
    def batches(self) -> list[float]:
        return self.heard.of(BATCH_REQUESTS)


@pytest.fixture
def case() -> Iterator[Case]:
    case = Case()
    yield case
    case.release()
    case.line.close()


def query(model: HyMiRec, length: int, start: int = 0, **changes: Any) -> Query:
    keys = item_keys(model.bundle.catalog.item_id(start + i) for i in range(length))
    return Query(**{"keys": keys, "ts": BASE_TS + np.arange(length), "k": 5, "now": NOW, "exclude": NO_KEYS} | changes)


def queries_of_all_kinds(model: HyMiRec) -> list[Query]:
    """Long, short, empty; with cached interests, fresh and stale; each with options of its own."""
    long, other = query(model, 30), query(model, 25, start=40)
    cached = model.coarse_keys(long.keys, long.ts, long.now)
    stale = model.coarse_keys(other.keys[:10], other.ts[:10], other.now)
    return [
        dataclasses.replace(long, coarse=cached, k=9),
        dataclasses.replace(other, coarse=stale, stale_ok=True),
        dataclasses.replace(other, coarse=stale, now=NOW + 86_400),
        query(model, 3, filter_seen=False, k=140),
        query(model, 0, k=4, exclude=item_keys([model.bundle.catalog.item_id(int(model.bundle.popular[0]))])),
        query(model, 12, start=90, exclude=item_keys(model.bundle.catalog.item_id(i) for i in range(80))),
    ]


def assert_same(found: Recommendations, expected: Recommendations) -> None:
    """Up to rounding, and the order of what differs by no more than that."""
    assert dataclasses.replace(found, items=[]) == dataclasses.replace(expected, items=[])
    scores = [np.array([item.score for item in result.items]) for result in (found, expected)]
    assert np.allclose(*scores, atol=1e-5)
    for place, (a, b) in enumerate(zip(found.items, expected.items, strict=True)):
        if a.item_id != b.item_id:
            assert np.sum(np.abs(scores[1] - scores[1][place]) < 1e-5) > 1
        else:
            assert a.title == b.title


def test_requests_that_come_together_are_answered_in_one_pass_and_as_if_alone(model: HyMiRec, case: Case) -> None:
    asked = queries_of_all_kinds(model)
    found = asyncio.run(case.gather(*(case.line.recommend(model, own) for own in asked)))
    assert case.batches == [len(asked)]
    for own, answer in zip(asked, found, strict=True):
        assert_same(answer, model.recommend_batch([own])[0])
    assert [answer.reason for answer in found] == ["full", "cached_coarse", "full", "full", "cold_start", "full"]
    assert len(case.heard.of(STAGE_SECONDS, stage="wait")) == len(asked)


def test_an_idle_model_answers_at_once(model: HyMiRec) -> None:
    case = Case()
    case.release()

    async def one_after_the_other() -> None:
        for _ in range(3):
            await case.line.recommend(model, query(model, 8))

    asyncio.run(one_after_the_other())
    assert case.batches == [1, 1, 1]
    case.line.close()


@pytest.mark.parametrize(
    ("most", "lengths", "batches"),
    [
        (1, [3, 3, 3], [1, 1, 1]),
        (60, [20, 20, 20, 20], [3, 1]),
        # Padding counts: three short ones beside a long one are as much as four long ones.
        (60, [30, 2, 2, 2], [2, 2]),
        (10, [50, 2, 2], [1, 2]),
        # No more than the model reads of a history.
        (56 * 3, [150, 150, 150, 150], [3, 1]),
    ],
)
def test_a_pass_is_bounded_by_the_events_that_it_reads(
    model: HyMiRec, most: int, lengths: Sequence[int], batches: Sequence[int]
) -> None:
    assert model.reach == 56
    case = Case(most)
    asyncio.run(case.gather(*(case.line.recommend(model, query(model, length)) for length in lengths)))
    case.line.close()
    assert case.batches == batches


def test_the_index_is_searched_by_as_many_threads_as_are_configured() -> None:
    for threads in (1, 3):
        line = Line(10, threads)
        assert line.first(faiss.omp_get_max_threads) == threads
        line.close()


def test_two_bundles_are_never_in_one_pass(model: HyMiRec, bundle: Path, case: Case) -> None:
    other = HyMiRec.from_pretrained(bundle)
    calls = [case.line.recommend(own, query(own, 5)) for own in (model, model, other, model)]
    asyncio.run(case.gather(*calls))
    assert case.batches == [2, 1, 1]


def test_an_error_is_that_of_the_request_alone(model: HyMiRec, case: Case) -> None:
    calls = [case.line.recommend(model, query(model, 9, k=k)) for k in (5, 0, 7)]
    first, wrong, last = asyncio.run(case.gather(*calls))
    assert isinstance(wrong, RequestError)
    assert (len(first.items), len(last.items)) == (5, 7)


def test_a_request_whose_time_has_passed_or_whose_caller_has_gone_never_reaches_the_model(
    model: HyMiRec, case: Case
) -> None:
    async def go() -> list[Any]:
        gone = asyncio.ensure_future(case.line.recommend(model, query(model, 9)))
        await asyncio.sleep(0)
        gone.cancel()
        late = case.line.recommend(model, query(model, 9, seconds=0.001))
        late_work = case.line.run(lambda: pytest.fail("worked for nobody"), 0.001)
        return await case.gather(late, late_work, case.line.recommend(model, query(model, 9, seconds=60.0)))

    late, late_work, in_time = asyncio.run(go())
    for outcome in (late, late_work):
        assert isinstance(outcome, StageLateError)
        assert "passed in line" in str(outcome)
    assert len(in_time.items) == 5
    assert case.batches == [1]
    assert case.heard.of(DROPPED) == [1, 1, 1]


def test_requests_go_before_nearline_work_and_other_work_keeps_its_place(model: HyMiRec, case: Case) -> None:
    def passes_before() -> int:
        return len(case.batches)

    calls = [
        case.line.run(passes_before, 60, nearline=True),
        case.line.recommend(model, query(model, 9)),
        case.line.run(passes_before, 60),
        case.line.recommend(model, query(model, 9)),
    ]
    nearline, _, other, _ = asyncio.run(case.gather(*calls))
    assert (nearline, other) == (2, 1)


def test_whoever_is_in_line_when_it_closes_is_told(model: HyMiRec, case: Case) -> None:
    async def go() -> Any:
        waiting = asyncio.ensure_future(case.line.recommend(model, query(model, 9)))
        await asyncio.sleep(0.05)
        case.line.close()
        return await asyncio.gather(waiting, return_exceptions=True)

    (outcome,) = asyncio.run(go())
    assert isinstance(outcome, asyncio.CancelledError)
    case.release()
    assert case.batches == []

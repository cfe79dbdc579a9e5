"""Loads on the real service over real HTTP, without Ray."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cli_kit import hymirec, refused
from service_kit import BASE_TS, LocalService, service_config, tiny_bundle

from hymirec import HyMiRec
from hymirec.answers import Recommendations
from hymirec.config import LimitsConfig
from hymirec.load import Load, LoadPlan, Traffic, report
from hymirec.service.stages import Query, RankerStage

USERS, EVENTS = 12, 20


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bundle(tmp_path_factory.getbasetemp() / "service-bundle")


@pytest.fixture(scope="module")
def interactions(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everybody reads everything in turn, from a place of their own on."""
    catalog = HyMiRec.from_pretrained(bundle).bundle.catalog
    ids = [str(catalog.item_id(index)) for index in range(catalog.size)]
    rows = [(f"u{user}", ids[(7 * user + n) % len(ids)], BASE_TS + n) for n in range(EVENTS) for user in range(USERS)]
    user, item, ts = zip(*rows, strict=True)
    path = tmp_path_factory.mktemp("load") / "interactions.parquet"
    pq.write_table(pa.table({"user": user, "item": item, "ts": ts}), path)
    return path


@contextmanager
def listening(
    bundle: Path, directory: Path, wrap: Callable[[RankerStage], RankerStage] = lambda ranker: ranker, **changes: Any
) -> Iterator[str]:
    service = LocalService(service_config(bundle, directory, **changes), directory, wrap)
    try:
        yield service.listen()
    finally:
        service.close()


@pytest.fixture(scope="module")
def url(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with listening(bundle, tmp_path_factory.mktemp("load-service")) as url:
        yield url


def run(plan: LoadPlan, interactions: Path, past: bool = True) -> dict[str, Any]:
    samples = asyncio.run(Load(plan, Traffic.read(interactions, past=0.5)).run(past))
    return report(samples, within=30)


def test_an_open_loop_asks_posts_and_sees_its_events(url: str, interactions: Path) -> None:
    found = run(LoadPlan(url, seconds=3, rate=20, event_share=1.0, probe_share=1.0, k=10), interactions)
    assert found["requests"] == found["full"] > 20, found
    assert (found["failed"], found["wrong"], found["shed"], found["unsent"]) == (0, 0, 0, 0), found
    assert found["events"]["accepted"] > 10
    assert found["event_to_visible"]["measured"] > 0
    assert found["event_to_visible"]["never"] == 0
    assert found["latency"]["p50_ms"] <= found["latency"]["p99_ms"] <= found["latency"]["max_ms"]
    assert list(found["bundles"].values()) == [found["requests"]]


def test_a_closed_loop_keeps_as_many_requests_going_as_it_has_clients(url: str, interactions: Path) -> None:
    found = run(LoadPlan(url, seconds=2, clients=3, event_share=0.2), interactions)
    assert found["requests"] == found["full"] > 3, found
    assert found["sent_late"] == {}


class Slow:
    """A ranker with a second of work for each request, one at a time."""

    def __init__(self, ranker: RankerStage) -> None:
        self._ranker, self._lock = ranker, asyncio.Lock()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ranker, name)

    async def recommend(self, query: Query) -> Recommendations:
        async with self._lock:
            await asyncio.sleep(1)
            return await self._ranker.recommend(query)


def test_arrivals_do_not_wait_and_shed_and_degraded_requests_are_no_failures(
    bundle: Path, interactions: Path, tmp_path: Path
) -> None:
    limits = LimitsConfig(max_ongoing_requests=1, max_queued_requests=4, stage_timeout_seconds=1.5)
    with listening(bundle, tmp_path, Slow, limits=limits) as url:
        found = run(LoadPlan(url, seconds=3, rate=30, event_share=0), interactions)
    assert found["requests"] > 50, found
    assert found["shed"] > found["full"] > 0
    assert found["degraded"].get("popular", 0) > 0
    assert found["shed"] + found["full"] + sum(found["degraded"].values()) == found["requests"]


class Twice:
    """A ranker that names its first item twice."""

    def __init__(self, ranker: RankerStage) -> None:
        self._ranker = ranker

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ranker, name)

    async def recommend(self, query: Query) -> Recommendations:
        found = await self._ranker.recommend(query)
        return replace(found, items=[found.items[0], *found.items[:-1]])


def test_a_wrong_reply_is_found_and_the_command_exits_with_1(bundle: Path, interactions: Path, tmp_path: Path) -> None:
    with listening(bundle, tmp_path, Twice) as url:
        found = hymirec("load", url, "--interactions", interactions, "--seconds", 1, "--clients", 1, "--json")
    assert found.exit_code == 1, found.output
    figures = json.loads(found.stdout)
    assert figures["wrong"] == figures["requests"] > 0
    # Answers to who waits for an event are looked at, too.
    assert set(figures["notes"]) - {"while waiting for an event: 1 items twice"} == {"1 items twice"}


def test_a_bundle_that_was_not_named_is_wrong(url: str, interactions: Path) -> None:
    found = run(LoadPlan(url, seconds=1, clients=1, bundles=frozenset({"f" * 64})), interactions)
    assert found["wrong"] == found["requests"] > 0


def test_the_command_prints_a_table(url: str, bundle: Path, interactions: Path) -> None:
    options = ("--seconds", 2, "--rate", 10, "--bundle", bundle, "--post-past", "--within", 30, "--own-times")
    found = hymirec("load", url, "--interactions", interactions, *options)
    assert found.exit_code == 0, found.output
    lines = {line[:20].strip(): line[21:] for line in found.stdout.splitlines()}
    assert lines["failed"] == lines["wrong"] == "0 (0.00%)"
    assert "p50" in lines["latency of answers"]
    assert "never: 0" in lines["event to visible"]


def test_a_service_that_is_not_there_is_an_error(interactions: Path) -> None:
    refused(hymirec("load", "http://127.0.0.1:9", "--interactions", interactions), "readyz", "no answer")

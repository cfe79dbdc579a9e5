"""What the metrics hear: of requests, of a bundle, of a history writer."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from patience import until
from service_kit import LocalService, Recorder, another_release, event, service_config

from hymirec import telemetry as t
from hymirec.artifacts import read_manifest
from hymirec.config import LimitsConfig
from hymirec.service.release import Release, remember
from hymirec.service.reports import CAUSES, WriterReport
from hymirec.streaming import ConsumerStatus


@pytest.fixture
def heard() -> Recorder:
    return Recorder()


@pytest.fixture
def observed(bundle: Path, tmp_path: Path, heard: Recorder) -> Iterator[LocalService]:
    served = another_release(bundle, tmp_path / "one", "first")
    service = LocalService(service_config(served, tmp_path), tmp_path, observe=heard)
    yield service
    service.close()


def test_a_request_tells_its_stages_its_reason_and_its_status(observed: LocalService, heard: Recorder) -> None:
    items = [str(observed.ranker._model.bundle.catalog.item_id(i)) for i in range(20)]
    assert observed.recommend(history=[*items, "unheard of"], k=3)["reason"] == "full"
    assert heard.labels(t.STAGE_SECONDS, "stage") == {"recommender", "wait", "coarse", "model", "index"}
    assert heard.labels(t.COARSE_CACHE, "result") == set()
    assert len(heard.of(t.RECOMMEND_SECONDS, reason="full")) == 1
    assert heard.of(t.BATCH_REQUESTS) == [1]
    (overlap,) = heard.of(t.INTEREST_OVERLAP)
    assert -1 <= overlap <= 1
    assert heard.of(t.UNKNOWN_ITEMS) == [1]
    assert observed.call("GET", "/v1/items/none").status_code == 404
    assert observed.call("GET", "/healthz").status_code == 200
    assert (heard.of(t.RESPONSES, status="200"), heard.of(t.RESPONSES, status="404")) == ([1], [1])
    assert all(value >= 0 for value in heard.of(t.STAGE_SECONDS, stage="model"))


def test_cached_interests_are_hits_until_the_bundle_changes(
    observed: LocalService, heard: Recorder, bundle: Path, tmp_path: Path
) -> None:
    items = [str(observed.ranker._model.bundle.catalog.item_id(i)) for i in range(20)]
    observed.post(*(event(i, "ada", item) for i, item in enumerate(items)))
    assert heard.of(t.EVENTS_ACCEPTED) == [20]
    observed.history("ada", 20)
    until(lambda: observed.writer._cache.get("ada"))
    until(lambda: observed.recommend(user_id="ada") and heard.of(t.COARSE_CACHE, result="hit"))
    assert heard.labels(t.STAGE_SECONDS, "stage") >= {"history", "recommender", "wait", "model", "index"}
    assert heard.of(t.COARSE_REFRESH_SECONDS)
    old = read_manifest(Path(observed.config.bundle)).id
    observed.ranker.report()
    two = another_release(bundle, tmp_path / "two")
    new = read_manifest(two).id
    remember(observed.config.bundle, Release(str(two), new))
    observed.ranker.follow()
    observed.ranker.report()
    # The series of the bundle before ends with 0, or two bundles would seem to serve for ever.
    assert (heard.of(t.BUNDLE_INFO, bundle=old), heard.of(t.BUNDLE_INFO, bundle=new)) == ([1, 0], [1])
    assert heard.of(t.BUNDLE_ITEMS)[-1] == observed.ranker._model.bundle.catalog.size
    assert 0 <= heard.of(t.BUNDLE_AGE)[-1] < 600
    observed.recommend(user_id="ada")
    assert heard.of(t.COARSE_CACHE, result="stale") or heard.of(t.COARSE_CACHE, result="miss")
    observed.writer._cache.drop("ada")
    observed.recommend(user_id="ada")
    assert heard.of(t.COARSE_CACHE, result="miss")


def test_a_request_turned_away_at_the_door_is_counted(bundle: Path, tmp_path: Path, heard: Recorder) -> None:
    limits = LimitsConfig(max_ongoing_requests=1, max_queued_requests=0)
    service = LocalService(service_config(bundle, tmp_path, limits=limits), tmp_path, observe=heard)
    try:
        guard = service.client._transport.app._app  # type: ignore[attr-defined]
        guard._in_flight = 1
        assert service.call("POST", "/v1/recommend", json={"user_id": "ada"}).status_code == 503
    finally:
        service.close()
    assert (heard.of(t.SHED, where="door"), heard.of(t.RESPONSES, status="503")) == ([1], [1])


def test_a_writer_tells_what_came_since_and_forgets_no_partition(heard: Recorder) -> None:
    report = WriterReport(heard)
    now = time.time()
    status = ConsumerStatus(ready=True, heartbeat=now, lag={0: 7, 1: 0, 2: 3}, counts={"applied": 5, "duplicates": 0})
    status.taken = {0: int((now - 30) * 1000), 1: int((now - 30) * 1000)}
    report.consumer(status)
    assert heard.of(t.CONSUMER_READY) == [1]
    assert heard.of(t.LAG_EVENTS, partition="0") == [7]
    assert heard.of(t.LAG_SECONDS, partition="0")[0] == pytest.approx(30, abs=5)
    # Nothing behind, or a log that keeps no times: no lag in seconds.
    assert (heard.of(t.LAG_SECONDS, partition="1"), heard.of(t.LAG_SECONDS, partition="2")) == ([0], [0])
    assert (heard.of(t.EVENTS, result="applied"), heard.of(t.EVENTS, result="duplicates")) == ([5], [])
    problems = {"0": "topic recreated", "2": "out of range", "store": "down"}
    counts = {"applied": 9, "rejected_not_json": 2}
    report.consumer(ConsumerStatus(ready=False, heartbeat=now, lag={1: 0}, problems=problems, counts=counts))
    assert heard.of(t.CONSUMER_READY) == [1, 0]
    assert {cause: heard.of(t.CONSUMER_PROBLEMS, cause=cause)[-1] for cause in CAUSES} == {
        "partition": 2,
        "store": 1,
        "log": 0,
        "consumer": 0,
    }
    assert heard.of(t.EVENTS, result="applied") == [5, 4]
    assert heard.of(t.EVENTS, result="rejected_not_json") == [2]
    assert (heard.of(t.LAG_EVENTS, partition="0"), heard.of(t.LAG_SECONDS, partition="0")[-1]) == ([7, 0], 0)
    report.coarse(4, 2, 3)
    report.coarse(4, 0, 3)
    assert (heard.of(t.COARSE_CACHED), heard.of(t.COARSE_PENDING)) == ([4, 4], [2, 0])
    assert heard.of(t.COARSE_FORGOTTEN) == [3]


def test_a_running_writer_reports_its_lag_and_events(observed: LocalService, heard: Recorder) -> None:
    items = [str(observed.ranker._model.bundle.catalog.item_id(i)) for i in range(4)]
    observed.post(*(event(i, "eve", item) for i, item in enumerate(items)))
    observed.history("eve", 4)
    until(lambda: set(observed.writer._consumer.status().lag) == {0, 1})
    observed.writer.report()
    assert sum(heard.of(t.EVENTS, result="applied")) == 4
    assert heard.of(t.CONSUMER_READY) == [1]
    assert heard.labels(t.LAG_EVENTS, "partition") == {"0", "1"}
    taken = observed.writer._consumer.status().taken
    assert all(abs(at / 1000 - time.time()) < 600 for at in taken.values())
    assert taken

"""What is popular now, in a running service: events of anyone move everyone's list, whatever restarts or is swapped."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from patience import until
from service_kit import LocalService, another_release, event, service_config
from tiny_run import ITEMS, trending

from hymirec import HyMiRec
from hymirec.config import ServiceConfig
from hymirec.recommender.trend import Trend

EVENTS = 300


@pytest.fixture
def config(bundle: Path, tmp_path: Path) -> ServiceConfig:
    return service_config(trending(bundle.parent, tmp_path / "bundle", Trend(0.3, 2.0)), tmp_path)


@contextmanager
def running(config: ServiceConfig) -> Iterator[LocalService]:
    service = LocalService(config, Path(config.bundle).parent)
    try:
        yield service
    finally:
        service.close()


def listed(service: LocalService, now: int, history: list[str]) -> list[str]:
    """All items for a reader of this history, best first."""
    body = {"history": [[item, now - 1] for item in history], "k": ITEMS, "now": now}
    return [item["item_id"] for item in service.recommend(**body)["items"]]


def test_what_everyone_does_moves_the_list(config: ServiceConfig, tmp_path: Path) -> None:
    """The last item becomes the first; so it is in a bundle that was swapped in, and after a restart."""
    model = HyMiRec.from_pretrained(config.bundle)
    counts = model.bundle.model.trend_counts
    assert counts is not None
    now = counts.at + EVENTS
    history = [str(model.bundle.catalog.item_id(i)) for i in range(5)]
    with running(config) as service:
        last = listed(service, now, history)[-1]
        service.post(*[event(i, f"user-{i}", last, counts.at + i) for i in range(EVENTS)])
        until(lambda: listed(service, now, history)[0] == last)
        release = another_release(Path(config.bundle), tmp_path / "two")
        swapped = service.call("POST", "/v1/admin/bundle", json={"path": str(release)})
        assert swapped.status_code == 200, swapped.text
        until(lambda: listed(service, now, history)[0] == last)
    with running(config) as service:
        until(lambda: listed(service, now, history)[0] == last)


def test_events_of_before_the_bundle_count_once(config: ServiceConfig) -> None:
    """They are in its counts already: after newer ones have arrived, only those have moved anything."""
    model = HyMiRec.from_pretrained(config.bundle)
    counts = model.bundle.model.trend_counts
    assert counts is not None
    history = [str(model.bundle.catalog.item_id(i)) for i in range(5)]
    with running(config) as service:
        order = listed(service, counts.at + 10, history)
        old, new = order[-1], order[-2]
        service.post(*[event(i, "reader", old, counts.at - EVENTS + i) for i in range(EVENTS)])
        service.post(*[event(EVENTS + i, "reader", new, counts.at) for i in range(EVENTS)])
        until(lambda: listed(service, counts.at + 10, history)[0] == new)
        assert listed(service, counts.at + 10, history)[-1] == old


def test_without_a_backlog_the_log_is_not_read(config: ServiceConfig) -> None:
    """An application may say so; then the bundle's own counts are all there is."""
    for backlog in (0, 1):
        with running(config.model_copy(update={"trend_backlog": backlog})) as service:
            assert service.ranker.listens == bool(backlog)

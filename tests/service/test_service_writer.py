from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from patience import until
from service_kit import LocalService, another_release, event, service_config

from hymirec.artifacts import read_manifest
from hymirec.config import HistoryConfig
from hymirec.errors import StoreUnavailableError, StreamError
from hymirec.history import open_store
from hymirec.service import writer as writer_module
from hymirec.service.release import Release, remember


@pytest.fixture
def service_of_test(bundle: Path, tmp_path: Path) -> Iterator[LocalService]:
    service = LocalService(service_config(another_release(bundle, tmp_path / "one", "first"), tmp_path), tmp_path)
    yield service
    service.close()


def test_coarse_interests_follow_the_events_and_the_bundle(
    service_of_test: LocalService, bundle: Path, tmp_path: Path
) -> None:
    service = service_of_test
    items = [str(service.ranker._model.bundle.catalog.item_id(i)) for i in range(30)]
    service.post(*(event(i, "ada", item) for i, item in enumerate(items[:20])))

    def cached(what: str) -> Any:
        found = service.writer._cache.get("ada")
        return getattr(found, what) if found else None

    first = until(lambda: cached("source"))
    service.post(*(event(i, "ada", items[i]) for i in range(20, 30)))
    service.history("ada", 30)
    until(lambda: cached("source") not in (None, first))
    two = another_release(bundle, tmp_path / "two")
    remember(service.config.bundle, Release(str(two), read_manifest(two).id))
    service.ranker.follow()
    # Another user's event tells the writer of the new bundle; everybody who is cached is computed again.
    service.post(event(1, "bob", items[0]))
    until(lambda: cached("bundle") == read_manifest(two).id)


def test_a_consumer_that_ended_or_is_stuck_makes_the_replica_unhealthy(
    service_of_test: LocalService, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = service_of_test.writer
    until(lambda: writer._consumer.status().ready)
    writer.check()
    monkeypatch.setattr(writer_module, "STALE_HEARTBEAT_SECONDS", -1.0)
    with pytest.raises(StreamError, match="has not moved"):
        writer.check()
    writer._consumer.stop()
    with pytest.raises(StreamError, match="thread has ended"):
        writer.check()
    assert "history writer" not in service_of_test.call("GET", "/healthz").text
    assert service_of_test.call("GET", "/readyz").status_code == 503


def test_a_store_that_the_replica_before_still_holds_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = HistoryConfig(path=str(tmp_path / "history"))
    held = open_store(config)
    threading.Timer(0.3, held.close).start()
    start = time.monotonic()
    writer_module._open_when_free(config).close()
    assert time.monotonic() - start >= 0.25
    held = open_store(config)
    monkeypatch.setattr(writer_module, "OPEN_SECONDS", 0.1)
    with pytest.raises(StoreUnavailableError, match="another process has it open"):
        writer_module._open_when_free(config)
    held.close()

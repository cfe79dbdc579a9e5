"""A new item, from a table to an answer over HTTP, while the service runs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from service_kit import BASE_TS, LocalService, another_release, event, service_config
from tiny_run import ITEMS, tiny_config

from hymirec.additions import add_items
from hymirec.artifacts import read_manifest


@pytest.fixture
def service(bundle: Path, tmp_path: Path) -> Iterator[LocalService]:
    """One of its own: what is swapped in is remembered beside the bundle that it was started with."""
    served = another_release(bundle, tmp_path / "served")
    service = LocalService(service_config(served, tmp_path), tmp_path)
    yield service
    service.close()


def test_a_new_item_is_recommended_after_a_swap(bundle: Path, service: LocalService, tmp_path: Path) -> None:
    config = tiny_config().model_copy(update={"run_dir": str(bundle.parent)})
    known = [str(item) for item in pq.read_table(bundle / "items")["item"].to_pylist()[:8]]
    pq.write_table(pa.table({"item": ["novelty"], "title": ["kudi tajo fuku"]}), tmp_path / "items.parquet")
    service.post(*(event(number, "reader", item) for number, item in enumerate([*known, "novelty"])))
    service.history("reader", 9)
    assert service.call("GET", "/v1/items/novelty").status_code == 404

    release = add_items(config, str(tmp_path / "items.parquet"), out=tmp_path / "release").out
    swapped = service.call("POST", "/v1/admin/bundle", json={"path": str(release)})
    assert swapped.status_code == 200, swapped.text
    assert service.call("GET", "/v1/items/novelty").json()["title"] == "kudi tajo fuku"
    reply = service.recommend(history=known, k=ITEMS)
    assert reply["bundle"] == read_manifest(release).id
    found = {item["item_id"]: item for item in reply["items"]}
    assert len(found) == ITEMS + 1 - len(known)
    assert found["novelty"]["title"] == "kudi tajo fuku"
    # What was in the user's history before the catalogue knew it is read now.
    events = service.call("GET", "/v1/users/reader/history").json()["events"]
    assert [row["title"] for row in events if row["item_id"] == "novelty"] == ["kudi tajo fuku"]
    mine = service.recommend(user_id="reader", k=ITEMS, now=BASE_TS + 99)
    assert "novelty" not in {item["item_id"] for item in mine["items"]}

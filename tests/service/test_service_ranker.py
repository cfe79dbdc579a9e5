from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest
from service_kit import another_release, service_config

from hymirec.answers import Query
from hymirec.artifacts import read_manifest, write_manifest
from hymirec.catalog.keys import item_keys
from hymirec.errors import BundleError, UnknownItemError
from hymirec.retrieval import IndexReport
from hymirec.service.ranker import Ranker
from hymirec.service.release import FILE, Release, remember, swapped_in


@pytest.fixture
def releases(bundle: Path, tmp_path: Path) -> tuple[Path, Path]:
    return another_release(bundle, tmp_path / "one", "first"), another_release(bundle, tmp_path / "two")


def serving(ranker: Ranker) -> str:
    return asyncio.run(ranker.bundle_id())


def test_a_replica_that_missed_a_swap_makes_up_for_it(releases: tuple[Path, Path], tmp_path: Path) -> None:
    one, two = releases
    ranker = Ranker(service_config(one, tmp_path))
    ranker.follow()
    assert serving(ranker) == read_manifest(one).id
    remember(str(one), Release(str(two), read_manifest(two).id))
    ranker.follow()
    assert serving(ranker) == read_manifest(two).id
    assert serving(Ranker(service_config(one, tmp_path))) == read_manifest(two).id


def test_a_swapped_in_bundle_that_is_damaged_by_now_leaves_the_configured_one(
    releases: tuple[Path, Path], tmp_path: Path
) -> None:
    one, two = releases
    ranker = Ranker(service_config(one, tmp_path))
    remember(str(one), Release(str(two), read_manifest(two).id))
    (two / "README.md").write_text("changed by hand")
    ranker.follow()
    assert serving(ranker) == read_manifest(one).id
    assert serving(Ranker(service_config(one, tmp_path))) == read_manifest(one).id


def test_configuring_another_bundle_voids_a_swap(tmp_path: Path) -> None:
    one, two = str(tmp_path / "one"), str(tmp_path / "two")
    assert swapped_in(one) is None
    remember(one, Release("elsewhere", "id"))
    assert swapped_in(one) == Release("elsewhere", "id")
    assert swapped_in(two) is None
    (tmp_path / FILE).write_text("{")
    assert swapped_in(one) is None


def test_a_new_bundle_in_the_configured_place_voids_a_swap(releases: tuple[Path, Path], tmp_path: Path) -> None:
    one, two = releases
    remember(str(one), Release(str(two), read_manifest(two).id))
    assert swapped_in(str(one)) is not None
    (one / "README.md").write_text("# trained again\n")
    retrained = write_manifest(one, "bundle").id
    assert swapped_in(str(one)) is None
    assert serving(Ranker(service_config(one, tmp_path))) == retrained


def test_a_bundle_that_is_not_staged_is_not_activated(releases: tuple[Path, Path], tmp_path: Path) -> None:
    one, two = releases
    ranker = Ranker(service_config(one, tmp_path))
    with pytest.raises(BundleError, match="is not loaded in this replica"):
        asyncio.run(ranker.activate(read_manifest(two).id))
    asyncio.run(ranker.activate(read_manifest(one).id))
    assert asyncio.run(ranker.stage(str(two))) == [read_manifest(two).id]
    assert serving(ranker) == read_manifest(one).id
    asyncio.run(ranker.activate(read_manifest(two).id))
    assert serving(ranker) == read_manifest(two).id


def test_cached_interests_of_another_bundle_are_not_used(releases: tuple[Path, Path], tmp_path: Path) -> None:
    one, two = (Ranker(service_config(path, tmp_path / path.name)) for path in releases)
    ids = [one._model.bundle.catalog.item_id(i) for i in range(20)]
    keys, ts = item_keys(ids), np.arange(20) * 100
    foreign = asyncio.run(two.coarse(keys, ts, 5_000))
    plain = Query(keys, ts, 5, 5_000, np.empty(0, np.uint64))
    exact = asyncio.run(one.recommend(plain))
    given = Query(keys, ts, 5, 5_000, np.empty(0, np.uint64), coarse=foreign, stale_ok=True)
    assert asyncio.run(one.recommend(given)) == exact


def test_an_unknown_item_is_named(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(UnknownItemError, match="'nothing' is not in bundle"):
        asyncio.run(Ranker(service_config(bundle, tmp_path)).item("nothing"))


def test_a_bundle_whose_index_is_not_what_it_vouches_for_is_refused(
    releases: tuple[Path, Path], tmp_path: Path
) -> None:
    one, two = releases
    ranker = Ranker(service_config(one, tmp_path))
    report = IndexReport("hnsw", "hnsw", {}, 1, 0.98, 1.0, "1 items", 1.0)
    write_manifest(two, "bundle", info={"index": report.info()})
    with pytest.raises(BundleError, match="vouches for a hnsw index and holds a flat one"):
        asyncio.run(ranker.stage(str(two)))
    assert serving(ranker) == read_manifest(one).id

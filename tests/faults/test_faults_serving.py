"""The service under load while things happen to it, in short; `make faults` is the long form."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest
from service_kit import service_config, tiny_bundle
from serving_releases import damages
from serving_swaps import SwapRun

from hymirec.errors import HyMiRecError
from hymirec.service.ranker import Ranker


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bundle(tmp_path_factory.getbasetemp() / "service-bundle")


def test_a_bundle_damaged_in_any_way_is_refused_and_the_cause_named(bundle: Path, tmp_path: Path) -> None:
    async def stage_all() -> None:
        ranker = Ranker(service_config(bundle, tmp_path))
        serving = await ranker.bundle_id()
        for number, (damage, named) in enumerate(damages(bundle).values()):
            path = tmp_path / f"damaged-{number}"
            shutil.copytree(bundle, path)
            damage(path)
            with pytest.raises(HyMiRecError) as refused:
                await ranker.stage(str(path))
            assert named in str(refused.value)
        assert await ranker.bundle_id() == serving
        ranker.close()

    asyncio.run(stage_all())


@pytest.mark.ray
@pytest.mark.timeout(1800)
def test_swaps_under_load_fail_and_mix_nothing_and_damaged_bundles_are_refused(
    bundle: Path, ray_cluster: None, tmp_path: Path
) -> None:
    part = SwapRun(bundle, tmp_path, corrupt=4, clients=2).run(swaps=4, requests=100)
    assert part.notes == []
    assert not part.faults
    assert part.details["full answers"] > 50

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from service_kit import LocalService, service_config, tiny_bundle


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bundle(tmp_path_factory.getbasetemp() / "service-bundle")


@pytest.fixture(scope="module")
def service(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalService]:
    directory = tmp_path_factory.mktemp("service")
    service = LocalService(service_config(bundle, directory), directory)
    yield service
    service.close()

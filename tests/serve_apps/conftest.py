from __future__ import annotations

from pathlib import Path

import pytest
from service_kit import tiny_bundle


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bundle(tmp_path_factory.getbasetemp() / "service-bundle")

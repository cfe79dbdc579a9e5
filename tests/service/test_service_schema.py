"""Whatever OpenAPI allows and forbids, sent over HTTP: no reply that OpenAPI does not know, and no error of ours.

HYMIREC_SCHEMA_CASES=10000 pytest tests/service/test_service_schema.py
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from service_kit import LocalService, service_config

CASES = int(os.environ.get("HYMIREC_SCHEMA_CASES", "400"))
CONFORMS = [
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    response_headers_conformance,
]


@pytest.fixture(scope="module")
def url(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    directory = tmp_path_factory.mktemp("schema")
    service = LocalService(service_config(bundle, directory), directory)
    yield service.listen()
    service.close()


def _has_inputs(operation: Any, mode: GenerationMode) -> bool:
    return mode is GenerationMode.POSITIVE or any((operation.path_parameters, operation.query, operation.body))


@pytest.mark.timeout(3_600)
def test_every_reply_is_one_that_openapi_describes(url: str) -> None:
    schema = schemathesis.openapi.from_url(url + "/openapi.json")
    operations = [found.ok() for found in schema.get_all_operations()]
    # What has no parameters cannot be asked wrongly.
    kinds = [(operation, mode) for operation in operations for mode in GenerationMode if _has_inputs(operation, mode)]
    statuses: Counter[int] = Counter()

    def probe(case: schemathesis.Case) -> None:
        reply = case.call()
        statuses[reply.status_code] += 1
        # 503 is how load is shed.
        assert reply.status_code < 500 or reply.status_code == 503, (case.as_curl_command(), reply.text)
        case.validate_response(reply, checks=CONFORMS)

    several = settings(
        max_examples=-(-CASES // len(kinds)),
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
        derandomize="HYMIREC_SCHEMA_CASES" not in os.environ,
        database=None,
    )
    for operation, mode in kinds:
        several(given(case=operation.as_strategy(generation_mode=mode))(probe))()
    sys.stdout.write(f"{statuses.total()} cases: {dict(statuses)}\n")
    assert {200, 202, 400, 404, 422} <= set(statuses)

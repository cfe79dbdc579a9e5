from __future__ import annotations

import json

import pytest

from hymirec import errors
from hymirec.service.problems import problem, status_of, validation_problem


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (errors.RequestError(""), 422),
        (errors.UnknownItemError(""), 404),
        (errors.ArtifactDamagedError(""), 409),
        (errors.BundleMismatchError(""), 409),
        (errors.OverloadedError(""), 503),
        (errors.StageUnavailableError(""), 503),
        (errors.StageLateError(""), 503),
        (errors.SourceUnavailableError(""), 503),
        (errors.StoreUnavailableError(""), 503),
        (errors.StoreDamagedError(""), 500),
    ],
)
def test_an_error_has_its_status(error: errors.HyMiRecError, status: int) -> None:
    assert status_of(error) == status


def test_a_problem_has_the_fields_of_the_rfc() -> None:
    assert json.loads(problem(409, "why")) == {
        "type": "about:blank",
        "title": "Conflict",
        "status": 409,
        "detail": "why",
        "problems": [],
    }


def test_a_thousand_wrong_places_are_not_all_told() -> None:
    status, body = validation_problem([{"loc": ("body", i), "msg": "wrong", "type": "x"} for i in range(1000)])
    found = json.loads(body)
    assert (status, len(found["problems"])) == (422, 20)
    assert found["detail"].endswith("; and 980 more")

"""Errors as problem+json (RFC 9457)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

from hymirec.errors import (
    ArtifactError,
    BundleError,
    HyMiRecError,
    RequestError,
    ServiceError,
    SourceUnavailableError,
    StoreUnavailableError,
    UnknownItemError,
)
from hymirec.service.models import Problem

MEDIA_TYPE = "application/problem+json"
RETRY_AFTER_SECONDS = 1
# The most specific class first.
STATUS: tuple[tuple[type[HyMiRecError], int], ...] = (
    (UnknownItemError, 404),
    (RequestError, 422),
    (ArtifactError, 409),
    (BundleError, 409),
    (SourceUnavailableError, 503),
    (StoreUnavailableError, 503),
    (ServiceError, 503),
)
SHOWN_PROBLEMS = 20


def status_of(error: HyMiRecError) -> int:
    """HTTP status of an error of ours."""
    return next((status for kind, status in STATUS if isinstance(error, kind)), 500)


def problem(status: int, detail: str, problems: Sequence[dict[str, str]] = ()) -> bytes:
    """The body of a problem."""
    made = Problem(title=HTTPStatus(status).phrase, status=status, detail=detail, problems=list(problems))
    return made.model_dump_json().encode()


def headers_of(status: int, wait: float = RETRY_AFTER_SECONDS) -> dict[str, str]:
    """Headers that go with a status: when to come again (after `wait` seconds, in whole ones), how to authenticate."""
    if status == HTTPStatus.UNAUTHORIZED:
        return {"www-authenticate": "Bearer"}
    again = (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE)
    return {"retry-after": str(math.ceil(wait))} if status in again else {}


def validation_problem(errors: Sequence[Any]) -> tuple[int, bytes]:
    """Status and body for FastAPI's validation errors: 400 when it was no JSON at all, else 422 with each place."""
    broken = [error for error in errors if error.get("type") == "json_invalid"]
    if broken:
        return 400, problem(400, f"the body is not valid JSON: {broken[0].get('ctx', {}).get('error', '')}")
    places = [
        {"where": ".".join(str(part) for part in error.get("loc", ())), "what": str(error.get("msg", ""))}
        for error in errors[:SHOWN_PROBLEMS]
    ]
    more = f"; and {len(errors) - len(places)} more" if len(errors) > len(places) else ""
    return 422, problem(422, "; ".join(f"{place['where']}: {place['what']}" for place in places) + more, places)

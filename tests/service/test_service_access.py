"""Who may do what, route by route, as OpenAPI lists them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from service_kit import LocalService, service_config

from hymirec.service.guard import needed_scope

SCOPES = ("read", "write", "erase", "admin")
OPEN = {"/healthz", "/readyz"}


@pytest.fixture(scope="module")
def guarded(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalService]:
    """A service whose clients are elsewhere, with one token for each scope."""
    directory = tmp_path_factory.mktemp("guarded")
    tokens = directory / "tokens"
    tokens.write_text("".join(f"{scope} a-token-that-may-{scope}\n" for scope in SCOPES))
    service = LocalService(
        service_config(bundle, directory, token_file=str(tokens), host="0.0.0.0"), directory, client="192.0.2.7"
    )
    yield service
    service.close()


def routes(service: LocalService) -> list[tuple[str, str]]:
    schema: dict[str, Any] = service.call(
        "GET", "/openapi.json", headers={"authorization": "Bearer a-token-that-may-read"}
    ).json()
    return [
        (method.upper(), path.replace("{user_id}", "somebody").replace("{item_id}", "something"))
        for path, operations in schema["paths"].items()
        for method in operations
    ]


def test_every_route_wants_a_token_of_its_own_scope(guarded: LocalService) -> None:
    found = routes(guarded)
    assert len(found) == 10
    assert {needed_scope(*route) for route in found} == set(SCOPES)
    for method, path in [*found, ("GET", "/openapi.json"), ("GET", "/docs"), ("GET", "/not/there")]:
        if path in OPEN:
            assert guarded.call(method, path).status_code == 200
            continue
        for headers in (
            {},
            {"authorization": "Bearer a-token-of-nobody"},
            {"authorization": "Basic a-token-that-may-read"},
        ):
            assert guarded.call(method, path, headers=headers).status_code == 401, (method, path)
        for scope in SCOPES:
            reply = guarded.call(method, path, headers={"authorization": f"Bearer a-token-that-may-{scope}"})
            assert (reply.status_code == 403) == (scope != needed_scope(method, path)), (method, path, scope)
            assert reply.status_code != 401


def test_without_tokens_nobody_from_elsewhere_is_served(bundle: Path, tmp_path: Path) -> None:
    service = LocalService(service_config(bundle, tmp_path), tmp_path, client="192.0.2.7")
    try:
        for method, path in (("GET", "/console/"), ("POST", "/v1/recommend"), ("GET", "/openapi.json")):
            assert service.call(method, path).status_code == 403
    finally:
        service.close()

from __future__ import annotations

import asyncio
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

import httpx
import pytest
from service_kit import Recorder

from hymirec.errors import ConfigError
from hymirec.service.guard import ROOM, Guard, is_loopback, needed_scope, read_tokens
from hymirec.service.limit import Limit
from hymirec.service.rates import Rates
from hymirec.telemetry import RATE_LIMITED, SHED

READ, ALL = "r" * 32, "a" * 32


async def echo(scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
    """Answers with the content type and the body that came through."""
    body, more = b"", True
    while more:
        message = await receive()
        body, more = body + message["body"], message.get("more_body", False)
    kind = dict(scope["headers"]).get(b"content-type", b"-")
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": kind + b"|" + body})


def ask(guard: Guard, method: str, path: str, client: str = "127.0.0.1", **options: Any) -> httpx.Response:
    async def go() -> httpx.Response:
        transport = httpx.ASGITransport(guard, client=(client, 1))  # type: ignore[arg-type]
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8000") as http:
            return await http.request(method, path, **options)

    return asyncio.run(go())


def guarded(tokens: Path | None = None, most: int = 1024, in_flight: int = 8) -> Guard:
    return Guard(echo, most, in_flight, read_tokens(tokens) if tokens else None)


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    path = tmp_path / "tokens"
    lines = [f"read {READ}  # a dashboard", "", "# operators", *(f"{s} {ALL}" for s in ("read", "write", "erase"))]
    path.write_text("\n".join(lines))
    return path


def test_a_body_of_any_declared_type_is_json_as_curl_sends_it() -> None:
    reply = ask(guarded(), "POST", "/", content=b"{}", headers={"content-type": "application/x-www-form-urlencoded"})
    assert reply.text == "application/json|{}"


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_that_is_too_large_is_refused_whether_or_not_it_says_so(chunked: bool) -> None:
    async def parts() -> Any:
        for _ in range(20):
            yield b"x" * 100

    content: Any = parts() if chunked else b"x" * 2000
    reply = ask(guarded(), "POST", "/v1/events", content=content)
    assert reply.status_code == 413
    assert reply.headers["content-type"] == "application/problem+json"
    assert "at most 1024 bytes" in reply.json()["detail"]
    assert ask(guarded(), "POST", "/v1/events", content=b"x" * 1024).status_code == 200


def test_a_token_opens_what_its_scopes_say(token_file: Path) -> None:
    guard = guarded(token_file)
    bearer = {"authorization": f"Bearer {READ}"}
    assert ask(guard, "POST", "/v1/recommend", headers=bearer).status_code == 200
    refused = ask(guard, "POST", "/v1/events", headers=bearer)
    assert (refused.status_code, refused.json()["detail"]) == (403, "this token has scope read; write is needed")
    both = {"authorization": f"bearer {ALL}"}
    assert ask(guard, "POST", "/v1/events", headers=both).status_code == 200
    assert ask(guard, "DELETE", "/v1/users/u", headers=both).status_code == 200
    assert ask(guard, "POST", "/v1/admin/bundle", headers=both).status_code == 403


@pytest.mark.parametrize("value", ["", f"Basic {READ}", "Bearer ", f"Bearer {READ}x", READ])
def test_without_a_token_there_is_no_way_in(token_file: Path, value: str) -> None:
    reply = ask(guarded(token_file), "GET", "/v1/items/1", headers={"authorization": value} if value else {})
    assert reply.status_code == 401
    assert reply.headers["www-authenticate"] == "Bearer"


def test_probes_need_no_token(token_file: Path) -> None:
    for path in ("/healthz", "/readyz"):
        assert ask(guarded(token_file), "GET", path, client="10.0.0.9").status_code == 200


def test_without_tokens_only_this_machine_is_served(token_file: Path) -> None:
    assert ask(guarded(), "GET", "/v1/items/1", client="10.0.0.9").status_code == 403
    bearer = {"authorization": f"Bearer {READ}"}
    assert ask(guarded(token_file), "GET", "/v1/items/1", client="10.0.0.9", headers=bearer).status_code == 200


def test_a_web_page_of_another_site_is_not_served() -> None:
    assert ask(guarded(), "POST", "/v1/events", headers={"origin": "https://evil.example"}).status_code == 403
    assert ask(guarded(), "POST", "/v1/events", headers={"origin": "http://127.0.0.1:8000"}).status_code == 200


def test_too_many_requests_at_once_are_turned_away_with_a_time_to_come_back() -> None:
    async def go() -> list[httpx.Response]:
        begun, free = asyncio.Event(), asyncio.Event()

        async def slow(scope: Any, receive: Any, send: Any) -> None:
            begun.set()
            await free.wait()
            await echo(scope, receive, send)

        transport = httpx.ASGITransport(Guard(slow, 1024, 1, None), client=("127.0.0.1", 1))  # type: ignore[arg-type]
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8000") as http:
            first = asyncio.create_task(http.get("/v1/items/1"))
            await begun.wait()
            second = await http.get("/v1/items/1")
            free.set()
            return [await first, second, await http.get("/v1/items/1")]

    first, second, third = asyncio.run(go())
    assert [reply.status_code for reply in (first, second, third)] == [200, 503, 200]
    assert second.headers["retry-after"] == "1"


def test_each_answer_to_who_asks_tells_the_turnstile_how_many_are_let_in() -> None:
    limit = Limit(5, 1.0)
    guard = Guard(echo, 1024, 8, None, limit=limit)
    first, other = ask(guard, "POST", "/v1/recommend"), ask(guard, "POST", "/v1/events")
    assert first.headers[ROOM.decode()].split()[1] == "5"
    assert ROOM.decode() not in other.headers
    limit.inside = 5
    refused = ask(guard, "POST", "/v1/explain")
    assert refused.status_code == 503
    assert refused.headers[ROOM.decode()] == first.headers[ROOM.decode()]


def test_a_token_that_asks_too_often_is_turned_away_and_another_one_is_not(token_file: Path) -> None:
    clock, heard = [0.0], Recorder()
    guard = Guard(echo, 1024, 8, read_tokens(token_file), heard, rates=Rates(0.4, 3, lambda: clock[0]))

    def statuses(token: str, *paths: str) -> list[int]:
        bearer = {"authorization": f"Bearer {token}"}
        return [ask(guard, "POST", path, headers=bearer).status_code for path in paths]

    # What its scopes are does not matter: it is one token. What it may not do does not count.
    assert statuses(ALL, "/v1/recommend", "/v1/admin/bundle", "/v1/events", "/v1/recommend") == [200, 403, 200, 200]
    refused = ask(guard, "POST", "/v1/events", headers={"authorization": f"bearer {ALL}"})
    assert (refused.status_code, refused.headers["content-type"]) == (429, "application/problem+json")
    assert refused.json()["title"] == "Too Many Requests"
    assert "0.4 requests a second" in refused.json()["detail"]
    assert heard.of(RATE_LIMITED, scope="write") == [1]
    assert heard.labels(SHED, "where") == set()
    assert statuses(READ, "/v1/recommend") == [200]
    # As long as it says, in whole seconds, and not a moment before the bucket has one.
    assert refused.headers["retry-after"] == "3"
    clock[0] += 2.4
    assert statuses(ALL, "/v1/recommend") == [429]
    clock[0] += 0.1
    assert statuses(ALL, "/v1/recommend", "/v1/recommend") == [200, 429]


def test_probes_the_page_and_strangers_take_nothing_from_a_rate(token_file: Path) -> None:
    guard = Guard(echo, 1024, 8, read_tokens(token_file), rates=Rates(1, 1, lambda: 0.0))
    for _ in range(3):
        assert [ask(guard, "GET", path).status_code for path in ("/healthz", "/readyz", "/console/")] == [200] * 3
        assert ask(guard, "GET", "/v1/items/1", headers={"authorization": f"Basic {READ}"}).status_code == 401
    bearer = {"authorization": f"Bearer {READ}"}
    assert [ask(guard, "GET", "/v1/items/1", headers=bearer).status_code for _ in range(2)] == [200, 429]


def test_without_tokens_all_share_one_rate() -> None:
    guard = Guard(echo, 1024, 8, None, rates=Rates(1, 2, lambda: 0.0))
    replies = [ask(guard, "GET", "/v1/items/1", client=client) for client in ("127.0.0.1", "127.0.0.2", "::1")]
    assert [reply.status_code for reply in replies] == [200, 200, 429]
    assert ask(guard, "GET", "/console/").status_code == 200


def test_who_asks_too_often_is_told_so_when_the_service_is_full_as_well() -> None:
    heard = Recorder()
    guard = Guard(echo, 1024, 0, None, heard, rates=Rates(1, 1, lambda: 0.0))
    assert [ask(guard, "GET", "/v1/items/1").status_code for _ in range(3)] == [503, 429, 429]
    assert heard.of(SHED, where="door") == [1]


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "holds no token"), ("root " + READ, "line 1: expected `scope token`"), ("\nread short", "line 2: expected")],
)
def test_a_token_file_that_cannot_be_meant_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "tokens").write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_tokens(tmp_path / "tokens")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_tokens(tmp_path / "absent")


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        *((host, True) for host in ("127.0.0.1", "127.3.4.5", "::1", "::ffff:127.0.0.1", "localhost")),
        *((host, False) for host in ("0.0.0.0", "10.1.2.3", "::ffff:10.1.2.3", "example.org")),
    ],
)
def test_what_is_loopback(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback


def test_each_route_needs_its_scope() -> None:
    wanted = {
        ("POST", "/v1/recommend"): "read",
        ("GET", "/v1/users/u/history"): "read",
        ("POST", "/v1/events"): "write",
        ("DELETE", "/v1/users/u"): "erase",
        ("POST", "/v1/admin/bundle"): "admin",
    }
    assert {route: needed_scope(*route) for route in wanted} == wanted

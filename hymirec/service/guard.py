"""The door: tokens and sizes are checked before anything is parsed (an ASGI middleware)."""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

from hymirec.errors import ConfigError
from hymirec.service.problems import MEDIA_TYPE, problem

SCOPES = ("read", "write", "erase", "admin")
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
OPEN_PATHS = frozenset({"/healthz"})


def read_tokens(path: str | Path) -> list[tuple[str, bytes]]:
    """(scope, token) pairs of a file with one `scope token` a line; `#` begins a comment.

    Raises ConfigError for a missing file, an unknown scope, a short token or an empty file.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except OSError as e:
        raise ConfigError(f"token_file {path} cannot be read: {e}") from e
    tokens = []
    for number, line in enumerate(lines, start=1):
        words = line.split("#")[0].split()
        if not words:
            continue
        if len(words) != 2 or words[0] not in SCOPES or len(words[1]) < 16:
            raise ConfigError(
                f"{path}, line {number}: expected `scope token`, a scope of {', '.join(SCOPES)} and a token of at least "
                "16 characters (`openssl rand -hex 32`)"
            )
        tokens.append((words[0], words[1].encode()))
    if not tokens:
        raise ConfigError(f"{path} holds no token; write one `scope token` a line")
    return tokens


def needed_scope(method: str, path: str) -> str:
    """The scope that a request needs."""
    if path.startswith("/v1/admin"):
        return "admin"
    if method == "DELETE":
        return "erase"
    return "write" if path == "/v1/events" and method == "POST" else "read"


class Guard:
    """Checks token and body size, and takes any body of a POST for JSON, as `curl -d` sends it."""

    def __init__(self, app: App, max_body_bytes: int, tokens: list[tuple[str, bytes]] | None) -> None:
        self._app, self._most, self._tokens = app, max_body_bytes, tokens

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        refused = self._refused(scope, headers)
        if refused is None and self._declared(headers) > self._most:
            refused = 413, f"the body may have at most {self._most} bytes"
        if refused is not None:
            await _answer(send, *refused)
            return
        if scope["method"] == "POST":
            kept = [(name, value) for name, value in scope["headers"] if name != b"content-type"]
            scope = {**scope, "headers": [*kept, (b"content-type", b"application/json")]}
        body, complete = b"", False
        # Bodies are small and bounded: read whole, so that a body without a declared length is bounded as well.
        while not complete:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message.get("body", b"")
            complete = not message.get("more_body", False)
            if len(body) > self._most:
                await _answer(send, 413, f"the body may have at most {self._most} bytes")
                return
        sent = False

        async def replay() -> MutableMapping[str, Any]:
            nonlocal sent
            if sent:
                return await receive()
            sent = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self._app(scope, replay, send)

    @staticmethod
    def _declared(headers: dict[bytes, bytes]) -> int:
        value = headers.get(b"content-length", b"0")
        return int(value) if value.isdigit() else 0

    def _refused(self, scope: Scope, headers: dict[bytes, bytes]) -> tuple[int, str] | None:
        if self._tokens is None or scope["path"] in OPEN_PATHS:
            return None
        kind, _, given = headers.get(b"authorization", b"").partition(b" ")
        needed = needed_scope(scope["method"], scope["path"])
        # Every token is compared, in constant time: how long it takes tells nothing.
        matched = [name for name, token in self._tokens if hmac.compare_digest(token, given.strip())]
        if kind.lower() != b"bearer" or not matched:
            return 401, "a token is required: `Authorization: Bearer TOKEN`"
        if needed not in matched and "admin" not in matched:
            return 403, f"this token has scope {', '.join(matched)}; {needed} is needed"
        return None


async def _answer(send: Send, status: int, detail: str) -> None:
    body = problem(status, detail)
    headers = [(b"content-type", MEDIA_TYPE.encode()), (b"content-length", str(len(body)).encode())]
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})

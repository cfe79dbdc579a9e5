"""The door: who may come in, with how much, and how many at a time, before anything is parsed (an ASGI middleware)."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import secrets
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from hymirec.errors import ConfigError
from hymirec.service.limit import Limit
from hymirec.service.problems import MEDIA_TYPE, RETRY_AFTER_SECONDS, headers_of, problem
from hymirec.service.rates import Rates
from hymirec.telemetry import RATE_LIMITED, SHED, Observe, unobserved

SCOPES = ("read", "write", "erase", "admin")
SHORTEST_TOKEN = 16
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
# Probes carry no token and are never turned away.
OPEN_PATHS = frozenset({"/healthz", "/readyz"})
# What the recommender works for: as many at a time as it answers in time.
ASKING = frozenset({"/v1/recommend", "/v1/explain"})
# The page holds no data: a browser loads it without a token, and the page asks for one.
PAGE = "/console"
# Of answers, between the door and the turnstile: this door's name and how many it lets in.
ROOM = b"x-hymirec-room"


class Token(NamedTuple):
    """A scope and the SHA-256 of a token that has it."""

    scope: str
    digest: bytes


def read_tokens(path: str | Path) -> list[Token]:
    """Tokens of a file with one `scope token` a line; `#` begins a comment.

    Raises ConfigError for a missing file, an unknown scope, a short token or an empty file.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as e:
        raise ConfigError(f"token_file {path} cannot be read: {e}") from e
    tokens = []
    for number, line in enumerate(lines, start=1):
        words = line.split("#")[0].split()
        if not words:
            continue
        if len(words) != 2 or words[0] not in SCOPES or len(words[1]) < SHORTEST_TOKEN:
            raise ConfigError(
                f"{path}, line {number}: expected `scope token`, a scope of {', '.join(SCOPES)} and a token of at "
                f"least {SHORTEST_TOKEN} characters (`openssl rand -hex 32`)"
            )
        tokens.append(Token(words[0], hashlib.sha256(words[1].encode()).digest()))
    if not tokens:
        raise ConfigError(f"{path} holds no token; write one `scope token` a line")
    return tokens


def needed_scope(method: str, path: str) -> str:
    """The scope that a request needs."""
    if path.startswith("/v1/admin"):
        return "admin"
    if method == "DELETE":
        return "erase"
    return "write" if path.startswith("/v1/events") else "read"


def is_page(method: str, path: str) -> bool:
    """Whether a request loads a part of the console page."""
    return method == "GET" and (path in ("/", PAGE) or path.startswith(f"{PAGE}/"))


def is_loopback(host: str) -> bool:
    """Whether an address is of this machine alone; a name is not, but for localhost."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host in ("localhost", "")
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


class Refusal(NamedTuple):
    """What a request is turned away with; `wait` is in seconds, for the statuses that say when to come again."""

    status: int
    detail: str
    wait: float = RETRY_AFTER_SECONDS


class Guard:
    """Checks origin, token, rate, size and number of requests, and takes any body for JSON, as `curl -d` sends it."""

    def __init__(
        self,
        app: App,
        max_body_bytes: int,
        max_in_flight: int,
        tokens: Sequence[Token] | None,
        observe: Observe = unobserved,
        limit: Limit | None = None,
        rates: Rates | None = None,
    ) -> None:
        self._app, self._most, self._tokens, self._observe = app, max_body_bytes, tokens, observe
        self._limit, self._rates = limit, rates
        self._max_in_flight = max_in_flight
        self._name = secrets.token_hex(4)
        self._in_flight = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if self._limit and scope["path"] in ASKING:
            send = partial(self._tell_room, self._limit, send)
        refused = self._refused(scope, dict(scope["headers"]))
        if refused is not None:
            await _answer(send, refused)
            return
        self._in_flight += 1
        try:
            with self._limit.place() if self._limit and scope["path"] in ASKING else nullcontext():
                await self._bounded(scope, receive, send)
        finally:
            self._in_flight -= 1

    async def _tell_room(self, limit: Limit, send: Send, message: MutableMapping[str, Any]) -> None:
        """Send, and tell the turnstile how many are let in."""
        if message["type"] == "http.response.start":
            room = (ROOM, f"{self._name} {limit.value}".encode())
            message = {**message, "headers": [*message.get("headers", ()), room]}
        await send(message)

    async def _bounded(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Read the body, at most so many bytes, whatever its declared length, and hand it on."""
        parts, size, complete = [], 0, False
        while not complete:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            complete = not message.get("more_body", False)
            if size > self._most:
                await _answer(send, self._too_large())
                return
        if parts and size:
            kept = [(name, value) for name, value in scope["headers"] if name != b"content-type"]
            scope = {**scope, "headers": [*kept, (b"content-type", b"application/json")]}
        body: bytes | None = b"".join(parts)

        async def replay() -> MutableMapping[str, Any]:
            nonlocal body
            if body is None:
                return await receive()
            message = {"type": "http.request", "body": body, "more_body": False}
            body = None
            return message

        await self._app(scope, replay, send)

    def _too_large(self) -> Refusal:
        return Refusal(413, f"the body may have at most {self._most} bytes")

    def _refused(self, scope: Scope, headers: dict[bytes, bytes]) -> Refusal | None:
        if scope["path"] in OPEN_PATHS:
            return None
        refused = self._stranger(scope, headers) if self._tokens is None else self._unknown(scope, headers)
        # Before there is talk of room: who asks too much is told so, also when the service is full.
        refused = refused or self._too_often(scope, headers)
        if refused is not None:
            return refused
        if self._in_flight >= self._max_in_flight:
            self._observe(SHED, 1, where="door")
            return Refusal(503, f"{self._in_flight} requests are being worked on; try again in a moment")
        if self._limit and scope["path"] in ASKING and not self._limit.free:
            self._observe(SHED, 1, where="door")
            return Refusal(
                503, f"{self._limit.inside} requests wait, as many as are answered in time; try again in a moment"
            )
        declared = headers.get(b"content-length", b"0")
        return self._too_large() if declared.isdigit() and int(declared) > self._most else None

    def _too_often(self, scope: Scope, headers: dict[bytes, bytes]) -> Refusal | None:
        """Every request that a token allows counts, whatever becomes of it; without tokens all are of one."""
        if self._rates is None or is_page(scope["method"], scope["path"]):
            return None
        wait = self._rates.wait(b"" if self._tokens is None else _digest(headers))
        if not wait:
            return None
        self._observe(RATE_LIMITED, 1, scope=needed_scope(scope["method"], scope["path"]))
        most = f"{self._rates.per_second:g} requests a second"
        return Refusal(429, f"a token may send {most}, and this is more; try again in {wait:.2f} s", wait)

    @staticmethod
    def _stranger(scope: Scope, headers: dict[bytes, bytes]) -> Refusal | None:
        """Without tokens only programs of this machine are served, and no web page of another site."""
        client = (scope.get("client") or ("", 0))[0]
        if not is_loopback(client):
            return Refusal(403, "beyond loopback this service needs a token_file; see docs/operations.md")
        origin = urlsplit(headers.get(b"origin", b"").decode("latin-1"))
        if origin.netloc and origin.netloc != headers.get(b"host", b"").decode("latin-1"):
            return Refusal(403, f"requests of the web page {origin.scheme}://{origin.netloc} are not served")
        return None

    def _unknown(self, scope: Scope, headers: dict[bytes, bytes]) -> Refusal | None:
        assert self._tokens is not None
        if is_page(scope["method"], scope["path"]):
            return None
        digest = _digest(headers)
        # Every token is compared, in constant time: how long it takes tells nothing.
        scopes = [token.scope for token in self._tokens if hmac.compare_digest(token.digest, digest)]
        if not scopes:
            return Refusal(401, "a token is required: `Authorization: Bearer TOKEN`")
        needed = needed_scope(scope["method"], scope["path"])
        if needed not in scopes:
            return Refusal(403, f"this token has scope {', '.join(scopes)}; {needed} is needed")
        return None


def _digest(headers: dict[bytes, bytes]) -> bytes:
    """SHA-256 of the bearer token that a request came with, which is that of no token when it came with none."""
    kind, _, given = headers.get(b"authorization", b"").partition(b" ")
    return hashlib.sha256(given.strip() if kind.lower() == b"bearer" else b"").digest()


async def _answer(send: Send, refusal: Refusal) -> None:
    body = problem(refusal.status, refusal.detail)
    more = headers_of(refusal.status, refusal.wait)
    headers = {"content-type": MEDIA_TYPE, "content-length": str(len(body)), **more}
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": refusal.status, "headers": raw})
    await send({"type": "http.response.body", "body": body})

"""A turnstile before the door: under overload it turns requests away where connections come in (an ASGI middleware).

The door (`hymirec.service.guard`) is inside the ingress, and the call to that replica costs many times what the refusal
does: at many times the capacity the ingress then does nothing else, and refusals come late. The turnstile stands in
the proxy and knows nothing of tokens. It watches which answers pass it. The door says with each how many it lets in:
that is the most that one turnstile ever lets pass, so that no crowd can gather on the way. Where there are several
turnstiles, that is too many: when the door turns a request away (503 with Retry-After), as many as are inside at that
time are let in from then on, and each other answer (but a 429, which says nothing of room) lets a little more in. When
the crowd has been gone for a minute that is forgotten. Who is turned away gets a copy of the door's last refusal.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, MutableMapping
from typing import Any

from hymirec.service.guard import ASKING, ROOM, App, Receive, Scope, Send
from hymirec.service.problems import MEDIA_TYPE, headers_of, problem
from hymirec.service.trace import HEADER, id_of
from hymirec.telemetry import SHED, Observe, unobserved

# An eighth of what is let in may find the door closed.
RISE = 1 / 8
# A refusal is a few hundred bytes; anything longer is not kept.
MOST_BYTES = 4096
# Crowds come again: so long after the last refusal it is remembered how many were let in.
CALM_SECONDS = 60.0
# Doors that are remembered; one that was replaced only makes the sum larger.
MOST_DOORS = 16
NO_ROOM = problem(503, "as many requests wait as are answered in time; try again in a moment")
Message = MutableMapping[str, Any]


def asks(path: str) -> bool:
    """Whether a path, with or without a prefix of the application's route, is one that the recommender works for."""
    return path.endswith(tuple(ASKING))


class Turnstile:
    """Of one event loop. `asking(path)` says which requests the door may turn away for want of room."""

    def __init__(
        self,
        app: App,
        observe: Observe = unobserved,
        asking: Callable[[str], bool] = asks,
    ) -> None:
        self._app, self._observe, self._asking = app, observe, asking
        self._bound: float | None = None
        headers = {"content-type": MEDIA_TYPE, "content-length": str(len(NO_ROOM)), **headers_of(503)}
        self._refusal = [(name.encode(), value.encode()) for name, value in headers.items()], NO_ROOM
        self._refused = 0.0
        self._rooms: dict[bytes, int] = {}
        self.inside = 0

    @property
    def bound(self) -> int | None:
        """How many may be inside; None while nothing is known of the door."""
        told = sum(self._rooms.values()) if self._rooms else None
        if self._bound is None:
            return told
        return int(self._bound) if told is None else min(told, int(self._bound))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http" or not self._asking(scope["path"]):
            await self._app(scope, receive, send)
            return
        bound = self.bound
        if bound is not None and self.inside >= bound:
            self._observe(SHED, 1, where="proxy")
            await self._turn_away(scope, send)
            return
        self.inside += 1
        answer = _Answer(send)
        try:
            await self._app(scope, receive, answer)
        finally:
            self.inside -= 1
        self._learn(answer)

    def _learn(self, answer: _Answer) -> None:
        door, _, room = answer.room.partition(b" ")
        if room.isdigit() and (door in self._rooms or len(self._rooms) < MOST_DOORS):
            # Never none: nobody would ever come in to hear otherwise.
            self._rooms[door] = max(1, int(room))
        now = asyncio.get_running_loop().time()
        if answer.is_refusal:
            self._refusal, self._refused = (answer.headers, answer.body), now
            here = max(1.0, float(self.inside))
            self._bound = here if self._bound is None else min(self._bound, here)
        elif self._bound is not None and answer.status != 429:
            if 2 * (self.inside + 1) >= self._bound:
                self._bound += RISE
            elif now - self._refused > CALM_SECONDS:
                self._bound = None

    async def _turn_away(self, scope: Scope, send: Send) -> None:
        headers, body = self._refusal
        own = id_of(dict(scope["headers"]).get(HEADER, b"")).encode()
        await send({"type": "http.response.start", "status": 503, "headers": [*headers, (HEADER, own)]})
        await send({"type": "http.response.body", "body": body})


class _Answer:
    """Hands an answer on, and keeps it when it is a refusal for want of room."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._refused = self._whole = False
        self.status = 0
        self.room = b""
        self.headers: list[tuple[bytes, bytes]] = []
        self.body = b""

    @property
    def is_refusal(self) -> bool:
        """Whether the whole of it came, and it says to come again."""
        return self._refused and self._whole

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = [(bytes(name).lower(), bytes(value)) for name, value in message.get("headers", ())]
            self.room = dict(headers).get(ROOM, b"")
            if self.room:
                # It is for this turnstile.
                headers = [(name, value) for name, value in headers if name != ROOM]
                message = {**message, "headers": headers}
            self._refused = self.status == 503 and any(name == b"retry-after" for name, _ in headers)
            self.headers = [(name, value) for name, value in headers if name not in (HEADER, b"date")]
        elif self._refused and message["type"] == "http.response.body":
            self.body += message.get("body", b"")
            self._refused = len(self.body) <= MOST_BYTES
            self._whole = not message.get("more_body", False)
        await self._send(message)

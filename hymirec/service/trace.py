"""Around everything: each request's id, its line in the log, its status among the metrics, and its span (ASGI)."""

from __future__ import annotations

import logging
import re
import time
import uuid
from collections.abc import MutableMapping
from typing import Any

from hymirec.service.guard import OPEN_PATHS, App, Receive, Scope, Send
from hymirec.service.logs import request_id
from hymirec.service.spans import annotate_http, request_span
from hymirec.telemetry import RESPONSES, Observe

log = logging.getLogger(__name__)
HEADER = b"x-request-id"
# What a client may choose; anything else gets an id of ours.
FIT = re.compile(rb"[A-Za-z0-9._:/+=-]{1,128}")


class Trace:
    """Takes `X-Request-Id` or makes one. `answer` False leaves it out of the reply, where a proxy puts it in."""

    def __init__(self, app: App, observe: Observe, answer: bool = True) -> None:
        self._app, self._observe, self._answer = app, observe, answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http" or scope["path"] in OPEN_PATHS:
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        own = id_of(headers.get(HEADER, b""))
        token = request_id.set(own)
        begun, status = time.monotonic(), 0
        # The first two parts of a path name the route; what follows may name a user.
        where = "/".join(scope["path"].split("/")[:3])

        async def noted(message: MutableMapping[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                if self._answer:
                    message = {**message, "headers": [*message.get("headers", ()), (HEADER, own.encode())]}
            await send(message)

        with request_span(f"{scope['method']} {where}", headers):
            try:
                await self._app(scope, receive, noted)
            finally:
                if status:
                    self._observe(RESPONSES, 1, status=str(status))
                seconds = round(time.monotonic() - begun, 6)
                told = {"method": scope["method"], "path": where, "status": status, "seconds": seconds}
                log.info("request", extra=told)
                annotate_http(scope["method"], where, status)
                request_id.reset(token)


def id_of(given: bytes) -> str:
    """The id that a request came with, if it is fit for logs; else a new one."""
    return given.decode() if FIT.fullmatch(given) else uuid.uuid4().hex

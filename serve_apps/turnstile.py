"""The turnstile in Serve's proxies: RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH=serve_apps.turnstile:middlewares."""

from __future__ import annotations

from starlette.middleware import Middleware

from hymirec.service.turnstile import Turnstile
from serve_apps.meters import Meters


def middlewares() -> list[Middleware]:
    """What each proxy of Ray Serve puts around itself."""
    return [Middleware(Turnstile, observe=Meters())]

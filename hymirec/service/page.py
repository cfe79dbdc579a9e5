"""The console: a static page over the HTTP interface, for people. It holds no data and needs no build step."""

from __future__ import annotations

from importlib.resources import files
from typing import Annotated

from fastapi import FastAPI, Path
from fastapi.responses import RedirectResponse, Response
from starlette.exceptions import HTTPException

from hymirec.service.guard import PAGE

PARTS = {
    "index.html": "text/html; charset=utf-8",
    "app.js": "text/javascript; charset=utf-8",
    "style.css": "text/css; charset=utf-8",
    "icon.svg": "image/svg+xml",
}
# Nothing but the page's own files and this service: what an item's title holds cannot become a script.
HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}


def add_page(api: FastAPI) -> None:
    """Serve the console at `/console/`, and lead there from `/`."""
    folder = files("hymirec.service") / "console"
    content = {name: (folder / name).read_bytes() for name in PARTS}

    @api.get("/", include_in_schema=False)
    @api.get(PAGE, include_in_schema=False)
    async def lead() -> Response:
        # Relative to what the browser shows, so that it also works behind a prefix.
        return RedirectResponse(f".{PAGE}/")

    @api.get(f"{PAGE}/", include_in_schema=False)
    async def index() -> Response:
        return Response(content["index.html"], media_type=PARTS["index.html"], headers=HEADERS)

    @api.get(f"{PAGE}/{{name}}", include_in_schema=False)
    async def part(name: Annotated[str, Path(max_length=64)]) -> Response:
        if name not in content:
            raise HTTPException(404, "the console has no such part")
        return Response(content[name], media_type=PARTS[name], headers=HEADERS)

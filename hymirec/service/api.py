"""The HTTP interface as an ASGI application: routes, errors, OpenAPI."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Annotated, Any

from fastapi import FastAPI, Path, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from fastapi.responses import Response
from starlette.convertors import Convertor, register_url_convertor
from starlette.exceptions import HTTPException

from hymirec.config import LimitsConfig, ServiceConfig
from hymirec.errors import HyMiRecError, OverloadedError
from hymirec.service.frontend import Frontend
from hymirec.service.guard import OPEN_PATHS, App, Guard, read_tokens
from hymirec.service.models import (
    MAX_ID_BYTES,
    Accepted,
    BundleReply,
    BundleRequest,
    EventsIn,
    ExplainReply,
    ExplainRequest,
    Health,
    HistoryReply,
    ItemReply,
    ItemsReply,
    Problem,
    RecommendReply,
    RecommendRequest,
)
from hymirec.service.page import add_page
from hymirec.service.problems import MEDIA_TYPE, headers_of, problem, status_of, validation_problem
from hymirec.service.rates import Rates
from hymirec.service.trace import Trace
from hymirec.telemetry import SHED, Observe, unobserved

log = logging.getLogger(__name__)
VERSION = "1"
UserId = Annotated[str, Path(min_length=1, max_length=MAX_ID_BYTES)]
ALWAYS = (401, 403, 413, 422, 500, 503)


class IdConvertor(Convertor[str]):
    """An id within a path, whatever it holds: `path` of Starlette ends at a line break."""

    regex = r"[\s\S]*"

    def convert(self, value: str) -> str:
        """From the path."""
        return value

    def to_string(self, value: str) -> str:
        """Into a path."""
        return value


register_url_convertor("id", IdConvertor())


def create_api(
    frontend: Frontend, config: ServiceConfig, observe: Observe = unobserved, answer_request_id: bool = True
) -> App:
    """The application, its guard in front. Raises ConfigError for a token file that cannot be used."""
    tokens = read_tokens(config.token_file) if config.token_file else None

    @asynccontextmanager
    async def lifespan(api: FastAPI) -> AsyncIterator[None]:
        await frontend.start()
        yield
        await frontend.stop()

    api = FastAPI(
        title="HyMiRec",
        version=VERSION,
        lifespan=lifespan,
        responses=_problems(*ALWAYS),
        # FastAPI's spans hold whole paths and queries, its logs messages of errors; both know nothing of the door.
        telemetry={"tracing": False, "metrics": False, "logs": False, "auto_configure": False},
    )
    _add_handlers(api, observe)
    _add_serving(api, frontend)
    _add_operation(api, frontend)
    add_page(api)
    api.openapi = lambda: _openapi(api, config.limits)  # type: ignore[method-assign]
    limits = config.limits
    most = limits.max_ongoing_requests + limits.max_queued_requests
    guard = Guard(api, limits.max_body_bytes, most, tokens, observe, frontend.limit, Rates.of(limits))
    return Trace(guard, observe, answer_request_id)


def _problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: {"model": Problem} for status in statuses}


def _add_handlers(api: FastAPI, observe: Observe) -> None:
    def answer(status: int, body: bytes) -> Response:
        return Response(body, status, headers_of(status), MEDIA_TYPE)

    async def invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return answer(*validation_problem(error.errors()))

    async def refused(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return answer(error.status_code, problem(error.status_code, str(error.detail)))

    async def ours(request: Request, error: Exception) -> Response:
        assert isinstance(error, HyMiRecError)
        if isinstance(error, OverloadedError):
            observe(SHED, 1, where="stage")
        return answer(status_of(error), problem(status_of(error), str(error)))

    async def unforeseen(request: Request, error: Exception) -> Response:
        # Starlette raises it again behind this answer, so the log has the traceback.
        return answer(500, problem(500, "an error of this service; its log says which"))

    api.add_exception_handler(RequestValidationError, invalid)
    api.add_exception_handler(HTTPException, refused)
    api.add_exception_handler(HyMiRecError, ours)
    api.add_exception_handler(Exception, unforeseen)


def _add_serving(api: FastAPI, frontend: Frontend) -> None:
    @api.post("/v1/recommend", responses=_problems(400))
    async def recommend(body: RecommendRequest) -> RecommendReply:
        """The best items for a user of the log, or for a history given here."""
        return await frontend.recommend(body)

    @api.post("/v1/explain", responses=_problems(400))
    async def explain(body: ExplainRequest) -> ExplainReply:
        """The best items, what each interest is near to and finds alone, and a map of them; costs twice as much.

        No lesser answer is given when there is no time for this one: 503.
        """
        return await frontend.explain(body)

    @api.post("/v1/events", status_code=202, responses=_problems(400))
    async def events(body: EventsIn) -> Accepted:
        """Put events into the log. They are stored when this answers, and visible a moment later."""
        return await frontend.events(body if isinstance(body, list) else [body])

    @api.get("/v1/users/{user_id:id}/history")
    async def history(user_id: UserId, limit: Annotated[int, Query(ge=0, le=10_000)] = 100) -> HistoryReply:
        """A user's newest events, oldest first."""
        return await frontend.history(user_id, limit)

    @api.delete("/v1/users/{user_id:id}", status_code=202)
    async def erase(user_id: UserId) -> Accepted:
        """Erase a user: reads show nothing from now on, and replaying the log erases again."""
        return await frontend.erase(user_id)

    @api.get("/v1/items", responses=_problems(400))
    async def find(
        q: Annotated[str, Query(min_length=1, max_length=200)], limit: Annotated[int, Query(ge=1, le=100)] = 20
    ) -> ItemsReply:
        """Items whose title holds every word of `q`, most popular first."""
        return await frontend.find(q, limit)

    @api.get("/v1/items/{item_id:id}", responses=_problems(404))
    async def item(item_id: Annotated[str, Path(min_length=1, max_length=MAX_ID_BYTES)]) -> ItemReply:
        """One item of the bundle."""
        return await frontend.item(item_id)


def _add_operation(api: FastAPI, frontend: Frontend) -> None:
    @api.post("/v1/admin/bundle", responses=_problems(400, 409))
    async def swap(body: BundleRequest) -> BundleReply:
        """Load a bundle beside the one that serves, verify every file, and serve it; refused, the old one stays.

        A big bundle may take longer than a request may: the same call again waits for the same swap.
        """
        return await frontend.swap(body.path)

    @api.get("/healthz")
    async def healthz() -> Health:
        """The ingress runs."""
        return Health(status="ok")

    @api.get("/readyz")
    async def readyz() -> Health:
        """Bundle, store and log can be used; 503 names what cannot and the command that mends it."""
        return await frontend.ready()


def _openapi(api: FastAPI, limits: LimitsConfig) -> dict[str, Any]:
    """FastAPI's description, with the media type of problems and the limits of this service."""
    if api.openapi_schema is None:
        schema = get_openapi(title=api.title, version=api.version, routes=api.routes)
        for path, operations in schema["paths"].items():
            for operation in operations.values():
                for status, response in operation["responses"].items():
                    if int(status) >= 400:
                        response["content"] = {MEDIA_TYPE: response["content"].pop("application/json")}
                if limits.requests_per_second is not None and path not in OPEN_PATHS:
                    phrase = {"description": HTTPStatus.TOO_MANY_REQUESTS.phrase}
                    operation["responses"]["429"] = operation["responses"]["503"] | phrase
        for request in ("RecommendRequest", "ExplainRequest"):
            fields = schema["components"]["schemas"][request]["properties"]
            fields["k"]["maximum"] = limits.max_k
            fields["exclude"]["maxItems"] = limits.max_history
            for option in fields["history"]["anyOf"]:
                if option.get("type") == "array":
                    option["maxItems"] = limits.max_history
        api.openapi_schema = schema
    return api.openapi_schema

"""The ingress: HTTP in, two deployments behind it. It holds no state but a short list of popular items."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import numpy as np
from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from ray import serve
from ray.exceptions import RayTaskError
from ray.serve.exceptions import BackPressureError
from ray.serve.handle import DeploymentHandle
from starlette.exceptions import HTTPException

import hymirec
from hymirec.catalog.events import Event
from hymirec.catalog.keys import item_keys
from hymirec.config import ServiceConfig
from hymirec.errors import ArtifactDamagedError, BundleError, HyMiRecError, RequestError, StoreUnavailableError
from hymirec.history import History
from hymirec.inference import Recommendations
from hymirec.service import release
from hymirec.service.guard import Guard, read_tokens
from hymirec.service.models import (
    Accepted,
    AsOf,
    BundleReply,
    BundleRequest,
    EventIn,
    Health,
    HistoryReply,
    ItemReply,
    ItemsReply,
    Problem,
    RecommendReply,
    RecommendRequest,
)
from hymirec.service.problems import MEDIA_TYPE, problem, status_of, validation_problem
from hymirec.streaming import erase_message, event_message, open_log
from hymirec.streaming.source import EventProducer
from serve_apps.history_writer import Snapshot

TRIES = 3
RETRY_AFTER_SECONDS = 1
WAIT_STEP_SECONDS = 0.02
STAGE_SECONDS = 300.0
MAX_EVENTS = 10_000
T = TypeVar("T")
PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"model": Problem, "content": {MEDIA_TYPE: {}}} for status in (400, 401, 403, 404, 409, 413, 422, 503)
}
api = FastAPI(title="HyMiRec", version=hymirec.__version__, responses=PROBLEMS)


def _answer(status: int, body: bytes) -> Response:
    headers = {"retry-after": str(RETRY_AFTER_SECONDS)} if status == 503 else None
    return Response(body, status, headers, MEDIA_TYPE)


@api.exception_handler(RequestValidationError)
async def _invalid(request: Request, error: RequestValidationError) -> Response:
    return _answer(*validation_problem(error.errors()))


@api.exception_handler(HTTPException)
async def _http(request: Request, error: HTTPException) -> Response:
    return _answer(error.status_code, problem(error.status_code, str(error.detail)))


@api.exception_handler(HyMiRecError)
async def _ours(request: Request, error: HyMiRecError) -> Response:
    return _answer(status_of(error), problem(status_of(error), str(error)))


@api.exception_handler(BackPressureError)
async def _shed(request: Request, error: BackPressureError) -> Response:
    return _answer(503, problem(503, "too many requests are waiting; try again in a moment"))


class _Door:
    """Middleware whose limits and tokens are known only once the deployment starts in this process."""

    limits: ServiceConfig | None = None

    def __init__(self, app: Any) -> None:
        self._app = app
        self._guard: Guard | None = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        config = _Door.limits
        if self._guard is None and config is not None:
            tokens = read_tokens(config.token_file) if config.token_file else None
            self._guard = Guard(self._app, config.limits.max_body_bytes, tokens)
        await (self._guard or self._app)(scope, receive, send)


api.add_middleware(_Door)


@serve.deployment
@serve.ingress(api)
class Ingress:
    """Validates, forwards, retries what may be retried, and degrades rather than fails."""

    def __init__(self, config: ServiceConfig, recommender: DeploymentHandle, writer: DeploymentHandle) -> None:
        self._config = config
        self._limits = config.limits
        self._recommender = recommender
        self._writer = writer
        self._producer: EventProducer | None = None
        self._popular: Recommendations | None = None
        if config.token_file:
            # A file that cannot be read stops the deployment here, not the first request.
            read_tokens(config.token_file)
        _Door.limits = config

    async def _ask(self, call: Callable[[], Any], seconds: float) -> Any:
        """One call to a deployment: up to three tries within the time, never after a refusal or an error of ours.

        Raises TimeoutError when the time is over.
        """
        deadline = time.monotonic() + seconds
        for attempt in range(TRIES):
            left = deadline - time.monotonic()
            if left <= 0:
                break
            try:
                return await asyncio.wait_for(call(), left)
            except (BackPressureError, TimeoutError):
                raise
            except RayTaskError as e:
                cause = e.as_instanceof_cause()
                raise cause if isinstance(cause, HyMiRecError) else e from e
            except HyMiRecError:
                raise
            except Exception:
                # A replica died with the call; another one answers it.
                if attempt == TRIES - 1:
                    raise
        raise TimeoutError

    @api.post("/v1/recommend")
    async def recommend(self, body: RecommendRequest) -> RecommendReply:
        """The best items for a user of the log, or for a history given here."""
        if body.k > self._limits.max_k:
            raise RequestError(f"k may be at most {self._limits.max_k}, got {body.k}")
        now = int(time.time()) if body.now is None else body.now
        deadline = time.monotonic() + self._limits.request_timeout_seconds
        try:
            snapshot = await self._snapshot(body, now, deadline)
        except (TimeoutError, StoreUnavailableError):
            return RecommendReply.of(await self._fallback(body.k), AsOf())
        history = snapshot.history
        as_of = AsOf(ts=int(history.ts[-1]) if len(history) else None, offsets=snapshot.offsets)
        left = min(self._limits.stage_timeout_seconds, deadline - time.monotonic())
        # What is left decides how much is asked for: stale coarse interests save the long history's pass.
        stale_ok = left < 0.5 * self._limits.stage_timeout_seconds
        try:
            found = await self._ask(
                lambda: self._recommender.recommend.remote(
                    history.keys, history.ts, body.k, now, body.exclude, body.filter_seen, snapshot.coarse, stale_ok
                ),
                left,
            )
        except TimeoutError:
            found = await self._fallback(body.k)
        return RecommendReply.of(found, as_of)

    async def _snapshot(self, body: RecommendRequest, now: int, deadline: float) -> Snapshot:
        if body.history is not None:
            return self._given(body, now)
        while True:
            left = min(self._limits.stage_timeout_seconds, deadline - time.monotonic())
            found: Snapshot = await self._ask(lambda: self._writer.snapshot.remote(str(body.user_id)), left)
            newest = int(found.history.ts[-1]) if len(found.history) else -1
            if body.min_ts is None or newest >= body.min_ts or left < self._limits.stage_timeout_seconds / 2:
                return found
            await asyncio.sleep(WAIT_STEP_SECONDS)

    def _given(self, body: RecommendRequest, now: int) -> Snapshot:
        given = body.history or []
        if len(given) > self._limits.max_history:
            raise RequestError(f"a history may have at most {self._limits.max_history} items, got {len(given)}")
        pairs = [(entry[0], entry[1]) if isinstance(entry, tuple) else (entry, now) for entry in given]
        keys = item_keys(item for item, _ in pairs)
        ts = np.array([at for _, at in pairs], np.int64)
        order = np.argsort(ts, kind="stable")
        return Snapshot(History(keys[order], ts[order], np.zeros(len(ts), np.uint8), len(ts)), None, {})

    async def _fallback(self, k: int) -> Recommendations:
        """Popular items, from here if they are known, else from the recommender in whatever time it takes."""
        if self._popular is None:
            self._popular = await self._ask(
                lambda: self._recommender.popular.remote(self._limits.max_k), self._limits.request_timeout_seconds
            )
        known = self._popular
        return Recommendations(known.items[:k], known.bundle, "popular", degraded=True)

    @api.post("/v1/events", status_code=202)
    async def events(self, body: EventIn | list[EventIn]) -> Accepted:
        """Put events into the log. They are stored when this answers, and visible a moment later."""
        given = body if isinstance(body, list) else [body]
        if len(given) > MAX_EVENTS:
            raise RequestError(f"at most {MAX_EVENTS} events at once, got {len(given)}")
        messages = [
            event_message(
                Event(
                    event_id=str(event.event_id),
                    user_id=str(event.user_id),
                    item_id=str(event.item_id),
                    ts=event.ts,
                    action=event.action,
                )
            )
            for event in given
        ]
        await self._send(messages)
        return Accepted(accepted=len(messages))

    async def _send(self, messages: list[tuple[str, bytes]]) -> None:
        if self._producer is None:
            self._producer = await asyncio.to_thread(lambda: open_log(self._config.stream).producer())
        await asyncio.to_thread(self._producer.send, messages)

    @api.get("/v1/users/{user_id}/history")
    async def history(self, user_id: str, limit: int = Query(100, ge=0, le=10_000)) -> HistoryReply:
        """A user's newest events, oldest first."""
        seconds = self._limits.stage_timeout_seconds
        found = await self._or_busy(self._ask(lambda: self._writer.snapshot.remote(user_id, limit), seconds))
        h = found.history
        events = await self._or_busy(
            self._ask(lambda: self._recommender.describe.remote(h.keys, h.ts, h.actions), seconds)
        )
        as_of = AsOf(ts=int(h.ts[-1]) if len(h) else None, offsets=found.offsets)
        return HistoryReply(user_id=user_id, count=h.count, events=events, as_of=as_of)

    @api.delete("/v1/users/{user_id}", status_code=202)
    async def erase(self, user_id: str) -> Accepted:
        """Erase a user: an event of the log, so replay does not bring them back; reads show nothing at once."""
        await self._send([erase_message(user_id)])
        await self._or_busy(self._ask(lambda: self._writer.hide.remote(user_id), self._limits.stage_timeout_seconds))
        return Accepted(accepted=1)

    @api.get("/v1/items/{item_id:path}")
    async def item(self, item_id: str) -> ItemReply:
        """One item of the bundle."""
        seconds = self._limits.stage_timeout_seconds
        reply: ItemReply = await self._or_busy(self._ask(lambda: self._recommender.item.remote(item_id), seconds))
        return reply

    @api.get("/v1/items")
    async def items(self, q: str = Query(min_length=1, max_length=200)) -> ItemsReply:
        """Find items by words of their title."""
        seconds = self._limits.stage_timeout_seconds
        reply: ItemsReply = await self._or_busy(self._ask(lambda: self._recommender.find.remote(q), seconds))
        return reply

    @api.post("/v1/admin/bundle")
    async def swap(self, body: BundleRequest) -> BundleReply:
        """Load a bundle beside the one that serves, on every replica; if all of them have it, serve it."""
        previous = await self._or_busy(
            self._ask(lambda: self._recommender.bundle_id.remote(), self._limits.stage_timeout_seconds)
        )
        staged = await self._everywhere("stage", body.path)
        refused = sorted({text for text in staged if text.startswith("error: ")})
        if refused:
            raise ArtifactDamagedError(f"{refused[0].removeprefix('error: ')}. {previous[:12]} keeps serving")
        if len(set(staged)) != 1:
            raise BundleError(f"replicas read different bundles at {body.path}; {previous[:12]} keeps serving")
        await self._everywhere("activate", staged[0])
        await asyncio.to_thread(release.remember, self._config.bundle, body.path)
        self._popular = None
        return BundleReply(bundle=staged[0], previous=previous)

    async def _everywhere(self, method: str, argument: str) -> list[str]:
        response = self._recommender.broadcast(method, argument)
        found: list[str] = await response.results_async(timeout_s=STAGE_SECONDS)
        return found

    @api.get("/healthz")
    async def healthz(self) -> Health:
        """The ingress runs."""
        return Health(status="ok")

    @api.get("/readyz")
    async def readyz(self) -> Health:
        """Bundle, store and log can be used; 503 names what cannot and the command that mends it."""
        seconds = self._limits.stage_timeout_seconds
        bundle = await self._or_busy(self._ask(lambda: self._recommender.bundle_id.remote(), seconds))
        status = await self._or_busy(self._ask(lambda: self._writer.status.remote(), seconds))
        if not status.ready:
            causes = "; ".join(f"{name}: {cause}" for name, cause in status.problems.items())
            raise StoreUnavailableError(causes or "the history writer is starting")
        lag = {str(partition): value for partition, value in status.lag.items()}
        return Health(status="ok", bundle=bundle, lag=lag, counts=status.counts)

    @staticmethod
    async def _or_busy(asked: Awaitable[T]) -> T:
        try:
            return await asked
        except TimeoutError as e:
            raise StoreUnavailableError("a part of the service did not answer in time; try again") from e

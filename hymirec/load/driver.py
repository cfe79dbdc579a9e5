"""Asks a running service as its users would.

A visit is a request for recommendations and then, for a share of the visits, the event of what the user did. For a
share of the events the user asks again, with `min_ts`, until an answer has seen the event: event-to-visible runs from
the sending of the event to that answer.

Open loop: visits begin when they are due, whether or not the ones before have been answered, and latency counts from
when they were due. Closed loop: so many clients, each of which begins its next visit when the last has ended.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import secrets
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import aiohttp

from hymirec.errors import ServiceError
from hymirec.load.check import Checked, wrong
from hymirec.load.report import Outcome, Sample, Samples
from hymirec.load.traffic import Traffic, Visit

SHED = (429, 503)
EVENTS_AT_ONCE = 1_000
# Behind every time-out of the service itself: its own answer says more than none.
MARGIN_SECONDS = 10.0
VISIBLE_SECONDS = 30.0
READY_SECONDS = 600.0
# Servers close idle connections after 5 s or more; a request on one that is being closed would fail.
KEEP_ALIVE_SECONDS = 3.0
REMEMBERED_EVENTS = 200
STEP_SECONDS = 0.05
# The service measures its lag every two seconds: what it says at once is of before the last post.
LAG_SECONDS = 3.0
Check = Callable[[Checked, dict[str, Any]], str | None]


@dataclass(frozen=True)
class LoadPlan:
    """`rate` visits a second, or `clients` that visit again and again, for `seconds`."""

    url: str
    seconds: float
    rate: float = 10.0
    clients: int = 0
    own_times: bool = False
    k: int = 20
    event_share: float = 0.5
    probe_share: float = 0.1
    most_in_flight: int = 4_000
    timeout: float = 5.0
    seed: int = 0
    token: str | None = None
    bundles: frozenset[str] = frozenset()
    now: int | None = None


class Reply(NamedTuple):
    """What came back; status 0 for nothing, with the error as text."""

    status: int
    body: Any
    text: str


@dataclass
class _User:
    """`events` are the user's newest ones (item, seconds) that the log has confirmed."""

    events: deque[tuple[str, int]] = field(default_factory=lambda: deque(maxlen=REMEMBERED_EVENTS))
    posting: bool = False


class Load:
    """One load. `run` may be called once; `stop` ends it early, from any thread."""

    def __init__(self, plan: LoadPlan, traffic: Traffic, check: Check = wrong) -> None:
        self.samples = Samples()
        self._plan, self._traffic, self._check = plan, traffic, check
        self._users: dict[str, _User] = {}
        self._random = random.Random(plan.seed)
        # Events of two loads are different events.
        self._name, self._numbers = secrets.token_hex(6), itertools.count()
        self._bundles = set(plan.bundles)
        self._begun = 0.0
        self._stopped = False

    def stop(self) -> None:
        """No more visits; those in flight are ended."""
        self._stopped = True

    async def run(self, past: bool = False) -> Samples:
        """Wait until the service is ready, post what has happened before if that is wanted, then load it.

        Raises ServiceError when the service does not become ready.
        """
        headers = {"authorization": f"Bearer {self._plan.token}"} if self._plan.token else {}
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE_SECONDS)
        timeout = aiohttp.ClientTimeout(total=self._plan.timeout + MARGIN_SECONDS)
        async with aiohttp.ClientSession(
            self._plan.url, connector=connector, timeout=timeout, headers=headers
        ) as session:
            self._session = session
            ready = await self._ready()
            if not self._bundles:
                self._bundles = {str(ready["bundle"])}
            for user, item, ts in self._traffic.before():
                self._user(user).events.append((item, ts))
            if past:
                await self._post_past()
            visits = self._traffic.visits(self._plan.rate, self._plan.own_times, self._plan.seed)
            self._begun = time.perf_counter()
            await (self._closed(visits) if self._plan.clients else self._open(visits))
        return self.samples

    # --- arrivals ----------------------------------------------------------------------------------------------------

    def elapsed(self) -> float:
        """Seconds since the load began, as samples have them."""
        return time.perf_counter() - self._begun

    def _over(self, at: float) -> bool:
        return self._stopped or at >= self._plan.seconds

    async def _open(self, visits: Iterator[Visit]) -> None:
        running: set[asyncio.Task[None]] = set()
        for visit in visits:
            while (wait := visit.at - self.elapsed()) > 0 and not self._over(visit.at):
                await asyncio.sleep(min(wait, STEP_SECONDS))
            if self._over(visit.at):
                break
            self.samples.late.append(max(0.0, self.elapsed() - visit.at))
            if len(running) >= self._plan.most_in_flight:
                self.samples.unsent += 1
                continue
            task = asyncio.create_task(self._visit(visit, visit.at))
            running.add(task)
            task.add_done_callback(running.discard)
            if not len(self.samples.late) % 16:
                # A burst that is late must not keep the answers from being read.
                await asyncio.sleep(0)
        self.samples.seconds = min(self._plan.seconds, self.elapsed())
        await asyncio.gather(*running)

    async def _closed(self, visits: Iterator[Visit]) -> None:
        async def client() -> None:
            for visit in visits:
                if self._over(self.elapsed()):
                    return
                await self._visit(visit, self.elapsed())

        await asyncio.gather(*(client() for _ in range(self._plan.clients)))
        self.samples.seconds = self.elapsed()

    # --- a visit -----------------------------------------------------------------------------------------------------

    def _user(self, name: str) -> _User:
        return self._users.setdefault(name, _User())

    async def _visit(self, visit: Visit, due: float) -> None:
        acts = self._random.random() < self._plan.event_share
        probes = acts and self._random.random() < self._plan.probe_share
        user = self._user(visit.user)
        as_of = await self._ask(visit.user, user, due)
        # One user acts once at a time, so the log has the user's events in their order.
        if acts and not user.posting:
            await self._act(visit, user, as_of if probes else None)

    def _recommend(self, name: str, **more: Any) -> dict[str, Any]:
        body = {"user_id": name, "k": self._plan.k, **more}
        return body if self._plan.now is None else {**body, "now": self._plan.now}

    async def _ask(self, name: str, user: _User, due: float) -> int | None:
        """The visit's request; returns the time of the newest event that the answer has seen, -1 for none."""
        asked = Checked(name, self._plan.k, self._bundles, tuple(user.events))
        reply = await self._call("POST", "/v1/recommend", self._recommend(name))
        seconds = self.elapsed() - due
        outcome, reason, bundle = self._judge(asked, reply)
        self.samples.asked.append(Sample(due, seconds, outcome, reason, bundle))
        if reply.status != 200:
            return None
        ts = reply.body.get("as_of", {}).get("ts") if isinstance(reply.body, dict) else None
        return -1 if ts is None else int(ts)

    def _judge(self, asked: Checked, reply: Reply) -> tuple[Outcome, str, str]:
        if reply.status != 200:
            if reply.status in SHED:
                return "shed", str(reply.status), ""
            self.samples.note(f"{reply.status or 'no reply'}: {reply.text[:200]}")
            return "failed", str(reply.status), ""
        what = self._check(asked, reply.body) if isinstance(reply.body, dict) else "not a JSON object"
        if what is not None:
            self.samples.note(what)
            bundle = str(reply.body.get("bundle", "")) if isinstance(reply.body, dict) else ""
            return "wrong", what, bundle
        reason = str(reply.body["reason"])
        return "degraded" if reply.body["degraded"] else "full", reason, str(reply.body["bundle"])

    async def _act(self, visit: Visit, user: _User, as_of: int | None) -> None:
        """Post the visit's event. With `as_of`, what the last answer had seen, measure when the event is visible."""
        begun, ts = self.elapsed(), int(time.time())
        user.posting = True
        try:
            reply = await self._post([self._event(visit.user, visit.item, ts)])
        finally:
            user.posting = False
        outcome: Outcome = "full" if reply.status == 202 else "shed" if reply.status in SHED else "failed"
        self.samples.posted.append(Sample(begun, self.elapsed() - begun, outcome, str(reply.status)))
        if outcome == "failed":
            self.samples.note(f"event: {reply.status or 'no reply'}: {reply.text[:200]}")
        if outcome != "full":
            return
        newest = max((at for _, at in user.events), default=-1)
        user.events.append((visit.item, ts))
        # An event of this second that was there before would be taken for this one.
        if as_of is not None and max(as_of, newest) < ts:
            await self._see(visit.user, user, ts, begun)

    async def _see(self, name: str, user: _User, ts: int, begun: float) -> None:
        while not self._stopped and self.elapsed() - begun < VISIBLE_SECONDS:
            asked = Checked(name, self._plan.k, self._bundles, tuple(user.events))
            reply = await self._call("POST", "/v1/recommend", self._recommend(name, min_ts=ts))
            outcome, what, _ = self._judge(asked, reply)
            if outcome in ("full", "degraded") and (reply.body["as_of"]["ts"] or -1) >= ts:
                self.samples.visible.append(self.elapsed() - begun)
                return
            if outcome in ("failed", "wrong"):
                self.samples.note(f"while waiting for an event: {what}")
            await asyncio.sleep(STEP_SECONDS)
        if not self._stopped:
            self.samples.never_visible += 1

    # --- HTTP --------------------------------------------------------------------------------------------------------

    def _event(self, user: str, item: str, ts: int, event_id: str | None = None) -> dict[str, Any]:
        name = event_id or f"load-{self._name}-{next(self._numbers)}"
        return {"event_id": name, "user_id": user, "item_id": item, "ts": ts, "action": "click"}

    async def _post(self, events: list[dict[str, Any]]) -> Reply:
        return await self._call("POST", "/v1/events", events)

    async def _call(self, method: str, path: str, body: Any = None) -> Reply:
        try:
            async with self._session.request(method, path, json=body) as reply:
                text = await reply.text()
                try:
                    return Reply(reply.status, json.loads(text), text)
                except ValueError:
                    return Reply(reply.status, None, text)
        except (aiohttp.ClientError, TimeoutError, OSError) as e:
            return Reply(0, None, f"{type(e).__name__} {e}")

    async def _ready(self, wanted: Callable[[Mapping[str, Any]], bool] = lambda _: True) -> dict[str, Any]:
        """The body of /readyz, once there is one that is wanted."""
        end = time.perf_counter() + READY_SECONDS
        while True:
            reply = await self._call("GET", "/readyz")
            if reply.status == 200 and wanted(reply.body):
                found: dict[str, Any] = reply.body
                return found
            if reply.status in (0, 404) or time.perf_counter() > end:
                raise ServiceError(
                    f"{self._plan.url}/readyz: {reply.status or 'no answer'} {reply.text[:300]}; is the service there, "
                    "and has its history writer caught up?"
                )
            await asyncio.sleep(4 * STEP_SECONDS)

    async def _post_past(self) -> None:
        """Everything from before the load, then wait until it is applied. Posting it twice counts once."""
        waiting: list[dict[str, Any]] = []
        for user, item, ts in self._traffic.before():
            waiting.append(self._event(user, item, ts, f"past-{ts}-{item}"))
            if len(waiting) == EVENTS_AT_ONCE:
                await self._insist(waiting)
                waiting = []
        if waiting:
            await self._insist(waiting)
        await asyncio.sleep(LAG_SECONDS)
        await self._ready(lambda ready: not any(ready["lag"].values()))

    async def _insist(self, events: list[dict[str, Any]]) -> None:
        """Post events until the log has them; an overloaded service says when to come again."""
        end = time.perf_counter() + READY_SECONDS
        while (reply := await self._post(events)).status != 202:
            if reply.status not in SHED or time.perf_counter() > end:
                raise ServiceError(f"past events were not accepted: {reply.status} {reply.text[:300]}")
            await asyncio.sleep(1.0)

"""The turnstile before a door that lets in so many at a time and answers each after a while."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

import httpx
import pytest

from hymirec.service.guard import ROOM
from hymirec.service.turnstile import CALM_SECONDS, MOST_BYTES, Turnstile
from hymirec.telemetry import Metric

PATH = "/v1/recommend"
Result = TypeVar("Result")


class Door:
    """An ASGI application; `asked` counts the calls."""

    def __init__(self, room: int, seconds: float = 0.02, headers: Any = ((b"Retry-After", b"1"),)) -> None:
        self.room, self.seconds, self._headers = room, seconds, list(headers)
        self.detail = b"no room"
        self.told = b""
        self.inside = self.asked = self.answered = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.asked += 1
        if self.inside >= self.room:
            headers = [*self._headers, (b"X-Request-ID", b"another's"), (b"content-type", b"application/problem+json")]
            await send({"type": "http.response.start", "status": 503, "headers": headers})
            await send({"type": "http.response.body", "body": self.detail[:3], "more_body": True})
            await send({"type": "http.response.body", "body": self.detail[3:]})
            return
        self.inside += 1
        try:
            await asyncio.sleep(self.seconds)
        finally:
            self.inside -= 1
        self.answered += 1
        told = [(ROOM, self.told)] if self.told else []
        await send({"type": "http.response.start", "status": 200, "headers": told})
        await send({"type": "http.response.body", "body": b"{}"})


class Hurried(asyncio.SelectorEventLoop):
    """Nobody waits: when nothing else is to do, the clock goes on to the next timer."""

    def __init__(self) -> None:
        super().__init__()
        self._now = 0.0
        select = self._selector.select  # type: ignore[attr-defined]

        def skip(timeout: float | None) -> Any:
            events = select(0)
            self._now += 0.0 if events else timeout or 0.0
            return events

        self._selector.select = skip  # type: ignore[attr-defined]

    def time(self) -> float:
        return self._now


def run(work: Coroutine[Any, Any, Result]) -> Result:
    with asyncio.Runner(loop_factory=Hurried) as runner:
        return runner.run(work)


class Counted:
    def __init__(self) -> None:
        self.turned_away = 0.0

    def __call__(self, metric: Metric, value: float, **labels: str) -> None:
        assert (metric.name, labels) == ("hymirec_shed_total", {"where": "proxy"})
        self.turned_away += value


async def burst(turnstile: Turnstile, requests: int, path: str = PATH) -> list[httpx.Response]:
    transport = httpx.ASGITransport(turnstile)  # type: ignore[arg-type]
    async with httpx.AsyncClient(transport=transport, base_url="http://here") as http:
        return list(await asyncio.gather(*(http.post(path, headers={"x-request-id": "mine"}) for _ in range(requests))))


async def overload(turnstile: Turnstile, door: Door, times: float, seconds: float) -> list[httpx.Response]:
    """Requests at so many times what the door can do, evenly."""
    gap = door.seconds / door.room / times
    transport = httpx.ASGITransport(turnstile)  # type: ignore[arg-type]
    async with httpx.AsyncClient(transport=transport, base_url="http://here") as http:
        tasks = []
        for _ in range(int(seconds / gap)):
            tasks.append(asyncio.create_task(http.post(PATH)))
            await asyncio.sleep(gap)
        return list(await asyncio.gather(*tasks))


def test_while_the_door_has_room_everybody_passes() -> None:
    door = Door(room=50)
    turnstile = Turnstile(door)
    assert [reply.status_code for reply in run(burst(turnstile, 50))] == [200] * 50
    assert turnstile.bound is None
    assert turnstile.inside == 0


def test_a_refusal_is_learnt_and_copied_with_an_id_of_the_request_itself() -> None:
    door, counted = Door(room=4), Counted()
    turnstile = Turnstile(door, counted)

    async def go() -> list[httpx.Response]:
        first = asyncio.create_task(burst(turnstile, 8))
        await asyncio.sleep(door.seconds / 4)
        assert turnstile.bound == 4
        asked, turned_away = door.asked, counted.turned_away
        second = await burst(turnstile, 10)
        assert door.asked == asked
        assert counted.turned_away == turned_away + len(second)
        await first
        return second

    replies = run(go())
    for reply in replies:
        assert (reply.status_code, reply.content) == (503, b"no room")
        assert reply.headers.get_list("retry-after") == ["1"]
        assert reply.headers.get_list("x-request-id") == ["mine"]
        assert reply.headers["content-type"] == "application/problem+json"


def test_what_the_door_never_turns_away_is_not_held() -> None:
    door = Door(room=0)
    turnstile = Turnstile(door)

    async def go() -> None:
        await burst(turnstile, 20, "/v1/events")
        await burst(turnstile, 20, "/readyz")

    run(go())
    assert door.asked == 40
    assert turnstile.bound is None


@pytest.mark.parametrize(
    "door",
    [Door(room=2, headers=()), Door(room=2)],
    ids=["an error that does not say when to come again", "a long text"],
)
def test_other_answers_teach_nothing(door: Door) -> None:
    if door._headers:
        door.detail = b"x" * (MOST_BYTES + 1)
    turnstile = Turnstile(door)
    run(burst(turnstile, 20))
    assert turnstile.bound is None


def test_at_ten_times_the_capacity_the_door_is_asked_little_more_than_it_answers() -> None:
    door = Door(room=8, seconds=0.1)
    turnstile = Turnstile(door)
    replies = run(overload(turnstile, door, times=10, seconds=2.0))
    answered = sum(reply.status_code == 200 for reply in replies)
    alone = Door(room=8, seconds=0.1)
    run(overload(Turnstile(alone, asking=lambda path: False), alone, times=10, seconds=2.0))
    assert answered == door.answered >= 0.9 * alone.answered
    assert door.asked <= 1.3 * door.answered
    assert alone.asked >= 4 * door.asked


def test_a_door_that_opens_is_noticed() -> None:
    door = Door(room=2, seconds=0.01)
    turnstile = Turnstile(door)
    run(burst(turnstile, 10))
    door.room = 40
    replies = run(overload(turnstile, door, times=0.5, seconds=1.0))
    assert [reply.status_code for reply in replies[len(replies) // 2 :]] == [200] * (len(replies) - len(replies) // 2)


class Way:
    """A door that requests come to one by one: a crowd that gathers before it is inside the turnstile, too."""

    def __init__(self, door: Door) -> None:
        self.door, self._one = door, asyncio.Lock()
        self.longest = 0.0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        clock = asyncio.get_running_loop().time
        begun = clock()
        async with self._one:
            await asyncio.sleep(0.005)
        self.longest = max(self.longest, clock() - begun)
        await self.door(scope, receive, send)


def test_a_crowd_on_its_way_to_the_door_is_not_taken_for_room() -> None:
    ways = []
    for told in ((), ((ROOM, b"front 8"),)):
        way = Way(Door(room=8, seconds=0.1, headers=[(b"retry-after", b"1"), *told]))
        turnstile = Turnstile(way)
        # Everybody comes at once; then ten times what is answered.
        first, replies = run(both(turnstile, way.door))
        assert all(ROOM.decode() not in reply.headers for reply in first + replies)
        ways.append(way)
    silent, telling = ways
    assert telling.door.asked < silent.door.asked
    assert telling.door.answered >= 0.9 * silent.door.answered


async def both(turnstile: Turnstile, door: Door) -> tuple[list[httpx.Response], list[httpx.Response]]:
    first = asyncio.create_task(burst(turnstile, 60))
    replies = await overload(turnstile, door, times=10, seconds=2.0)
    return await first, replies


def test_who_comes_beyond_what_the_doors_say_never_gets_on_the_way() -> None:
    door = Door(room=8)
    door.told = b"front 8"
    turnstile = Turnstile(door)

    async def go() -> list[httpx.Response]:
        await burst(turnstile, 1)
        assert turnstile.bound == 8
        return await burst(turnstile, 20)

    replies = run(go())
    assert sorted(reply.status_code for reply in replies) == [200] * 8 + [503] * 12
    assert door.asked == 1 + 8
    refused = next(reply for reply in replies if reply.status_code == 503)
    assert refused.headers["retry-after"] == "1"
    assert refused.json()["status"] == 503
    door.told = b"back 5"
    run(burst(turnstile, 1))
    assert turnstile.bound == 8 + 5
    door.told = b"front 9"
    run(burst(turnstile, 1))
    assert turnstile.bound == 9 + 5


def test_it_remembers_how_many_the_door_held_until_the_crowd_has_been_gone_for_a_minute() -> None:
    door = Door(room=4)
    turnstile = Turnstile(door)

    async def go() -> list[int | None]:
        bounds = []
        await burst(turnstile, 8)
        for seconds in (1.0, CALM_SECONDS):
            await asyncio.sleep(seconds)
            await burst(turnstile, 1)
            bounds.append(turnstile.bound)
        return bounds

    first, second = run(go())
    assert first is not None
    assert 4 <= first < 6
    assert second is None

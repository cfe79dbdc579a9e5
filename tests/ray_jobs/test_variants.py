"""Who comes next where many runs wait for their steps."""

from __future__ import annotations

import asyncio

from ray_jobs.variants import Gate


async def _in_order(most: int, steps: list[int]) -> tuple[list[int], int]:
    """Steps in the order in which they were let in, and how many were inside at most; all ask at once."""
    gate, order, inside, largest = Gate(most), list[int](), 0, 0

    async def one(step: int) -> None:
        nonlocal inside, largest
        async with gate.at(step):
            order.append(step)
            inside += 1
            largest = max(largest, inside)
            await asyncio.sleep(0)
            inside -= 1

    await asyncio.gather(*map(one, steps))
    return order, largest


def test_the_furthest_step_comes_first_of_those_that_wait() -> None:
    assert asyncio.run(_in_order(1, [0, 1, 3, 2, 3])) == ([0, 3, 3, 2, 1], 1)


def test_as_many_are_inside_as_may_be_and_everyone_comes_in() -> None:
    order, largest = asyncio.run(_in_order(3, [5] * 10))
    assert (len(order), largest) == (10, 3)


def test_one_that_stops_waiting_takes_nobodys_place() -> None:
    async def scene() -> list[str]:
        gate, seen = Gate(1), list[str]()

        async def one(name: str) -> None:
            async with gate.at(0):
                seen.append(name)
                await asyncio.sleep(0)

        first, gone, last = (asyncio.ensure_future(one(name)) for name in ("first", "gone", "last"))
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.gather(first, gone, last, return_exceptions=True)
        await one("afterwards")
        return seen

    assert asyncio.run(scene()) == ["first", "last", "afterwards"]


def test_one_that_is_cancelled_just_when_its_turn_comes_passes_it_on() -> None:
    async def scene() -> list[str]:
        gate, seen = Gate(1), list[str]()

        async def one(name: str) -> None:
            async with gate.at(0):
                seen.append(name)

        async with gate.at(0):
            gone, last = asyncio.ensure_future(one("gone")), asyncio.ensure_future(one("last"))
            await asyncio.sleep(0)
        gone.cancel()
        await asyncio.gather(gone, last, return_exceptions=True)
        return seen

    assert asyncio.run(scene()) == ["last"]

"""Time and retries: every request has a deadline, and no call waits longer than what is left of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from hymirec.errors import StageLateError, StageUnavailableError

TRIES = 3
# Between two tries a router learns that a replica has died.
PAUSE_SECONDS = 0.02
T = TypeVar("T")


class Deadline:
    """A moment on the monotonic clock."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    def left(self, most: float | None = None) -> float:
        """Seconds until then, not below 0, not above `most`."""
        left = max(0.0, self._end - time.monotonic())
        return left if most is None else min(left, most)


async def ask(name: str, call: Callable[[], Awaitable[T]], seconds: float) -> T:
    """Call a stage, at most three times within `seconds`.

    Only a call that died with its replica (StageUnavailableError) is tried again: an overloaded stage is left alone, an
    error of ours would come again, and one that takes too long would take as long the next time.
    Raises StageLateError when there was no answer in time, and whatever else the stage raised.
    """
    deadline = Deadline(seconds)
    for attempt in range(1, TRIES + 1):
        try:
            async with asyncio.timeout(deadline.left()):
                return await call()
        except TimeoutError as e:
            raise StageLateError(f"the {name} gave no answer within {seconds:.2f} s; try again") from e
        except StageLateError:
            raise
        except StageUnavailableError:
            if attempt == TRIES or deadline.left() <= PAUSE_SECONDS:
                raise
        await asyncio.sleep(PAUSE_SECONDS)
    raise AssertionError("unreachable")

from __future__ import annotations

import asyncio
import time

import pytest

from hymirec.errors import OverloadedError, RequestError, StageLateError, StageUnavailableError
from hymirec.service.calls import TRIES, Deadline, ask


class Stage:
    """Answers with what it is given, one thing a call."""

    def __init__(self, *answers: object) -> None:
        self.answers, self.calls = list(answers), 0

    async def __call__(self) -> object:
        self.calls += 1
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        if isinstance(answer, float):
            await asyncio.sleep(answer)
        return answer


def test_a_call_that_died_with_its_replica_is_tried_again() -> None:
    stage = Stage(StageUnavailableError("died"), StageUnavailableError("died"), "answer")
    assert asyncio.run(ask("stage", stage, 5.0)) == "answer"


def test_a_stage_that_keeps_dying_is_given_up_after_three_tries() -> None:
    stage = Stage(*[StageUnavailableError("died")] * 9)
    with pytest.raises(StageUnavailableError, match="died"):
        asyncio.run(ask("stage", stage, 5.0))
    assert stage.calls == TRIES


@pytest.mark.parametrize(
    "error", [OverloadedError("full"), StageLateError("late"), RequestError("k"), ValueError("a bug")]
)
def test_overload_and_errors_that_would_come_again_are_not_retried(error: Exception) -> None:
    stage = Stage(error, "answer")
    with pytest.raises(type(error)):
        asyncio.run(ask("stage", stage, 5.0))
    assert stage.calls == 1


def test_a_slow_stage_costs_no_more_than_its_time() -> None:
    stage = Stage(30.0, "answer")
    start = time.monotonic()
    with pytest.raises(StageLateError, match=r"the ranker gave no answer within 0\.05 s"):
        asyncio.run(ask("ranker", stage, 0.05))
    assert time.monotonic() - start < 5
    assert stage.calls == 1


def test_what_is_left_of_a_deadline_is_never_negative_nor_more_than_asked() -> None:
    assert Deadline(-1.0).left() == 0
    assert Deadline(100.0).left(3.0) == 3.0
    assert 99 < Deadline(100.0).left() <= 100

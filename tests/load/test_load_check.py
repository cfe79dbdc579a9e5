from __future__ import annotations

from typing import Any

import pytest

from hymirec.load import Checked, wrong

ASKED = Checked("ada", 3, {"b" * 64}, [("old", 10), ("new", 20)])


def reply(**changes: Any) -> dict[str, Any]:
    items = [{"item_id": name, "score": score} for name, score in (("x", 0.9), ("y", 0.5), ("z", 0.5))]
    return {"items": items, "bundle": "b" * 64, "as_of": {"ts": 20}, "reason": "full", "degraded": False} | changes


def items(*pairs: tuple[str, float]) -> list[dict[str, Any]]:
    return [{"item_id": name, "score": score} for name, score in pairs]


def test_a_right_reply_is_right() -> None:
    assert wrong(ASKED, reply()) is None


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"bundle": "c" * 64}, "unknown bundle cccccccccccc"),
        ({"items": items(("x", 0.9), ("y", 0.8))}, "2 items instead of 3"),
        ({"items": items(("x", 0.9), ("x", 0.8), ("y", 0.7))}, "1 items twice"),
        ({"items": items(("x", 0.7), ("y", 0.8), ("z", 0.6))}, "items not in order of their scores"),
        ({"items": items(("x", 0.9), ("old", 0.8), ("z", 0.7))}, "items that the user has seen"),
        ({"items": [{"item_id": "x"}]}, "not the reply of a recommendation (KeyError('score'))"),
        ({"as_of": None}, "not the reply of a recommendation (TypeError(\"'NoneType' object is not subscriptable\"))"),
    ],
)
def test_what_is_wrong_is_named(changes: dict[str, Any], what: str) -> None:
    assert wrong(ASKED, reply(**changes)) == what


def test_an_event_that_the_answer_may_not_have_seen_is_not_held_against_it() -> None:
    shown = items(("x", 0.9), ("new", 0.8), ("z", 0.7))
    assert wrong(ASKED, reply(items=shown)) is None
    assert wrong(ASKED, reply(items=shown, as_of={"ts": 21})) == "items that the user has seen"
    assert wrong(ASKED, reply(items=items(("x", 0.9), ("old", 0.8), ("z", 0.7)), as_of={"ts": None})) is None

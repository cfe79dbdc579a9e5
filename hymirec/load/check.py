"""What a reply must be, whatever the load: a whole list, in order, new to the user, of a bundle that is known."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Collection, Container
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Checked:
    """A request, as far as its reply can be judged by it.

    `events` are item and time (seconds) of the user's events that the log had confirmed before the request was sent.
    """

    user: str
    k: int
    bundles: Container[str]
    events: Collection[tuple[str, int]] = field(default_factory=tuple)


def wrong(asked: Checked, reply: dict[str, Any]) -> str | None:
    """What is wrong with the body of a 200, in a few words that are the same for equal causes; None for nothing."""
    try:
        if reply["bundle"] not in asked.bundles:
            return f"unknown bundle {reply['bundle'][:12]}"
        ids = [item["item_id"] for item in reply["items"]]
        scores = [float(item["score"]) for item in reply["items"]]
        as_of = reply["as_of"]["ts"]
    except (KeyError, TypeError, ValueError) as e:
        return f"not the reply of a recommendation ({e!r})"
    if len(ids) != asked.k:
        return f"{len(ids)} items instead of {asked.k}"
    if most := [item for item, count in Counter(ids).items() if count > 1]:
        return f"{len(most)} items twice"
    if any(a < b for a, b in itertools.pairwise(scores)):
        return "items not in order of their scores"
    if as_of is not None:
        # An event of the same second may come after the one that the answer has seen.
        seen = {item for item, ts in asked.events if ts < as_of}
        if seen & set(ids):
            return "items that the user has seen"
    return None

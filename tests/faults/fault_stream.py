"""A seeded stream of what a log holds in bad weeks: repeats, late and future events, ties, erasures, poison."""

from __future__ import annotations

import json
import random
from collections import deque
from collections.abc import Iterator

from hymirec.catalog.events import ACTIONS, Event
from hymirec.streaming import erase_message, event_message

START = 1_700_000_000
LogMessage = tuple[str, bytes]


def messages(seed: int, users: int) -> Iterator[LogMessage]:
    """(key, value) messages without end. The same seed gives the same ones."""
    rng = random.Random(seed)
    names = [f"u{n}" for n in range(users - 2)] + ["ü ☕", str(users)]
    actions = [*ACTIONS, "teleport"]
    recent: deque[LogMessage] = deque(maxlen=30)
    while True:
        sent = _message(rng, names, actions, recent)
        yield sent
        recent.append(sent)


def _message(rng: random.Random, names: list[str], actions: list[str], recent: deque[LogMessage]) -> LogMessage:
    user, kind, number = rng.choice(names), rng.random(), rng.getrandbits(40)
    if kind < 0.01:
        return erase_message(user)
    if kind < 0.04:
        # A number makes each letter one of a kind.
        return user, rng.choice([b'{"poison": %d', b"\xff%d", b'{"user_id": "u", "n": %d}']) % number
    if kind < 0.14 and recent:
        return rng.choice(recent)
    event = {
        "event_id": f"e{number}",
        "user_id": int(user) if user.isdigit() else user,
        "item_id": rng.randrange(500),
        "ts": _time(rng),
        "action": rng.choice(actions),
    }
    if kind < 0.17 and recent:
        # The id of another event with other contents.
        event["event_id"] = json.loads(recent[-1][1]).get("event_id", "e") if recent[-1][1][:4] == b'{"ev' else "e"
    if kind < 0.5:
        return user, json.dumps(event).encode()
    return event_message(
        Event(
            event_id=str(event["event_id"]),
            user_id=user,
            item_id=str(event["item_id"]),
            ts=int(event["ts"]),
            action=str(event["action"]),
        )
    )


def _time(rng: random.Random) -> int:
    """Mostly near now with ties, some very late, some ahead of the log's clock."""
    kind = rng.random()
    if kind < 0.01:
        return 4_000_000_000
    if kind < 0.1:
        return START - rng.randrange(5_000_000)
    return START + rng.randrange(40)

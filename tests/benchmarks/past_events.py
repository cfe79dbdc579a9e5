"""Real events for the streaming benchmarks: a Parquet file of interactions named by HYMIREC_INTERACTIONS."""

from __future__ import annotations

import os
import random
from pathlib import Path

from hymirec.history import Entry
from hymirec.history.interactions import entries_of, read_interactions

VARIABLE = "HYMIREC_INTERACTIONS"


def past_events(most: int | None = None) -> list[Entry]:
    """The first events in order of time, of all users, each with an event id of its own.

    Ends the program when the variable is not set: made-up events say nothing of how real users come and go.
    """
    path = os.environ.get(VARIABLE)
    if not path:
        raise SystemExit(f"set {VARIABLE} to a Parquet file of interactions (user, item, ts), e.g. MovieLens-1M")
    rng = random.Random(1)
    # A key is not an item's id, but as good a name for it as any.
    ordered = sorted(entries_of(read_interactions(Path(path))), key=lambda entry: entry.ts)[:most]
    return [Entry(i, e.user_id, e.key, e.ts, e.action, rng.getrandbits(64), e.ts * 1000) for i, e in enumerate(ordered)]

"""A prepared catalogue with planted structure: five topics of eight items, users who stay inside one topic."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from hymirec.catalog.normalise import Tables
from hymirec.catalog.prepare import prepare
from hymirec.config import DataConfig

TOPICS = ("garden lantern", "kitchen spoon", "paper ribbon", "wool blanket", "toy train")
KINDS = ("red", "blue", "green", "black", "white", "small", "large", "vintage")


def prepare_toy(data_dir: Path, users: int = 60, part_rows: int = 16) -> None:
    """Write `data_dir`: item i belongs to topic i // 8; part 2 begins with an item without any text."""
    titles = [f"{kind} {topic}" for topic in TOPICS for kind in KINDS]
    titles[32] = ""
    rng = np.random.default_rng(0)
    user, item, ts = [], [], []
    for u in range(users):
        for step, choice in enumerate(rng.permutation(len(KINDS))):
            user.append(u)
            item.append(u % len(TOPICS) * len(KINDS) + int(choice))
            ts.append(1_000 * u + step)
    items = pa.table({"item": list(range(len(titles))), "title": titles})
    interactions = pa.table({"user": user, "item": item, "ts": ts})
    prepare(Tables(items, interactions), DataConfig(min_user_interactions=3, part_rows=part_rows), data_dir)

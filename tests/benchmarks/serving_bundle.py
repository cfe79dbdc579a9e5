"""A bundle of the size of the demo's, with fresh weights: how fast an answer is does not depend on what was learned.

3,700 items; histories of 260 events, 200 of which the LLM reads and 60 the light recommender; the default models.
`HYMIREC_BUNDLE` names a trained one to be used instead.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tiny_run import build_run

from hymirec.config import PipelineConfig, parse

ITEMS, USERS, HISTORY = 3_700, 400, 260


def serving_config() -> PipelineConfig:
    """The configuration of the run."""
    synthetic = {"items": ITEMS, "users": USERS, "events_per_user": HISTORY, "topics": 40, "shards": 2}
    values = {
        "name": "serving",
        "data": {"kind": "synthetic", "synthetic": synthetic},
        "encoder": {"hidden_size": 64, "layers": 1, "heads": 2, "vocab_size": 400, "optim": {"epochs": 0}},
        "codebook": {"iterations": 3},
        "recommender": {"optim": {"epochs": 0}},
        "evaluation": {"bootstrap": 0},
        "compute": {"engine": "torch"},
    }
    return parse(PipelineConfig, values)


def serving_bundle(directory: Path) -> Path:
    """The one that `HYMIREC_BUNDLE` names, or one that is built in `directory`, which takes about a minute."""
    given = os.environ.get("HYMIREC_BUNDLE")
    if given:
        return Path(given)
    return build_run(serving_config(), directory / "run") / "bundle"

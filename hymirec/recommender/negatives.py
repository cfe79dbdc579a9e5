"""Sampled negatives: drawn once a step and shared by all its rows, for a catalogue too big for a softmax."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hymirec.config import FULL_SOFTMAX_ITEMS, SAMPLED_NEGATIVES
from hymirec.errors import ConfigError


def negatives_a_step(setting: int | None, items: int) -> int:
    """How many negatives a step draws for a catalogue of `items`, 0 for the full softmax; `setting` as configured."""
    if setting is None:
        return 0 if items <= FULL_SOFTMAX_ITEMS else SAMPLED_NEGATIVES
    return setting


def sample_negatives(rng: np.random.Generator, items: int, count: int) -> NDArray[np.int64]:
    """Draw `count` item indices uniformly with replacement, shape (count,).

    Uniform, as in HSTU: popular items appear as the targets of others' rows only through their own targets, so that
    the loss needs no correction for the sampling probability. Raises ConfigError for an empty catalogue.
    """
    if items < 1:
        raise ConfigError("negatives cannot be drawn from an empty catalogue; run the data step on a table with items")
    return rng.integers(0, items, count, dtype=np.int64)

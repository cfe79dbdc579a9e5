"""Item keys: the 64-bit name of an item in a history record.

A key is the XXH3 hash of the id's text, so an event's `"item_id": "42"` and a catalogue's int64 id 42 have the same
key, and a history can be written without knowing the catalogue. Two items of one catalogue with one key are an error
(checked when the catalogue is prepared); at 10^8 items the chance of any is 0.03 %.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import xxhash
from numpy.typing import NDArray


def item_key(item: str | int) -> int:
    """Return the unsigned 64-bit key of one item id."""
    return xxhash.xxh3_64_intdigest(str(item).encode())


def item_keys(items: Iterable[str | int]) -> NDArray[np.uint64]:
    """Return the keys of many ids, shape (N,)."""
    digest = xxhash.xxh3_64_intdigest
    return np.fromiter((digest(str(item).encode()) for item in items), dtype=np.uint64)

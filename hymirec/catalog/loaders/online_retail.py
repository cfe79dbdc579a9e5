"""Online Retail (UCI 352): a real shop's purchases; ships inside the package, so the demo needs no download.

Source and licence (CC BY 4.0): `hymirec/catalog/data/online_retail/ATTRIBUTION.md`.
"""

from __future__ import annotations

from importlib import resources

import pyarrow as pa
import pyarrow.parquet as pq

from hymirec.catalog.schemas import ITEM, TITLE, TS, USER


def load() -> tuple[pa.Table, pa.Table]:
    """3,665 items (item, title) and 397,884 purchases (user, item, ts).

    The stock code is left out: it says nothing about a product that its text could carry.
    """
    directory = resources.files("hymirec.catalog") / "data" / "online_retail"
    with resources.as_file(directory / "items.parquet") as path:
        items = pq.ParquetFile(path).read(columns=[ITEM, TITLE])
    with resources.as_file(directory / "interactions.parquet") as path:
        interactions = pq.ParquetFile(path).read(columns=[USER, ITEM, TS])
    return items, interactions

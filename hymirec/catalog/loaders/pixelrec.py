"""PixelRec (Cheng et al. 2023, arXiv 2309.06789): short-video covers, Bilibili; the publisher's CSV files.

Interactions: `item_id,user_id,timestamp` (Pixel200K.csv, Pixel1M.csv, ...). Items: `item_id, view_number, ..., title,
tag, description`. Both lie anywhere below the directory and are told apart by their header.
"""

from __future__ import annotations

import pyarrow as pa

from hymirec.catalog.loaders.files import SourceFiles, concat
from hymirec.catalog.schemas import ITEM, TITLE, TS, USER
from hymirec.errors import DataError

_TEXTS = (TITLE, "tag", "description")


def load(path: str) -> tuple[pa.Table, pa.Table]:
    """Items (item, title, tag, description) and interactions (user, item, ts); ids are strings.

    Raises DataError when a file is missing, or when there are several files of interactions (they overlap: Pixel200K
    is part of Pixel1M).
    """
    source = SourceFiles.find(path)
    headers = {name: source.csv_header(name) for name in source.names if ".csv" in name.rsplit("/", 1)[-1]}
    interactions = [name for name, header in headers.items() if {"item_id", "user_id", "timestamp"} <= set(header)]
    items = [name for name, header in headers.items() if {"item_id", TITLE} <= set(header)]
    if not items or not interactions:
        missing = (
            "items (item_id, title, tag, description)" if not items else "interactions (item_id,user_id,timestamp)"
        )
        raise DataError(f"{path}: no CSV file of {missing}; put both files of the publisher below that directory")
    if len(interactions) > 1:
        raise DataError(
            f"{path}: {len(interactions)} files of interactions ({', '.join(interactions)}), which overlap; "
            "give a directory with one of them"
        )
    return _items(source, items), _interactions(source, interactions[0])


def _items(source: SourceFiles, names: list[str]) -> pa.Table:
    columns = ("item_id", *_TEXTS)
    table = concat([source.csv(name, columns, strings=columns) for name in names], "items")
    return table.rename_columns([ITEM if name == "item_id" else name for name in table.column_names])


def _interactions(source: SourceFiles, name: str) -> pa.Table:
    table = source.csv(name, ("user_id", "item_id", "timestamp"), strings=("user_id", "item_id"))
    return table.rename_columns([USER, ITEM, TS])

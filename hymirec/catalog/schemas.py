"""Column names and Arrow schemas of the catalogue: the tables that come in, and the prepared ones.

Tables in:  items(item, title, <any text columns>), interactions(user, item, ts[, action]); ids are int64 or string,
            ts is int64 seconds since 1970 (UTC).
Prepared:   items/part-*.parquet and sequences.parquet, where an item is its index: 0..N-1 in ascending order of item
            id, so that ties broken by index are ties broken by item id.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import pyarrow as pa

USER = "user"
ITEM = "item"
TS = "ts"
ACTION = "action"
TITLE = "title"

INDEX = "index"
KEY = "key"
TEXT = "text"
POPULARITY = "popularity"
ITEMS = "items"
N_TRAIN = "n_train"
N_VAL = "n_val"

EMBEDDING = "embedding"
CODES = "codes"
# Key of a codes part's schema metadata.
LAYOUT = b"hymirec.layout"

# Names inside a prepared directory.
ITEMS_DIR = "items"
SEQUENCES_FILE = "sequences.parquet"
STATS_FILE = "stats.json"

# A history record keeps a time in 32 bits without a sign.
MAX_TS = 2**32 - 1

IdType: TypeAlias = Literal["int64", "string"]
Split: TypeAlias = Literal["train", "validation", "test"]


def id_type(column: pa.DataType) -> IdType:
    """Name the type of an id column; anything that is not a string counts as int64."""
    return "string" if pa.types.is_string(column) or pa.types.is_large_string(column) else "int64"


def items_schema(item: pa.DataType) -> pa.Schema:
    """Schema of `items/part-*.parquet`; `item` is the type of the item ids."""
    return pa.schema(
        [
            pa.field(INDEX, pa.int32(), nullable=False),
            pa.field(ITEM, item, nullable=False),
            pa.field(KEY, pa.uint64(), nullable=False),
            pa.field(TITLE, pa.string(), nullable=False),
            pa.field(TEXT, pa.string(), nullable=False),
            pa.field(POPULARITY, pa.int64(), nullable=False),
        ]
    )


def sequences_schema(user: pa.DataType) -> pa.Schema:
    """Schema of `sequences.parquet`; `user` is the type of the user ids."""
    return pa.schema(
        [
            pa.field(USER, user, nullable=False),
            pa.field(ITEMS, pa.list_(pa.int32()), nullable=False),
            pa.field(TS, pa.list_(pa.int64()), nullable=False),
            pa.field(N_TRAIN, pa.int32(), nullable=False),
            pa.field(N_VAL, pa.int32(), nullable=False),
        ]
    )


def vectors_schema(width: int) -> pa.Schema:
    """Schema of `embeddings/part-*.parquet`; `width` is the number of dimensions."""
    return pa.schema(
        [
            pa.field(INDEX, pa.int32(), nullable=False),
            pa.field(EMBEDDING, pa.list_(pa.float16(), width), nullable=False),
        ]
    )


def codes_schema(row_bytes: int, layout: bytes) -> pa.Schema:
    """Schema of `codes/part-*.parquet`: a packed row of `row_bytes` an item; `layout` (JSON) says what its bits are."""
    return pa.schema(
        [
            pa.field(INDEX, pa.int32(), nullable=False),
            pa.field(CODES, pa.binary(row_bytes), nullable=False),
        ],
        metadata={LAYOUT: layout},
    )

"""Items, interactions and events: what comes in, how it is checked and split, and how everyone reads it."""

from hymirec.catalog.events import ACTIONS, EraseEvent, Event
from hymirec.catalog.keys import item_key, item_keys
from hymirec.catalog.prepared import Catalog, Sequences
from hymirec.catalog.tables import Tables, load_tables
from hymirec.catalog.validation import find_problems
from hymirec.catalog.vectors import count_rows, read_vectors, vector_width, write_vectors

__all__ = [
    "ACTIONS",
    "Catalog",
    "EraseEvent",
    "Event",
    "Sequences",
    "Tables",
    "count_rows",
    "find_problems",
    "item_key",
    "item_keys",
    "load_tables",
    "read_vectors",
    "vector_width",
    "write_vectors",
]

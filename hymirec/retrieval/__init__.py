"""Search of several interests over the whole catalogue."""

from hymirec.retrieval.choice import IndexReport, check_index, choose_index, grow_index
from hymirec.retrieval.device import on_device
from hymirec.retrieval.exhaustive import for_batches
from hymirec.retrieval.index import Bonus, Hits, ItemIndex
from hymirec.retrieval.kinds import kind_for
from hymirec.retrieval.shares import share_out

__all__ = [
    "Bonus",
    "Hits",
    "IndexReport",
    "ItemIndex",
    "check_index",
    "choose_index",
    "for_batches",
    "grow_index",
    "kind_for",
    "on_device",
    "share_out",
]

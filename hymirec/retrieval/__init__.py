"""Search of several interests over the whole catalogue."""

from hymirec.retrieval.index import Hits, ItemIndex

__all__ = ["Hits", "ItemIndex"]

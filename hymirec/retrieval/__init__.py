"""Search of several interests over the whole catalogue."""

from hymirec.retrieval.index import Bonus, Hits, ItemIndex

__all__ = ["Bonus", "Hits", "ItemIndex"]

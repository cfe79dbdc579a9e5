"""All products on a device of torch: exact, and the index of a bundle that is opened on a GPU.

Q queries  K results  W width  N items
"""

from __future__ import annotations

import logging

import torch

from hymirec.retrieval.index import ItemIndex
from hymirec.retrieval.kinds import Floats, Ints, Searcher

log = logging.getLogger(__name__)

# Scores that are held at once: half a gigabyte.
SCORES = 1 << 27


class DeviceFlat:
    """A searcher over the fp32 vectors (N, W) of another, of which it keeps a copy on the device."""

    kind = "flat"
    exact = True

    def __init__(self, searcher: Searcher, device: str | torch.device) -> None:
        # faiss's memory lives as long as its index.
        self._searcher = searcher
        self._vectors = torch.from_numpy(searcher.vectors).to(device)

    def __len__(self) -> int:
        return len(self._searcher)

    @property
    def vectors(self) -> Floats:
        """All vectors (N, W), in memory."""
        return self._searcher.vectors

    @property
    def width(self) -> int:
        """W."""
        return self._searcher.width

    def search(self, queries_QW: Floats, k: int) -> tuple[Floats, Ints]:
        """See `Searcher`."""
        rows = max(1, SCORES // max(1, len(self)))
        found = [self._best(part, k) for part in torch.from_numpy(queries_QW).split(rows)]
        scores_QK, items_QK = (torch.cat(column) for column in zip(*found, strict=True))
        return scores_QK.cpu().numpy(), items_QK.cpu().numpy()

    search_exactly = search

    def _best(self, queries_QW: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        scores_QN = queries_QW.to(self._vectors.device) @ self._vectors.T
        best = scores_QN.topk(k, dim=1)
        return best.values, best.indices


def on_device(index: ItemIndex, device: str | torch.device) -> ItemIndex:
    """The same items, searched by all products on a GPU; on a CPU, or where a GPU lacks memory, the index itself."""
    if torch.device(device).type == "cpu":
        return index
    try:
        return ItemIndex(DeviceFlat(index.searcher, device))
    except torch.OutOfMemoryError:
        log.warning("%d vectors of %d do not fit on %s, so the CPU searches", len(index), index.width, device)
        return index

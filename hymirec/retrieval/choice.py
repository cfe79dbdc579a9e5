"""Which index a catalogue gets, and what recall it vouches for.

The effort of an approximate index is raised until its recall@100 against all products reaches the target, on one half
of the queries and, held out, on the other, whose recall is reported. If the kind does not get there, the next one of
ivf_sq8, hnsw, flat is built. A query is one interest; an item counts as found when it is no worse than the true 100th,
so that ties do not matter.

Beside it stands the recall of a probe, some of the items themselves taken as queries: it can be measured again wherever
the index is opened, without users.

Q queries  W width  N items
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from hymirec.config import RetrievalConfig
from hymirec.errors import BundleError
from hymirec.retrieval.index import ItemIndex
from hymirec.retrieval.kinds import DEPTH, KINDS, FaissIndex, Floats, Kind, kind_for

log = logging.getLogger(__name__)

# From the fastest to the surest.
ORDER: tuple[Kind, ...] = ("ivf_sq8", "hnsw", "flat")
QUERIES, PROBES = 512, 64
# A probe this much below what was vouched for is no rounding: wrong effort, or lists that do not fit the items.
TOLERANCE = 0.02
# When the items have become so many times more than the lists were trained on, they are trained again.
GROWTH = 2
# Of two computations of one product; both are in fp32.
ROUNDING = 1e-5


@dataclass(frozen=True)
class IndexReport:
    """What an index is and vouches for. `recall` and `probe` are 1 for `flat`; `queries` says what was searched for.

    `trained_items` is the size of the catalogue that the lists of `ivf_sq8` were trained on, or that the index was
    built for.
    """

    kind: str
    asked: str
    parameters: dict[str, int]
    trained_items: int
    target: float
    recall: float
    queries: str
    probe: float

    def info(self) -> dict[str, Any]:
        """Plain values, for a manifest."""
        return asdict(self)

    @classmethod
    def of(cls, info: Mapping[str, Any]) -> IndexReport:
        """The other way. Raises BundleError when something is missing."""
        try:
            return cls(**info)
        except TypeError as e:
            raise BundleError(f"the manifest's report of the index is not one ({e}); write the bundle again") from e


def choose_index(
    vectors_NW: Floats, config: RetrievalConfig, queries_QW: Floats | None = None, queries: str = ""
) -> tuple[ItemIndex, IndexReport]:
    """Build the configured index of vectors (N, W), or the next better one, with the effort that reaches the target.

    `queries_QW` are interests of users, and `queries` says whose; without them some items are the queries.
    """
    if queries_QW is None or not len(queries_QW):
        queries_QW, queries = some_items(vectors_NW)
    asked = kind_for(len(vectors_NW), config)
    for kind in ORDER[ORDER.index(asked) :]:
        searcher = KINDS[kind].build(vectors_NW, config)
        recall = raise_effort(searcher, queries_QW, config)
        if recall >= config.target_recall:
            break
        log.warning("%s reaches a recall@%d of %.4f only, so the next kind is built", kind, DEPTH, recall)
    index = ItemIndex(searcher)
    return index, _report(index, config, len(vectors_NW), recall, queries)


def grow_index(
    index: ItemIndex, report: IndexReport | None, vectors_MW: Floats, config: RetrievalConfig
) -> tuple[ItemIndex, IndexReport]:
    """Append the vectors (M, W) of new items, and vouch for the result anew, by recall on some of the items.

    The index is built again, lists and all, when its items have doubled since it was, when `auto` is another kind for
    so many, or when no effort reaches the target. `report` is None for an index that came without one.
    """
    searcher = index.searcher
    assert isinstance(searcher, FaissIndex)
    trained = report.trained_items if report else len(index)
    items = len(index) + len(vectors_MW)
    outgrown = not searcher.exact and items > GROWTH * trained
    if not outgrown and kind_for(items, config) == kind_for(trained, config):
        searcher.add(vectors_MW)
        queries_QW, queries = some_items(searcher.vectors)
        recall = raise_effort(searcher, queries_QW, config, searcher.effort)
        if recall >= config.target_recall:
            return index, _report(index, config, trained, recall, queries)
        vectors_NW = searcher.vectors
    else:
        vectors_NW = np.concatenate([searcher.vectors, vectors_MW])
    log.info("the index is built again for %d items, after %d", items, trained)
    return choose_index(vectors_NW, config)


def raise_effort(searcher: FaissIndex, queries_QW: Floats, config: RetrievalConfig, least: int = 0) -> float:
    """Set the lowest effort of at least `least` that reaches the target, or the highest; returns the recall on the
    queries that it was not chosen by."""
    if searcher.exact:
        return 1.0
    chosen_by, held_out = queries_QW[::2], queries_QW[1::2] if len(queries_QW) > 1 else queries_QW
    recall = 0.0
    for effort in searcher.efforts(config):
        if effort < least:
            continue
        searcher.effort = effort
        recall = recall_at(searcher, chosen_by)
        if recall >= config.target_recall:
            recall = recall_at(searcher, held_out)
            if recall >= config.target_recall:
                return recall
    return recall


def recall_at(searcher: FaissIndex, queries_QW: Floats, k: int = DEPTH) -> float:
    """Mean share of the true K best items that a search finds."""
    k = min(k, len(searcher))
    truth_QK = searcher.search_exactly(queries_QW, k)[0]
    scores_QK, items_QK = searcher.search(queries_QW, k)
    found_QK = (items_QK >= 0) & (scores_QK >= truth_QK[:, -1:] - ROUNDING)
    return float(found_QK.mean())


def some_items(vectors_NW: Floats, count: int = QUERIES) -> tuple[Floats, str]:
    """Up to `count` of the vectors, evenly spread over the rows, and their description."""
    rows = np.unique(np.linspace(0, len(vectors_NW) - 1, min(count, len(vectors_NW))).astype(np.int64))
    return np.ascontiguousarray(vectors_NW[rows]), f"{len(rows)} items"


def check_index(index: ItemIndex, report: IndexReport) -> None:
    """Measure the probe again. Raises BundleError when the index is another one than was vouched for."""
    searcher = index.searcher
    if not isinstance(searcher, FaissIndex):
        return
    if searcher.kind != report.kind:
        raise BundleError(
            f"the bundle vouches for a {report.kind} index and holds a {searcher.kind} one; write it again"
        )
    measured = probe(searcher)
    if measured < report.probe - TOLERANCE:
        raise BundleError(
            f"the {report.kind} index finds {measured:.3f} of the {DEPTH} items nearest to one of its own, and the "
            f"bundle vouches for {report.probe:.3f}; write the bundle again"
        )


def probe(searcher: FaissIndex) -> float:
    """Recall on a few of the items."""
    return 1.0 if searcher.exact else recall_at(searcher, some_items(searcher.vectors, PROBES)[0])


def _report(index: ItemIndex, config: RetrievalConfig, trained: int, recall: float, queries: str) -> IndexReport:
    searcher = index.searcher
    assert isinstance(searcher, FaissIndex)
    return IndexReport(
        kind=searcher.kind,
        asked=config.index,
        parameters=searcher.parameters(),
        trained_items=trained,
        target=config.target_recall,
        recall=round(recall, 4),
        queries="none: exact" if searcher.exact else queries,
        probe=round(probe(searcher), 4),
    )

"""The kinds of index: the lists of items with the largest products, exact or nearly so.

    flat      every product, in fp32: exact, and the reference that the others are measured against
    hnsw      a graph over the fp32 vectors; 4 W + 8 `hnsw_links` bytes an item
    ivf_sq8   lists around some 4 sqrt(N) centroids, 8 bits a component; the best of the nearest lists are scored again
              in fp32; 5 W + 8 bytes an item

What the approximate kinds find grows with their effort: the candidates of a search in the graph, the lists that are
looked into. The effort is kept in faiss's file. Deeper lists than those of recall@100 get more of it in proportion.
Everything is built by one thread, so that equal vectors give equal bytes.

Q queries  K results  W width  N items
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, Protocol

import faiss
import numpy as np
from numpy.typing import NDArray

from hymirec.config import RetrievalConfig
from hymirec.errors import ArtifactDamagedError

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]
Kind = Literal["flat", "hnsw", "ivf_sq8"]

# faiss's classes of search parameters take keywords that its types do not know.
PARAMETERS: Any = faiss
# The depth that recall is measured at.
DEPTH = 100
# ivf_sq8: candidates that are scored again, for each result.
REFINED = 2
# ivf_sq8: fewer rows a list than this, and the lists follow the noise (faiss warns).
LEAST_ROWS = 39
# ivf_sq8: passes of k-means, and rows a list in each of them.
PASSES, TRAINED_ROWS = 10, 64
# Where efforts start, and how they rise.
FIRST_PROBES = 8
STEP = 1.4
# Looking into more of the lists than this is slower than all products.
MOST_PROBES = 1 / 4
# And so is a search that keeps more candidates than this.
MOST_CANDIDATES = 4096


class Searcher(Protocol):
    """What an `ItemIndex` searches. Safe to search from several threads."""

    @property
    def kind(self) -> str:
        """Name of the kind."""

    @property
    def exact(self) -> bool:
        """Whether `search` is."""

    def __len__(self) -> int: ...

    @property
    def width(self) -> int:
        """W."""

    @property
    def vectors(self) -> Floats:
        """All vectors (N, W), without a copy."""

    def search(self, queries_QW: Floats, k: int) -> tuple[Floats, Ints]:
        """Scores and items (Q, K) of each query, best first; item -1 where fewer were found."""

    def search_exactly(self, queries_QW: Floats, k: int) -> tuple[Floats, Ints]:
        """The same from all products."""


class FaissIndex:
    """A searcher from faiss; this one is `flat`."""

    kind: Kind = "flat"
    exact = True

    def __init__(self, index: faiss.Index) -> None:
        self._index: Any = index
        self._flat: Any = self._vectors_in(index)

    @classmethod
    def build(cls, vectors_NW: Floats, config: RetrievalConfig) -> FaissIndex:
        """Train and fill an index with unit vectors (N, W)."""
        vectors = np.ascontiguousarray(vectors_NW, np.float32)
        with one_thread():
            built = cls(cls._trained(vectors, config))
            built.add(vectors)
        return built

    @classmethod
    def _trained(cls, vectors_NW: Floats, config: RetrievalConfig) -> faiss.Index:
        return faiss.IndexFlatIP(vectors_NW.shape[1])

    @staticmethod
    def _vectors_in(index: Any) -> Any:
        """faiss's flat index with all vectors."""
        return index

    def __len__(self) -> int:
        return int(self._index.ntotal)

    @property
    def width(self) -> int:
        """W."""
        return int(self._index.d)

    @property
    def vectors(self) -> Floats:
        """All vectors (N, W), without a copy."""
        flat = self._flat
        vectors: Floats = faiss.rev_swig_ptr(flat.get_xb(), flat.ntotal * flat.d).reshape(flat.ntotal, flat.d)
        return vectors

    @property
    def effort(self) -> int:
        """Candidates or lists of a search; 0 for an exact one."""
        return 0

    @effort.setter
    def effort(self, value: int) -> None:
        pass

    def efforts(self, config: RetrievalConfig) -> Iterator[int]:
        """Efforts worth trying, rising."""
        yield 0

    def parameters(self) -> dict[str, int]:
        """What the index was built and is searched with."""
        return {}

    def add(self, vectors_MW: Floats) -> None:
        """Append the vectors (M, W) of new items. Not while others search."""
        with one_thread():
            self._index.add(np.ascontiguousarray(vectors_MW, np.float32))

    def save(self, path: str) -> None:
        """Write faiss's own format."""
        faiss.write_index(self._index, path)

    def search(self, queries_QW: Floats, k: int) -> tuple[Floats, Ints]:
        """See `Searcher`."""
        found: tuple[Floats, Ints] = self._index.search(queries_QW, k)
        return found

    def search_exactly(self, queries_QW: Floats, k: int) -> tuple[Floats, Ints]:
        """See `Searcher`."""
        found: tuple[Floats, Ints] = self._flat.search(queries_QW, k)
        return found


class HnswIndex(FaissIndex):
    """`hnsw`; its effort is the number of candidates that a search keeps."""

    kind: Kind = "hnsw"
    exact = False

    @classmethod
    def _trained(cls, vectors_NW: Floats, config: RetrievalConfig) -> faiss.Index:
        index = faiss.IndexHNSWFlat(vectors_NW.shape[1], config.hnsw_links, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = config.hnsw_search
        index.hnsw.efSearch = config.hnsw_search
        return index

    @staticmethod
    def _vectors_in(index: Any) -> Any:
        return faiss.downcast_index(index.storage)

    @property
    def effort(self) -> int:
        """Candidates that a search keeps."""
        return int(self._index.hnsw.efSearch)

    @effort.setter
    def effort(self, value: int) -> None:
        self._index.hnsw.efSearch = value

    def efforts(self, config: RetrievalConfig) -> Iterator[int]:
        """From `hnsw_search` on."""
        return rising(config.hnsw_search, max(config.hnsw_search, MOST_CANDIDATES))

    def parameters(self) -> dict[str, int]:
        """Links of a node; candidates."""
        return {"links": int(self._index.hnsw.nb_neighbors(1)), "candidates": self.effort}

    def search(self, queries_QW: Floats, k: int) -> tuple[Floats, Ints]:
        """See `Searcher`."""
        settings = PARAMETERS.SearchParametersHNSW(efSearch=deeper(self.effort, k, len(self)))
        found: tuple[Floats, Ints] = self._index.search(queries_QW, k, params=settings)
        return found


class IvfSq8Index(FaissIndex):
    """`ivf_sq8`; its effort is the number of lists that a search looks into."""

    kind: Kind = "ivf_sq8"
    exact = False

    def __init__(self, index: faiss.Index) -> None:
        super().__init__(index)
        self._lists: Any = faiss.downcast_index(self._index.base_index)

    @classmethod
    def _trained(cls, vectors_NW: Floats, config: RetrievalConfig) -> faiss.Index:
        count, width = vectors_NW.shape
        centroids = faiss.IndexFlatIP(width)
        lists = faiss.IndexIVFScalarQuantizer(
            centroids, width, list_count(count), faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT, False
        )
        lists.cp.niter, lists.cp.max_points_per_centroid = PASSES, TRAINED_ROWS
        lists.cp.min_points_per_centroid = 1
        lists.nprobe = min(FIRST_PROBES, lists.nlist)
        index = faiss.IndexRefineFlat(lists)
        index.k_factor = REFINED
        index.train(vectors_NW)
        return index

    @staticmethod
    def _vectors_in(index: Any) -> Any:
        return faiss.downcast_index(index.refine_index)

    @property
    def effort(self) -> int:
        """Lists that a search looks into."""
        return int(self._lists.nprobe)

    @effort.setter
    def effort(self, value: int) -> None:
        self._lists.nprobe = value

    def efforts(self, config: RetrievalConfig) -> Iterator[int]:
        """From 8 lists to a quarter of them."""
        lists = int(self._lists.nlist)
        return rising(min(FIRST_PROBES, lists), min(lists, max(FIRST_PROBES, int(lists * MOST_PROBES))))

    def parameters(self) -> dict[str, int]:
        """Lists in all; lists that are looked into."""
        return {"lists": int(self._lists.nlist), "probes": self.effort}

    def search(self, queries_QW: Floats, k: int) -> tuple[Floats, Ints]:
        """See `Searcher`."""
        probes = PARAMETERS.SearchParametersIVF(nprobe=deeper(self.effort, k, int(self._lists.nlist)))
        settings = PARAMETERS.IndexRefineSearchParameters(k_factor=REFINED, base_index_params=probes)
        found: tuple[Floats, Ints] = self._index.search(queries_QW, k, params=settings)
        return found


KINDS: dict[Kind, type[FaissIndex]] = {"flat": FaissIndex, "hnsw": HnswIndex, "ivf_sq8": IvfSq8Index}


def open_faiss(index: faiss.Index) -> FaissIndex:
    """The searcher of an index that was read from a file. Raises ArtifactDamagedError for one of no known kind."""
    if isinstance(index, faiss.IndexRefineFlat):
        return IvfSq8Index(index)
    if isinstance(index, faiss.IndexHNSW):
        return HnswIndex(index)
    if isinstance(index, faiss.IndexFlat):
        return FaissIndex(index)
    raise ArtifactDamagedError(f"a faiss {type(index).__name__} is no index of a bundle; write the bundle again")


def kind_for(items: int, config: RetrievalConfig) -> Kind:
    """What `auto` is for a catalogue of this size; any other setting is itself."""
    if config.index == "auto":
        return "flat" if items <= config.flat_items else "ivf_sq8"
    return config.index


def list_count(items: int) -> int:
    """Lists of an inverted file: 4 sqrt(N), fewer where they would be nearly empty."""
    return max(1, min(int(4 * items**0.5), items // LEAST_ROWS))


def rising(first: int, last: int) -> Iterator[int]:
    """Whole numbers from `first` up to `last`, each some 1.4 times the one before."""
    value = first
    while value <= last:
        yield value
        value = max(value + 1, round(value * STEP))


def deeper(effort: int, k: int, most: int) -> int:
    """The effort for lists of `k`, if `effort` is the one for 100."""
    return min(most, max(effort, -(-effort * k // DEPTH)))


@contextmanager
def one_thread() -> Iterator[None]:
    """faiss with one thread, whose results do not depend on the machine's number of cores."""
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(threads)

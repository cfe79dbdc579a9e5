"""An index vouches for a recall that was measured, is of the next kind where it falls short, and is checked."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hymirec.config import RetrievalConfig
from hymirec.errors import BundleError
from hymirec.retrieval import IndexReport, ItemIndex, check_index, choose_index, grow_index
from hymirec.retrieval.choice import recall_at
from hymirec.retrieval.kinds import FaissIndex

ITEMS, WIDTH = 3_000, 16


def clustered(seed: int, count: int, spread: float = 0.45) -> np.ndarray:
    """Unit vectors around 60 centres, which are the same for every seed."""
    centres = np.random.default_rng(99).standard_normal((60, WIDTH), dtype=np.float32)
    rng = np.random.default_rng(seed)
    rows = centres[rng.integers(0, 60, count)] + spread * rng.standard_normal((count, WIDTH), dtype=np.float32)
    unit: np.ndarray = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return unit


def searcher(index: ItemIndex) -> FaissIndex:
    assert isinstance(index.searcher, FaissIndex)
    return index.searcher


@pytest.fixture(scope="module")
def lists() -> tuple[ItemIndex, IndexReport]:
    return choose_index(
        clustered(0, ITEMS), RetrievalConfig(index="ivf_sq8"), clustered(1, 200), "interests of 200 users"
    )


def test_lists_reach_the_target_on_queries_that_did_not_choose_the_effort(lists: tuple[ItemIndex, IndexReport]) -> None:
    index, report = lists
    assert (report.kind, report.asked, report.trained_items) == ("ivf_sq8", "ivf_sq8", ITEMS)
    assert report.queries == "interests of 200 users"
    assert report.parameters["probes"] == searcher(index).effort < report.parameters["lists"] == 76
    assert report.recall == round(recall_at(searcher(index), clustered(1, 200)[1::2]), 4) >= report.target == 0.98
    fresh = recall_at(searcher(index), clustered(2, 200))
    assert abs(fresh - report.recall) < 0.02


def test_effort_is_raised_no_further_than_needed() -> None:
    vectors, queries = clustered(0, ITEMS), clustered(1, 200)
    low, high = (
        choose_index(vectors, RetrievalConfig(index="ivf_sq8", target_recall=target), queries)[1]
        for target in (0.9, 0.985)
    )
    assert low.parameters["probes"] < high.parameters["probes"]
    assert 0.9 <= low.recall < high.recall


def test_where_lists_fall_short_the_next_kind_is_built() -> None:
    rng = np.random.default_rng(0)
    # Nothing is near anything: no few lists hold the best.
    vectors = rng.standard_normal((2_000, 64), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    index, report = choose_index(vectors, RetrievalConfig(index="ivf_sq8"))
    assert (report.asked, report.kind) == ("ivf_sq8", "hnsw")
    assert report.recall >= 0.98
    assert report.parameters["candidates"] == searcher(index).effort


def test_auto_is_flat_up_to_a_number_of_items() -> None:
    config = RetrievalConfig(flat_items=ITEMS)
    report = choose_index(clustered(0, ITEMS), config)[1]
    assert (report.kind, report.recall, report.probe, report.queries) == ("flat", 1.0, 1.0, "none: exact")
    assert choose_index(clustered(0, ITEMS + 1), config)[1].kind == "ivf_sq8"


def test_new_items_go_into_the_lists_until_there_are_twice_as_many(lists: tuple[ItemIndex, IndexReport]) -> None:
    config, new = RetrievalConfig(index="ivf_sq8"), clustered(3, ITEMS)
    index, report = choose_index(clustered(0, ITEMS), config)
    index, grown = grow_index(index, report, new, config)
    assert (len(index), grown.trained_items, grown.kind) == (2 * ITEMS, ITEMS, "ivf_sq8")
    assert grown.recall >= 0.98
    index, again = grow_index(index, grown, new[:1] * -1, config)
    assert (len(index), again.trained_items) == (2 * ITEMS + 1, 2 * ITEMS + 1)
    assert again.parameters["lists"] > grown.parameters["lists"]
    assert np.array_equal(index.vectors(np.arange(2 * ITEMS)), np.concatenate([clustered(0, ITEMS), new]))


def test_a_catalogue_that_grows_past_the_limit_of_flat_gets_lists() -> None:
    config = RetrievalConfig(flat_items=ITEMS)
    index, report = choose_index(clustered(0, ITEMS), config)
    index, report = grow_index(index, report, clustered(3, 5), config)
    assert (searcher(index).kind, report.kind, report.trained_items) == ("ivf_sq8", "ivf_sq8", ITEMS + 5)


def test_an_index_without_a_report_grows_and_gets_one() -> None:
    index = ItemIndex.build(clustered(0, 500), RetrievalConfig(index="hnsw"))
    index, report = grow_index(index, None, clustered(3, 5), RetrievalConfig(index="hnsw"))
    assert (len(index), report.kind, report.trained_items) == (505, "hnsw", 500)


def test_an_index_below_what_it_vouches_for_is_refused(lists: tuple[ItemIndex, IndexReport], tmp_path: Path) -> None:
    index, report = lists
    check_index(index, report)
    index.save(tmp_path / "index.faiss")
    other = ItemIndex.open(tmp_path / "index.faiss")
    check_index(other, report)
    searcher(other).effort = 1
    with pytest.raises(BundleError, match="vouches for"):
        check_index(other, report)
    with pytest.raises(BundleError, match="vouches for a hnsw index and holds a ivf_sq8"):
        check_index(index, replace(report, kind="hnsw"))


def test_a_report_is_plain_values_and_a_broken_one_is_refused(lists: tuple[ItemIndex, IndexReport]) -> None:
    report = lists[1]
    assert IndexReport.of(report.info()) == report
    with pytest.raises(BundleError, match="report of the index"):
        IndexReport.of({"kind": "flat"})

"""New items without training: old ones stay as they are, new ones are found, and a kill changes nothing."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from tiny_run import ITEMS, build_tiny_run, tiny_config, trending
from torch.nn import functional as F  # noqa: N812

from hymirec.additions import Addition, add_items
from hymirec.artifacts import read_manifest, write_json, write_manifest
from hymirec.bundle import Bundle, verify_bundle, write_bundle
from hymirec.catalog.parts import part_paths, read_table
from hymirec.config import PipelineConfig, RetrievalConfig
from hymirec.encoder import ContentEncoder
from hymirec.errors import ArtifactDamagedError, BundleError, DataError, ValidationError
from hymirec.inference import HyMiRec
from hymirec.recommender.trend import Trend

ADDED = 70


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_run(tmp_path_factory.mktemp("additions"))


@pytest.fixture(scope="module")
def config(run_dir: Path) -> PipelineConfig:
    return settings_of(run_dir)


def settings_of(run_dir: Path, kind: str = "cosine") -> PipelineConfig:
    return tiny_config(kind=kind).model_copy(update={"run_dir": str(run_dir)})


def titles(run_dir: Path) -> list[str]:
    return [title for path in part_paths(run_dir / "data" / "items") for title in read_table(path)["title"].to_pylist()]


def new_items(run_dir: Path, target: Path, first: int = 0, count: int = ADDED) -> str:
    """Items with the titles of old ones, so that text alone says where they belong."""
    old = titles(run_dir)
    ids = [f"fresh-{number:04d}" for number in range(first, first + count)]
    pq.write_table(pa.table({"item": ids, "title": [old[row % len(old)] for row in range(count)]}), target)
    return str(target)


@pytest.fixture(scope="module")
def added(run_dir: Path, config: PipelineConfig) -> Path:
    return add_items(config, new_items(run_dir, run_dir / "new.parquet")).out


def test_old_items_stay_to_the_bit_and_new_ones_follow(run_dir: Path, added: Path) -> None:
    old, new = Bundle.open(run_dir / "bundle"), Bundle.open(added)
    assert new.catalog.size == len(new.index) == len(new.model.codes) == ITEMS + ADDED
    every = np.arange(ITEMS)
    assert np.array_equal(new.index.vectors(every), old.index.vectors(every))
    assert new.catalog.item_ids[:ITEMS].equals(old.catalog.item_ids)
    assert np.array_equal(new.catalog.keys[:ITEMS], old.catalog.keys)
    assert all(
        torch.equal(a, b)
        for a, b in zip(new.model.codes(torch.arange(ITEMS)), old.model.codes(torch.arange(ITEMS)), strict=True)
    )
    for name, weight in old.model.state_dict().items():
        assert torch.equal(new.model.state_dict()[name][: len(weight)], weight)
    assert [new.catalog.item_id(ITEMS + row) for row in (0, ADDED - 1)] == ["fresh-0000", f"fresh-{ADDED - 1:04d}"]
    assert new.catalog.popularity[ITEMS:].sum() == 0


def test_a_new_item_is_coded_and_placed_by_its_text(run_dir: Path, added: Path) -> None:
    new = Bundle.open(added)
    rows = torch.arange(ADDED)
    for fresh, old in zip(new.model.codes(ITEMS + rows), new.model.codes(rows), strict=True):
        assert torch.equal(fresh, old)
    texts = [f"Title: {title}" for title in titles(run_dir)[:ADDED]]
    with torch.inference_mode():
        content = F.normalize(ContentEncoder.from_pretrained(run_dir / "encoder").encode(texts), dim=1)
        assert new.model.items.projection is not None
        expected = F.normalize(content @ new.model.items.projection.T, dim=1).numpy()
    # Embeddings are kept in half precision.
    assert np.abs(new.index.vectors(ITEMS + np.arange(ADDED)) - expected).max() < 2e-3


def test_new_items_are_recommended_and_read(run_dir: Path, added: Path) -> None:
    before, after = HyMiRec.from_pretrained(run_dir / "bundle"), HyMiRec.from_pretrained(added)
    known = [str(after.bundle.catalog.item_id(row)) for row in range(9)]
    found = after.recommend(known, k=ITEMS + ADDED)
    scores = {item.item_id: item.score for item in found.items}
    assert len(scores) == ITEMS + ADDED - len(known)
    # Text alone may not beat what users did, but it beats most of the catalogue.
    assert max(score for item, score in scores.items() if item.startswith("fresh")) > np.median(list(scores.values()))
    history = [*known, *(f"fresh-{row:04d}" for row in range(20)), *known[:3]]
    assert before.recommend(history).unknown_items == 20
    assert after.recommend(history).unknown_items == 0
    assert after.recommend(history[:-23]).items != after.recommend(history).items


@pytest.mark.parametrize("kind", ["none", "euclidean"])
def test_other_kinds_of_codebook_grow_too(kind: str, tmp_path: Path) -> None:
    run_dir = build_tiny_run(tmp_path / "run", kind=kind)
    settings = settings_of(run_dir, kind)
    first = add_items(settings, new_items(run_dir, tmp_path / "new.parquet")).out
    more = new_items(run_dir, tmp_path / "more.parquet", ADDED, 9)
    model = HyMiRec.from_pretrained(add_items(settings, more, first).out)
    assert model.bundle.catalog.size == ITEMS + ADDED + 9
    # Long enough that the light recommender reads old and new items alike.
    history = [str(model.bundle.catalog.item_id(row)) for row in (*range(5), *range(ITEMS, ITEMS + 79))]
    twins = [str(model.bundle.catalog.item_id(row)) for row in (*range(5), *range(70), *range(9))]
    coarse = [model.coarse([(item, at) for at, item in enumerate(own)], now=90).vectors for own in (history, twins)]
    assert np.abs(coarse[0] - coarse[1]).max() < 2e-3
    assert len(model.recommend(history).items) == 20


def test_an_approximate_index_takes_new_items_in_and_vouches_for_its_recall_anew(
    run_dir: Path, config: PipelineConfig, tmp_path: Path
) -> None:
    graph = config.model_copy(update={"retrieval": RetrievalConfig(index="hnsw")})
    write_bundle(run_dir, graph, tmp_path / "base")
    few = add_items(graph, new_items(run_dir, tmp_path / "few.parquet"), tmp_path / "base", tmp_path / "few").out
    many = new_items(run_dir, tmp_path / "many.parquet", 0, ITEMS + ADDED)
    more = add_items(graph, many, tmp_path / "base", tmp_path / "more").out
    for out, added, trained in ((few, ADDED, ITEMS), (more, ITEMS + ADDED, 2 * ITEMS + ADDED)):
        bundle = Bundle.open(out)
        report = bundle.index_report
        assert report is not None
        assert (report.kind, len(bundle.index), report.trained_items) == ("hnsw", ITEMS + added, trained)
        assert report.recall >= report.target
        assert ("The index was built again." in (out / "README.md").read_text()) == (out == more)
        bundle.check_index()


def test_items_may_be_added_to_what_was_added_to(run_dir: Path, config: PipelineConfig, added: Path) -> None:
    whole = new_items(run_dir, run_dir / "whole.parquet", 0, ADDED + 3)
    second = add_items(config, whole, added)
    assert (len(second.items), second.items.known) == (3, ADDED)
    assert Bundle.open(second.out).catalog.size == ITEMS + ADDED + 3
    assert "3 items were added to bundle" in (second.out / "README.md").read_text()
    assert add_items(config, whole, second.out).outcome().startswith("nothing to do")


def test_counts_of_what_is_popular_now_go_on(run_dir: Path, config: PipelineConfig, tmp_path: Path) -> None:
    base = trending(run_dir, tmp_path / "trending", Trend(0.5, 1000.0))
    model = HyMiRec.from_pretrained(
        add_items(config, new_items(run_dir, tmp_path / "new.parquet"), base, tmp_path / "out").out
    )
    counts, old = model.bundle.model.trend_counts, Bundle.open(base).model.trend_counts
    assert counts is not None
    assert old is not None
    assert np.array_equal(counts.at_N, np.concatenate([old.at_N, np.zeros(ADDED, np.float32)]))
    fresh = model.bundle.catalog.keys[ITEMS : ITEMS + 1]
    model.observe(np.repeat(fresh, 9_999), np.full(9_999, counts.at + 5))
    known = [str(model.bundle.catalog.item_id(row)) for row in range(9)]
    assert model.recommend(known, k=3, now=counts.at + 10).items[0].item_id == "fresh-0000"


def test_a_kill_at_any_moment_and_the_same_again_end_in_the_same_bytes(
    run_dir: Path, config: PipelineConfig, added: Path, tmp_path: Path
) -> None:
    source, out = str(run_dir / "new.parquet"), tmp_path / "out"
    base = read_manifest(run_dir / "bundle").id

    def resumed() -> str:
        assert read_manifest(add_items(config, source, None, out).out).id == read_manifest(added).id
        assert not (out / "work").exists()
        return verify_bundle(out).id

    # Killed when the items were cut, and one part of embeddings was there.
    addition = Addition.plan(config, source, None, out)
    addition.cut()
    (addition.embeddings_dir / ".part-00001.parquet.tmp").parent.mkdir()
    (addition.embeddings_dir / ".part-00001.parquet.tmp").write_bytes(b"half")
    first = resumed()
    # Killed while the bundle was written: anything may be missing or half there, and never a manifest.
    for broken in ("index.faiss", "items", "recommender", "codes/items.codes"):
        shutil.rmtree(out)
        addition = Addition.plan(config, source, None, out)
        addition.cut()
        shutil.copytree(added, out, dirs_exist_ok=True, ignore=shutil.ignore_patterns("manifest.json"))
        path = out / broken
        shutil.rmtree(path) if path.is_dir() else path.write_bytes(path.read_bytes()[:7])
        assert resumed() == first
    # Killed while it tidied up, and damaged afterwards.
    (out / "work").mkdir()
    assert add_items(config, source, None, out).step.done() is not None
    (out / "config.yaml").write_text("damaged")
    assert resumed() == first
    assert verify_bundle(run_dir / "bundle").id == base


def test_what_cannot_be_added_is_named(run_dir: Path, config: PipelineConfig, tmp_path: Path) -> None:
    def refused(columns: dict[str, list[object]], message: str, kind: type[Exception] = DataError) -> None:
        pq.write_table(pa.table(columns), tmp_path / "wrong.parquet")
        with pytest.raises(kind, match=message):
            Addition.plan(config, str(tmp_path / "wrong.parquet"))

    refused({"item": ["a", "a"], "title": ["x", "y"]}, "'a' is there already", ValidationError)
    refused({"item": ["a", None], "title": ["x", "y"]}, "is null", ValidationError)
    refused({"item": ["a"], "name": ["x"]}, "no column title", ValidationError)
    with pytest.raises(DataError, match="names no file"):
        Addition.plan(config, str(tmp_path / "nowhere.parquet"))
    pq.write_table(pa.table({"item": [17], "title": ["a number is a good name"]}), tmp_path / "number.parquet")
    assert Addition.plan(config, str(tmp_path / "number.parquet")).items.table["item"].to_pylist() == ["17"]


def test_what_does_not_belong_together_is_refused(
    run_dir: Path, config: PipelineConfig, added: Path, tmp_path: Path
) -> None:
    source = str(run_dir / "new.parquet")
    with pytest.raises(BundleError, match="does not change"):
        Addition.plan(config, source, out=run_dir / "bundle")
    for taken in (run_dir, run_dir / "data", added.parent):
        with pytest.raises(BundleError, match="holds something else"):
            Addition.plan(config, source, out=taken)
    with pytest.raises(BundleError, match="holds something else"):
        Addition.plan(config, new_items(run_dir, tmp_path / "other.parquet", 500, 2), out=added)
    shutil.copytree(run_dir / "bundle", tmp_path / "foreign")
    write_json(tmp_path / "foreign" / "encoder.json", {"id": "0" * 64})
    with pytest.raises(ArtifactDamagedError, match=r"encoder\.json is damaged"):
        Addition.plan(config, source, tmp_path / "foreign")
    write_manifest(tmp_path / "foreign", "bundle")
    with pytest.raises(BundleError, match="give the run that the bundle comes from"):
        Addition.plan(config, source, tmp_path / "foreign")

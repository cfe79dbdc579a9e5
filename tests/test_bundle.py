"""The release: whole or refused, the same bytes from the same run, and enough on its own."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from tiny_run import ITEMS, build_tiny_run, tiny_config

from hymirec.artifacts import MANIFEST, read_manifest, write_manifest
from hymirec.bundle import Bundle, write_bundle
from hymirec.config import ComputeConfig, PipelineConfig, RetrievalConfig, load
from hymirec.errors import ArtifactDamagedError, ArtifactMissingError, BundleError
from hymirec.inference import HyMiRec


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_run(tmp_path_factory.mktemp("bundle"))


@pytest.fixture
def copy(run_dir: Path, tmp_path: Path) -> Path:
    """A copy of the bundle alone: no run directory around it."""
    shutil.copytree(run_dir / "bundle", tmp_path / "release")
    return tmp_path / "release"


def test_a_bundle_opens_wherever_it_lies_and_keeps_its_id(run_dir: Path, copy: Path) -> None:
    bundle = Bundle.open(copy)
    assert bundle.id == read_manifest(run_dir / "bundle").id
    assert bundle.catalog.size == len(bundle.index) == len(bundle.popular) == ITEMS
    assert not list(copy.rglob("*embeddings*"))


def test_items_are_kept_without_their_texts(copy: Path) -> None:
    parts = sorted((copy / "items").iterdir())
    assert len(parts) == 3
    assert {name for part in parts for name in pq.read_schema(part).names} == {
        "index", "item", "key", "title", "popularity",
    }  # fmt: skip


def test_the_same_run_gives_the_same_bundle_on_any_number_of_machines(run_dir: Path, tmp_path: Path) -> None:
    config = tiny_config()
    moved = config.model_copy(update={"run_dir": "/elsewhere", "compute": ComputeConfig(workers=8, use_gpu=True)})
    manifest = write_bundle(run_dir, moved, tmp_path / "again")
    assert manifest == read_manifest(run_dir / "bundle")
    other = build_tiny_run(tmp_path / "run")
    assert read_manifest(other / "bundle").id == manifest.id


def test_another_seed_is_another_bundle(run_dir: Path, tmp_path: Path) -> None:
    other = build_tiny_run(tmp_path, seed=5)
    assert read_manifest(other / "bundle").id != read_manifest(run_dir / "bundle").id


def test_writing_over_an_older_bundle_leaves_nothing_of_it(run_dir: Path, copy: Path) -> None:
    shutil.copy(copy / "items" / "part-00000.parquet", copy / "items" / "part-00009.parquet")
    (copy / "recommender" / "model-00002.safetensors").write_bytes(b"older")
    write_bundle(run_dir, tiny_config(), copy)
    assert read_manifest(copy) == read_manifest(run_dir / "bundle")


def test_a_bundle_says_what_it_is_made_of(copy: Path, run_dir: Path) -> None:
    config = load(PipelineConfig, copy / "config.yaml")
    assert config.run_dir is None
    assert config.recommender == tiny_config().recommender
    encoder = json.loads((copy / "encoder.json").read_text())
    assert encoder["id"] == read_manifest(run_dir / "encoder").id
    card = (copy / "README.md").read_text()
    assert "| HyMiRec |" in card
    assert "| popularity |" in card
    assert str(run_dir) not in card + yaml.safe_dump(encoder)


def test_a_flipped_bit_in_any_file_is_found_and_the_file_named(copy: Path) -> None:
    names = list(read_manifest(copy).files)
    assert {"index.faiss", "recommender/model.safetensors", "codes/items.codes", "config.yaml"} <= set(names)
    for name in names:
        path = copy / name
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2] + bytes([whole[len(whole) // 2] ^ 1]) + whole[len(whole) // 2 + 1 :])
        with pytest.raises(ArtifactDamagedError, match=path.name):
            Bundle.open(copy)
        path.write_bytes(whole)
    Bundle.open(copy)


@pytest.mark.parametrize("name", [MANIFEST, "index.faiss", "recommender/item_vectors.safetensors"])
def test_a_missing_file_is_named(copy: Path, name: str) -> None:
    (copy / name).unlink()
    with pytest.raises(ArtifactMissingError, match=Path(name).name):
        Bundle.open(copy)


def test_a_file_that_the_manifest_does_not_name_is_refused(copy: Path) -> None:
    shutil.copy(copy / "items" / "part-00000.parquet", copy / "items" / "part-00003.parquet")
    with pytest.raises(ArtifactDamagedError, match=r"part-00003\.parquet.*remove it"):
        Bundle.open(copy)


def test_a_broken_manifest_is_refused(copy: Path) -> None:
    text = (copy / MANIFEST).read_text()
    for broken in (text[:-20], text.replace('"files"', '"filez"'), "[]"):
        (copy / MANIFEST).write_text(broken)
        with pytest.raises(ArtifactDamagedError, match="manifest"):
            Bundle.open(copy)


def test_a_directory_that_is_no_bundle_says_where_one_is(run_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="RUN_DIR/bundle"):
        Bundle.open(run_dir / "data")
    with pytest.raises(ArtifactMissingError, match="RUN_DIR/bundle"):
        Bundle.open(tmp_path / "nothing")


def test_parts_of_two_catalogues_do_not_make_a_bundle(copy: Path) -> None:
    (copy / "items" / "part-00002.parquet").unlink()
    write_manifest(copy, "bundle")
    with pytest.raises(BundleError, match="from one run"):
        Bundle.open(copy)


@pytest.mark.parametrize("kind", ["hnsw", "ivf_sq8"])
def test_a_bundle_of_another_index_recommends_what_the_exact_one_does(run_dir: Path, tmp_path: Path, kind: str) -> None:
    config = tiny_config().model_copy(update={"retrieval": RetrievalConfig(index=kind)})  # type: ignore[arg-type]
    manifest = write_bundle(run_dir, config, tmp_path / "other")
    exact, other = HyMiRec.from_pretrained(run_dir / "bundle"), HyMiRec.from_pretrained(tmp_path / "other")
    assert exact.bundle_id != other.bundle_id
    assert exact.bundle.index_report is not None
    assert exact.bundle.index_report.kind == "flat"
    report = other.bundle.index_report
    assert report is not None
    assert manifest.info["index"] == report.info()
    assert report.asked == kind
    assert report.recall >= 0.98
    assert report.queries == "interests of 54 users"
    other.bundle.check_index()
    history = [exact.bundle.catalog.item_id(i) for i in range(12)]
    a, b = (model.recommend(history, k=10, now=1_800_000_000).items for model in (exact, other))
    assert [item.item_id for item in a] == [item.item_id for item in b]


def test_a_bundle_of_the_time_before_reports_opens_and_serves(copy: Path) -> None:
    write_manifest(copy, "bundle")
    bundle = Bundle.open(copy)
    assert bundle.index_report is None
    bundle.check_index()


def test_an_index_that_is_not_what_the_manifest_vouches_for_is_found(run_dir: Path, tmp_path: Path) -> None:
    config = tiny_config().model_copy(update={"retrieval": RetrievalConfig(index="hnsw")})
    info = write_bundle(run_dir, config, tmp_path / "graph").info
    shutil.copy(run_dir / "bundle" / "index.faiss", tmp_path / "graph" / "index.faiss")
    write_manifest(tmp_path / "graph", "bundle", info=info)
    with pytest.raises(BundleError, match="vouches for a hnsw index and holds a flat one"):
        Bundle.open(tmp_path / "graph").check_index()

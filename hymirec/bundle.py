"""The bundle: the immutable release of a run, under one manifest whose hash is its id.

    items/part-*.parquet   index, id, key, title, popularity (no texts)
    codes/items.codes      packed codes of every item, mapped into memory (the run's parts for other kinds of codebook)
    codebook/              centroids, report
    recommender/           weights, item vectors, projected codebook
    index.faiss            item vectors, searchable; what it is and the recall it vouches for stand in the manifest
    encoder.json           which content encoder made the embeddings (by reference: serving does not need it)
    config.yaml metrics.json README.md

Opening a bundle verifies the hash of every file before anything is parsed.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from hymirec.artifacts import (
    MANIFEST,
    UNLISTED_DIRS,
    UNLISTED_FILES,
    Manifest,
    read_json,
    read_manifest,
    verify,
    write_json,
    write_manifest,
)
from hymirec.catalog.parts import part_paths, read_table, write_table
from hymirec.catalog.prepared import Catalog, Sequences
from hymirec.catalog.schemas import INDEX, ITEM, ITEMS_DIR, KEY, POPULARITY, SEQUENCES_FILE, TITLE
from hymirec.codebook import open_codebook
from hymirec.codebook.table import ItemCodes
from hymirec.config import ComputeConfig, Config, PipelineConfig, dump
from hymirec.errors import ArtifactDamagedError, ArtifactMissingError, BundleError
from hymirec.recommender.hybrid import HybridModel
from hymirec.recommender.requests import split_interests, users_with_targets
from hymirec.retrieval import IndexReport, ItemIndex, check_index, choose_index, kind_for, on_device

KIND = "bundle"
INDEX_FILE = "index.faiss"
CODES_DIR = "codes"
# Key of the manifest's info: the index's report.
INDEX_INFO = "index"
# Users whose interests the recall of an index is measured with.
RECALL_USERS = 256
COPIED = ("codebook", "recommender")
UNCOPIED = shutil.ignore_patterns(
    "manifest.json", "timing.json", "work", "logs", "checkpoints", "tensorboard", "report", ".*"
)


@dataclass(frozen=True)
class Bundle:
    """An open bundle. Immutable: a new release is a new object."""

    path: Path
    id: str
    catalog: Catalog
    model: HybridModel
    index: ItemIndex
    popular: NDArray[np.int64]
    # None for a bundle of the time before there were such reports.
    index_report: IndexReport | None = None

    def check_index(self) -> None:
        """Measure a little of the recall that the index vouches for. Raises BundleError when it falls short."""
        if self.index_report is not None:
            check_index(self.index, self.index_report)

    @classmethod
    def open(cls, path: str | Path, device: str = "cpu") -> Bundle:
        """Verify every file of a bundle, then load it; model and index go to `device`.

        Raises ArtifactMissingError or ArtifactDamagedError with the name of the file, BundleError when the parts are of
        different catalogues or the directory is no bundle.
        """
        directory = Path(path)
        manifest = verify_bundle(directory)
        catalog = Catalog.open(directory)
        codes = open_codebook(directory / "codebook").open_items(directory / CODES_DIR)
        model = HybridModel.open(directory / "recommender", codes)
        torch.nn.Module.to(model, device)
        index = ItemIndex.open(directory / INDEX_FILE)
        if not len(index) == len(codes) == catalog.size:
            raise BundleError(
                f"{directory}: {catalog.size} items, {len(codes)} rows of codes, {len(index)} vectors in the index; "
                "these must be equal. Write the bundle again from one run"
            )
        popular = np.lexsort((np.arange(catalog.size), -catalog.popularity))
        return cls(directory, manifest.id, catalog, model, on_device(index, device), popular, index_report(manifest))


def write_bundle(run_dir: Path, config: PipelineConfig, out: Path) -> Manifest:
    """Collect the bundle of a finished run in `out`; the manifest is written last.

    Everything in it is a function of the run's artifacts and of the configuration's parts that shape them. A bundle
    that stood in `out` is replaced.
    """
    (out / MANIFEST).unlink(missing_ok=True)
    for name in (ITEMS_DIR, CODES_DIR, *COPIED):
        shutil.rmtree(out / name, ignore_errors=True)
    for part in part_paths(run_dir / "data" / ITEMS_DIR):
        write_table(out / ITEMS_DIR / part.name, read_table(part, [INDEX, ITEM, KEY, TITLE, POPULARITY]))
    for name in COPIED:
        shutil.copytree(run_dir / name, out / name, ignore=UNCOPIED, dirs_exist_ok=True)
    shutil.copyfile(run_dir / "evaluation" / "metrics.json", out / "metrics.json")
    items = open_codebook(out / "codebook").open_items(run_dir / CODES_DIR)
    if isinstance(items, ItemCodes):
        items.save(out / CODES_DIR)
    else:
        shutil.copytree(run_dir / CODES_DIR, out / CODES_DIR, ignore=UNCOPIED)
    model = HybridModel.open(out / "recommender", items)
    vectors_NW = model.item_vectors().float().cpu().numpy()
    index, report = choose_index(vectors_NW, config.retrieval, *_some_interests(model, run_dir, config))
    index.save(out / INDEX_FILE)
    encoder = read_manifest(run_dir / "encoder")
    write_json(out / "encoder.json", {"preset": config.encoder.preset, "model": config.encoder.model, "id": encoder.id})
    (out / "config.yaml").write_text(_recipe(config), encoding="utf-8")
    (out / "README.md").write_text(_card(config, out), encoding="utf-8")
    return write_manifest(out, KIND, info={INDEX_INFO: report.info()})


def index_report(manifest: Manifest) -> IndexReport | None:
    """What a bundle's index vouches for. Raises BundleError for a report that is none."""
    info = manifest.info.get(INDEX_INFO)
    return None if info is None else IndexReport.of(info)


def _some_interests(
    model: HybridModel, run_dir: Path, config: PipelineConfig
) -> tuple[NDArray[np.float32] | None, str]:
    """Interests (Q, W) of some of the run's users at the time of their test targets; None where none is needed."""
    if (
        kind_for(len(model.item_vectors()), config.retrieval) == "flat"
        or not (run_dir / "data" / SEQUENCES_FILE).is_file()
    ):
        return None, ""
    sequences = Sequences.open(run_dir / "data")
    users = users_with_targets(sequences, "test")
    rng = np.random.default_rng(config.seed)
    chosen = np.sort(rng.permutation(users)[:RECALL_USERS])
    found = [
        interests.flatten(0, 1).cpu().numpy()
        for _, interests in split_interests(model, sequences, "test", chosen, config.evaluation.batch_users)
    ]
    return (np.concatenate(found) if found else None), f"interests of {len(chosen)} users"


def verify_bundle(directory: Path) -> Manifest:
    """Check every file of a bundle against its manifest, and that there is no other: what nobody vouches for must not
    be read by accident.

    Raises ArtifactMissingError or ArtifactDamagedError with the name of the file, BundleError for another artifact.
    """
    if not directory.is_dir():
        raise ArtifactMissingError(f"{directory} is not there; a run writes its bundle to RUN_DIR/bundle")
    manifest = verify(directory)
    if manifest.kind != KIND:
        raise BundleError(f"{directory} holds a {manifest.kind!r}, not a bundle; a bundle is RUN_DIR/bundle")
    for path in sorted(directory.rglob("*")):
        name = path.relative_to(directory).as_posix()
        if path.is_dir() or path.name.startswith(".") or name in UNLISTED_FILES or name.split("/")[0] in UNLISTED_DIRS:
            continue
        if name not in manifest.files:
            raise ArtifactDamagedError(f"{path} is not named in the manifest, so nothing vouches for it; remove it")
    return manifest


def _recipe(config: PipelineConfig) -> str:
    """The config without what says where and on how many machines it ran: those do not belong to the release."""
    placeless: Config = config.model_copy(update={"run_dir": None, "compute": ComputeConfig()})
    return dump(placeless)


def _card(config: PipelineConfig, out: Path) -> str:
    """The model card: data, metrics, use."""
    metrics = read_json(out / "metrics.json")["models"]
    names = [key for key in metrics[0] if key[:2] in ("R@", "N@") and not key.endswith("_ci")]
    rows = ["| model | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    rows += [f"| {row['model']} | " + " | ".join(f"{row[name]:.4f}" for name in names) + " |" for row in metrics]
    report = read_json(out / "codebook" / "report.json")
    return "\n".join(
        [
            f"# HyMiRec bundle: {config.name}",
            "",
            f"Data: `{config.data.kind}`, {metrics[0]['users']:,} users, {metrics[0]['items']:,} items; split "
            f"{config.data.split}. Test metrics, full ranking:",
            "",
            *rows,
            "",
            f"Items are kept in {report['bytes_per_item']} bytes instead of {report['raw_bytes']}.",
            "",
            "    from hymirec import HyMiRec",
            '    HyMiRec.from_pretrained("THIS DIRECTORY").recommend(history=[...], k=20)',
            "",
        ]
    )

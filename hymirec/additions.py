"""New items in a release without training: texts -> embeddings -> codes -> item vectors -> index -> a new bundle.

    addition = Addition.plan(config, "new-items.parquet")
    addition.cut(); <encode and code the parts>; addition.write()

Encoder and codebook are those of the run, frozen. Old items keep index, codes and vector to the bit, new ones follow
them; the bundle that it starts from stays as it is. Everything in the new bundle is a function of that bundle and of
what the new items say, so a kill at any moment and the same command again end in the same bytes.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import torch

import hymirec
from hymirec.artifacts import Manifest, Step, hash_json, read_json, read_manifest, verify, write_json
from hymirec.bundle import CODES_DIR, INDEX_FILE, INDEX_INFO, KIND, index_report, verify_bundle
from hymirec.catalog.additions import NewItems, append_parts, find_new_items
from hymirec.catalog.parts import pending_parts
from hymirec.catalog.prepared import Catalog
from hymirec.catalog.schemas import ITEMS_DIR, STATS_FILE
from hymirec.catalog.vectors import read_vectors
from hymirec.codebook import ItemCodes, open_codebook
from hymirec.codebook.table import TABLE_FILE
from hymirec.config import PipelineConfig
from hymirec.encoder import ContentEncoder
from hymirec.encoder.encode import encode_part
from hymirec.errors import BundleError
from hymirec.recommender.extend import extend_recommender
from hymirec.retrieval import ItemIndex, grow_index

ADDITIONS_FILE = "additions.json"
BUNDLES_DIR = "bundles"
WORK = "work"


@dataclass(frozen=True)
class Addition:
    """New items on their way from a table into a bundle; parts in between lie in `out/work` until it is written."""

    config: PipelineConfig
    base: Path
    base_id: str
    items: NewItems
    step: Step

    @classmethod
    def plan(cls, config: PipelineConfig, items: str, base: Path | None = None, out: Path | None = None) -> Addition:
        """What is to be done. `base` is the run's bundle, or one that items were added to; `out` names itself.

        Raises ArtifactError when run or bundle is not whole, BundleError when they do not belong together or `out` is
        taken, DataError for items that cannot be used.
        """
        run_dir = config.directory
        base = base or run_dir / "bundle"
        manifest = verify_bundle(base)
        encoder, served = verify(run_dir / "encoder").id, read_json(base / "encoder.json")["id"]
        if encoder != served:
            raise BundleError(
                f"{base} was made with encoder {served[:12]}, {run_dir / 'encoder'} is {encoder[:12]}; give the run "
                "that the bundle comes from"
            )
        columns = read_json(run_dir / "data" / STATS_FILE)["text_columns"]
        found = find_new_items(items, Catalog.open(base), columns)
        inputs = {"base": manifest.id, "items": found.fingerprint, "version": hymirec.__version__}
        place = out or run_dir / BUNDLES_DIR / hash_json(inputs)[:12]
        step = Step(place.parent, place.name, inputs, KIND)
        if place.resolve() == base.resolve():
            raise BundleError(f"{base} is what items are added to, and a bundle does not change; give another --out")
        if step.taken():
            raise BundleError(f"{place} holds something else; give another --out, or remove it")
        return cls(config, base, manifest.id, found, step)

    @property
    def out(self) -> Path:
        """Directory of the new bundle."""
        return self.step.dir

    @property
    def encoder_dir(self) -> Path:
        """The run's encoder."""
        return self.config.directory / "encoder"

    @property
    def codebook_dir(self) -> Path:
        """The bundle's codebook."""
        return self.base / "codebook"

    @property
    def items_dir(self) -> Path:
        """Parts of the new items, indices from 0."""
        return self.out / WORK / ITEMS_DIR

    @property
    def embeddings_dir(self) -> Path:
        """Their embeddings, part by part."""
        return self.out / WORK / "embeddings"

    @property
    def codes_dir(self) -> Path:
        """Their codes, part by part."""
        return self.out / WORK / CODES_DIR

    def cut(self) -> None:
        """Write the parts of `items_dir`; goes on with the embeddings and codes of a run that was cut off."""
        self.step.begin()
        self.items.write(self.items_dir, self.config.data.part_rows)

    def write(self) -> Manifest:
        """Write the bundle from what lies in `work`, its manifest last."""
        out = self.out
        for path in out.iterdir():
            if path.name != WORK:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        _copy(self.base, out)
        codebook = open_codebook(self.codebook_dir)
        old, new = codebook.open_items(self.base / CODES_DIR), codebook.open_items(self.codes_dir)
        append_parts(self.items_dir, out / ITEMS_DIR, len(old))
        if isinstance(old, ItemCodes) and isinstance(new, ItemCodes):
            old.followed_by(new).save(out / CODES_DIR)
        else:
            append_parts(self.codes_dir, out / CODES_DIR, len(old))
        content_MD = read_vectors(self.embeddings_dir)
        vectors_MW = extend_recommender(self.base / "recommender", out / "recommender", codebook, old, new, content_MD)
        before = index_report(read_manifest(self.base))
        index, report = grow_index(ItemIndex.open(self.base / INDEX_FILE), before, vectors_MW, self.config.retrieval)
        index.save(out / INDEX_FILE)
        write_json(out / ADDITIONS_FILE, {"base": self.base_id, "items": len(index), "added": len(new)})
        with (out / "README.md").open("a", encoding="utf-8") as f:
            f.write(f"\n{len(new):,} items were added to bundle {self.base_id[:12]} without training.\n")
            if report.kind != "flat" and report.trained_items == len(index):
                f.write("The index was built again.\n")
        manifest = self.step.commit({INDEX_INFO: report.info()})
        self.clean()
        return manifest

    def outcome(self) -> str:
        """One line for who asked for it."""
        if not len(self.items):
            return f"nothing to do: {self.base} knows all {self.items.known:,} items"
        return (
            f"{len(self.items):,} new items, {self.items.known:,} known before; bundle "
            f"{read_manifest(self.out).id[:12]}: {self.out}"
        )

    def clean(self) -> None:
        """Remove what a finished bundle no longer needs."""
        shutil.rmtree(self.out / WORK, ignore_errors=True)


def add_items(config: PipelineConfig, items: str, base: Path | None = None, out: Path | None = None) -> Addition:
    """Everything in this process, for a few thousand items; ray_jobs/add_items.py does the same on a cluster."""
    addition = Addition.plan(config, items, base, out)
    if not len(addition.items) or addition.step.done():
        return addition
    addition.cut()
    compute = config.compute
    encoder = ContentEncoder.from_pretrained(
        addition.encoder_dir, dtype=torch.bfloat16 if compute.bf16 else torch.float32
    ).to("cuda" if compute.use_gpu else "cpu")
    for part in pending_parts(addition.items_dir, addition.embeddings_dir):
        encode_part(encoder, part, addition.embeddings_dir / part.name, config.encoder.encode_batch)
    codebook = open_codebook(addition.codebook_dir)
    for part in pending_parts(addition.embeddings_dir, addition.codes_dir):
        codebook.code_part(part, addition.codes_dir / part.name)
    addition.write()
    return addition


def _copy(base: Path, out: Path) -> None:
    """All files of a bundle but those that grow."""
    for name in verify_bundle(base).files:
        if name not in (INDEX_FILE, f"{CODES_DIR}/{TABLE_FILE}") and (
            not name.startswith("recommender/") or name == "recommender/README.md"
        ):
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(base / name, out / name)

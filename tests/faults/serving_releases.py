"""Releases that differ in every answer, what each of them answers, and damaged ones."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from hymirec import HyMiRec
from hymirec.artifacts import MANIFEST, read_json, read_manifest, write_json, write_manifest
from hymirec.catalog.parts import part_paths, read_table, write_table
from hymirec.codebook import open_codebook
from hymirec.config import RetrievalConfig
from hymirec.load import Checked, wrong
from hymirec.recommender.hybrid import HybridModel
from hymirec.retrieval import ItemIndex

# Batches and caches round scores differently; two releases differ by far more.
TOLERANCE = 2e-4
NOISE = 0.3
Histories = dict[str, list[tuple[str, int]]]


def release(bundle: Path, target: Path, number: int) -> Path:
    """A bundle with other weights, other item vectors, and its number in every title."""
    shutil.copytree(bundle, target)
    generator = torch.Generator().manual_seed(number)
    for path in sorted((target / "recommender").glob("*.safetensors")):
        if not path.name.startswith(("model", "item_vectors")):
            continue
        with safe_open(path, "pt") as f:
            about, tensors = f.metadata(), {name: f.get_tensor(name) for name in f.keys()}  # noqa: SIM118
        for name, value in tensors.items():
            if value.is_floating_point():
                noise = torch.randn(value.shape, generator=generator).to(value.dtype)
                tensors[name] = value * (1 + NOISE * noise)
        save_file(tensors, path, about)
    for part in part_paths(target / "items"):
        table = read_table(part)
        titles = [f"[{number}] {title}" for title in table["title"].to_pylist()]
        place = table.column_names.index("title")
        write_table(part, table.set_column(place, table.field("title"), [titles]))
    codes = open_codebook(target / "codebook").open_items(target / "codes")
    vectors = HybridModel.open(target / "recommender", codes).item_vectors().float().cpu().numpy()
    ItemIndex.build(vectors, RetrievalConfig()).save(target / "index.faiss")
    write_manifest(target, "bundle")
    return target


class Truth:
    """What each release says of each user at a time, from the library; compares replies with it."""

    def __init__(self, releases: Sequence[Path], histories: Histories, now: int) -> None:
        self._known: dict[tuple[str, str], dict[str, tuple[float, str]]] = {}
        self.ids: list[str] = []
        for path in releases:
            model = HyMiRec.from_pretrained(path)
            self.ids.append(model.bundle_id)
            for user, history in histories.items():
                found = model.recommend(history, k=model.bundle.catalog.size, now=now)
                self._known[model.bundle_id, user] = {str(i.item_id): (i.score, i.title) for i in found.items}
        first, second = (self._known[name, next(iter(histories))] for name in self.ids[:2])
        apart = np.median([abs(first[item][0] - second[item][0]) for item in first])
        assert apart > 20 * TOLERANCE, f"releases differ by {apart} only; a mixed reply would not be seen"

    def __call__(self, asked: Checked, reply: dict[str, Any]) -> str | None:
        """See `hymirec.load.wrong`; and a full reply is what the bundle that it names answers, titles and scores."""
        if (what := wrong(asked, reply)) is not None:
            return what
        known = self._known[reply["bundle"], asked.user]
        shown = {item["item_id"]: item for item in reply["items"]}
        if not set(shown) <= set(known):
            return "mixed: items that the bundle does not recommend to this user"
        if any(item["title"] != known[name][1] for name, item in shown.items()):
            return "mixed: titles of another bundle"
        if reply["reason"] != "full":
            return None
        if any(abs(item["score"] - known[name][0]) > TOLERANCE for name, item in shown.items()):
            return "mixed: scores of another bundle"
        best = sorted((score for score, _ in known.values()), reverse=True)[asked.k - 1]
        if min(item["score"] for item in shown.values()) < best - TOLERANCE:
            return "mixed: not the best items of the bundle"
        return None


def _flip(name: str, directory: Path) -> None:
    """Another byte in the middle of a file."""
    path = directory / name
    with path.open("r+b") as f:
        f.seek(path.stat().st_size // 2)
        value = f.read(1)
        f.seek(-1, os.SEEK_CUR)
        f.write(bytes([value[0] ^ 0x5A]))


def _resealed(damage: Callable[[Path], None]) -> Callable[[Path], None]:
    """Damage that the manifest vouches for: whoever wrote the bundle was wrong already."""

    def spoil(directory: Path) -> None:
        damage(directory)
        write_manifest(directory, "bundle")

    return spoil


def _cut(name: str) -> Callable[[Path], None]:
    return lambda directory: os.truncate(directory / name, (directory / name).stat().st_size // 2)


def _fewer_vectors(directory: Path) -> None:
    vectors = np.eye(16, dtype=np.float32)
    ItemIndex.build(vectors, RetrievalConfig()).save(directory / "index.faiss")


def _not_a_number(directory: Path) -> None:
    path = directory / "recommender" / "model.safetensors"
    with safe_open(path, "pt") as f:
        about, tensors = f.metadata(), {name: f.get_tensor(name) for name in f.keys()}  # noqa: SIM118
    spoilt = {
        name: torch.full_like(value, float("nan")) if value.is_floating_point() else value
        for name, value in tensors.items()
    }
    save_file(spoilt, path, about)


def _other_kind(directory: Path) -> None:
    write_json(directory / MANIFEST, {**read_json(directory / MANIFEST), "kind": "recommender"})


def damages(bundle: Path) -> dict[str, tuple[Callable[[Path], None], str]]:
    """Ways to damage a copy of a bundle, by name, each with what the refusal must name."""
    found: dict[str, tuple[Callable[[Path], None], str]] = {}
    for name in read_manifest(bundle).files:
        found[f"a byte of {name}"] = (partial(_flip, name), name)
    weights, vectors = "recommender/model.safetensors", "recommender/item_vectors.safetensors"
    return found | {
        "manifest is no JSON": (lambda directory: os.truncate(directory / MANIFEST, 200), MANIFEST),
        "manifest is not there": (lambda directory: (directory / MANIFEST).unlink(), MANIFEST),
        "manifest of something else": (_other_kind, "'recommender', not a bundle"),
        "weights cut short": (_cut(weights), weights),
        "index is not there": (lambda directory: (directory / "index.faiss").unlink(), "index.faiss"),
        "a file too many": (lambda directory: (directory / "items" / "extra.bin").write_bytes(b"?"), "extra.bin"),
        "weights cut short, sealed": (_resealed(_cut(weights)), "model.safetensors"),
        "vectors cut short, sealed": (_resealed(_cut(vectors)), "item_vectors.safetensors"),
        "index cut short, sealed": (_resealed(_cut("index.faiss")), "index.faiss"),
        "items cut short, sealed": (_resealed(_cut("items/part-00000.parquet")), "part-00000.parquet"),
        "codes cut short, sealed": (_resealed(_cut("codes/items.codes")), "items.codes"),
        "settings cut short, sealed": (_resealed(_cut("recommender/config.json")), "config.json"),
        "index of other items, sealed": (_resealed(_fewer_vectors), "16 vectors in the index"),
        "weights are no numbers, sealed": (_resealed(_not_a_number), "no number"),
    }

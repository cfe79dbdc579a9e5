"""Artifacts on disk: atomic writes, SHA-256 manifests, and steps that are done or are rebuilt.

A directory is believed only through its `manifest.json`, which is written last (temporary file, fsync, rename). It
holds the SHA-256 of every file, the hash of what the directory was made from, and nothing that changes from run to run
(no times, no host), so that equal inputs give equal manifests.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from hymirec.errors import ArtifactDamagedError, ArtifactMissingError

MANIFEST = "manifest.json"
# Beside the artifacts but no part of them: logs, wall-clock times, checkpoints of a run in progress.
UNLISTED_DIRS = frozenset({"logs", "checkpoints", "tensorboard", "work"})
TIMING = "timing.json"
UNLISTED_FILES = frozenset({MANIFEST, TIMING})


def hash_json(value: Any) -> str:
    """Return the SHA-256 (hex) of a JSON value in canonical form (sorted keys, no spaces)."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def hash_file(path: Path) -> str:
    """Return the SHA-256 (hex) of a file's bytes."""
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write that takes the place of `path` when the block ends without an error.

    A reader, or a machine that loses its power, sees the old bytes or the new ones, never a part: temporary file,
    fsync, rename, fsync of the directory.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    fd, tmp = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(fd, "wb") as f:
            yield f
            f.flush()
            os.fsync(f.fileno())
        Path(tmp).chmod(0o644)
        Path(tmp).replace(path)
    except BaseException:
        Path(tmp).unlink(missing_ok=True)
        raise
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file so that a reader sees the old bytes or the new ones, never a part."""
    with replacing(path) as f:
        f.write(data)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically, indented, keys in the given order."""
    write_atomic(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises ArtifactMissingError when it is not there and ArtifactDamagedError when it is not JSON.
    """
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError as e:
        raise ArtifactMissingError(f"{path} is not there; run the step that writes it again") from e
    except (json.JSONDecodeError, UnicodeDecodeError) as e:
        raise ArtifactDamagedError(f"{path} is not valid JSON ({e}); delete it and run the step again") from e


@dataclass(frozen=True)
class Manifest:
    """What a directory consists of. `id` is the hash of all of it."""

    kind: str
    inputs: str
    files: dict[str, str]
    info: dict[str, Any]

    @property
    def id(self) -> str:
        """SHA-256 of the manifest's content; two directories with one id hold the same bytes."""
        return hash_json(self.as_dict())

    def as_dict(self) -> dict[str, Any]:
        """The manifest as it is written."""
        return {"kind": self.kind, "inputs": self.inputs, "info": self.info, "files": self.files}


def list_files(directory: Path) -> dict[str, str]:
    """Hash every file below a directory that is part of the artifact: {relative path: SHA-256}, sorted."""
    found: dict[str, str] = {}
    for path in sorted(directory.rglob("*")):
        relative = path.relative_to(directory)
        unlisted = relative.parts[0] in UNLISTED_DIRS or relative.as_posix() in UNLISTED_FILES
        if path.is_file() and not unlisted and not path.name.startswith("."):
            found[relative.as_posix()] = hash_file(path)
    return found


def write_manifest(directory: Path, kind: str, inputs: str = "", info: Mapping[str, Any] | None = None) -> Manifest:
    """Hash every file of a directory and write its manifest, last and atomically."""
    manifest = Manifest(kind, inputs, list_files(directory), dict(info or {}))
    write_json(directory / MANIFEST, manifest.as_dict())
    return manifest


def read_manifest(directory: Path) -> Manifest:
    """Read a manifest without checking the files it names.

    Raises ArtifactMissingError or ArtifactDamagedError.
    """
    value = read_json(directory / MANIFEST)
    try:
        return Manifest(value["kind"], value["inputs"], dict(value["files"]), dict(value["info"]))
    except (KeyError, TypeError, ValueError) as e:
        raise ArtifactDamagedError(f"{directory / MANIFEST} is not a manifest ({e!r})") from e


def verify(directory: Path) -> Manifest:
    """Read a manifest and check every file it names, before anything is parsed.

    Raises ArtifactMissingError or ArtifactDamagedError with the name of the file.
    """
    manifest = read_manifest(directory)
    for name, expected in manifest.files.items():
        path = directory / name
        if not path.is_file():
            raise ArtifactMissingError(f"{path} is named in the manifest but is not there; copy the directory again")
        actual = hash_file(path)
        if actual != expected:
            raise ArtifactDamagedError(
                f"{path} is damaged: its SHA-256 is {actual[:12]}..., the manifest says {expected[:12]}...; "
                "copy it again from where it was made, or delete the directory and run the step again"
            )
    return manifest


class Step:
    """One step of a run: a directory that is done when its manifest holds the hash of these inputs.

    `inputs` is everything the step's result depends on: its part of the config and the manifest ids of the steps
    before it. The manifest's kind is `kind`, or else the name.
    """

    def __init__(self, run_dir: Path, name: str, inputs: Mapping[str, Any], kind: str | None = None) -> None:
        self.name = name
        self.kind = kind or name
        self.dir = run_dir / name
        self.inputs = hash_json(dict(inputs))

    def done(self) -> Manifest | None:
        """The manifest if the step is done for these inputs and its files are whole, else None."""
        try:
            manifest = read_manifest(self.dir)
            if manifest.inputs != self.inputs or manifest.kind != self.kind:
                return None
            return verify(self.dir)
        except (ArtifactMissingError, ArtifactDamagedError):
            return None

    def taken(self) -> bool:
        """Whether the directory holds what is neither unfinished work for these inputs nor a result of them.

        To be asked where a user names the directory: `begin` removes what is there.
        """
        if not self.dir.exists() or not any(self.dir.iterdir()):
            return False
        marker = self.dir / "work" / "inputs"
        if not (self.dir / MANIFEST).is_file():
            return not marker.is_file()
        try:
            return read_manifest(self.dir).inputs != self.inputs
        except ArtifactDamagedError:
            return True

    def begin(self) -> Path:
        """Prepare the directory. Unfinished work for the same inputs is kept (a resume), anything else is removed.

        A finished directory that `done` refused is damaged or stale, and which file is wrong is not known: removed.
        """
        marker = self.dir / "work" / "inputs"
        resumable = marker.is_file() and marker.read_text() == self.inputs and not (self.dir / MANIFEST).exists()
        if not resumable:
            if self.dir.exists():
                shutil.rmtree(self.dir)
            write_atomic(marker, self.inputs.encode())
        return self.dir

    def adopt(self, other: Path) -> Manifest:
        """Be done with the files of `other`, a verified directory of the same inputs: hard links, or else copies.

        Raises ArtifactMissingError or ArtifactDamagedError when `other` is not such a directory.
        """
        manifest = read_manifest(other)
        if (manifest.kind, manifest.inputs) != (self.kind, self.inputs):
            raise ArtifactDamagedError(f"{other} holds no {self.name} of the same inputs; run the step instead")
        if self.dir.exists():
            shutil.rmtree(self.dir)
        told = [TIMING] if (other / TIMING).is_file() else []
        for name in [*manifest.files, *told]:
            target = self.dir / name
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(other / name, target)
            except OSError:
                shutil.copy2(other / name, target)
        write_json(self.dir / MANIFEST, manifest.as_dict())
        return manifest

    def commit(self, info: Mapping[str, Any] | None = None) -> Manifest:
        """Write the manifest; from here on the step is done."""
        return write_manifest(self.dir, self.kind, self.inputs, info)

"""What the source tables are, so that a changed file makes the pipeline run again."""

from __future__ import annotations

import hashlib
from pathlib import Path

import fsspec

from hymirec.artifacts import hash_file, hash_json
from hymirec.config import DataConfig
from hymirec.errors import DataError

# Files beyond this are known by size and modification time instead of by content.
HASHED_BYTES = 2 << 30


def source_fingerprint(config: DataConfig) -> str:
    """SHA-256 over name and content of every source file (remote files: name, size and what the store says of them).

    Raises DataError when `data.path` names nothing.
    """
    if config.path is None:
        return hash_json(config.kind)
    if "://" in config.path and not config.path.startswith("file://"):
        return _remote(config.path)
    root = Path(config.path.removeprefix("file://")).expanduser()
    files = sorted(p for p in (root.rglob("*") if root.is_dir() else root.parent.glob(root.name)) if p.is_file())
    if not files:
        raise DataError(f"data.path={config.path} names no file; give a directory of items and interactions tables")
    known = {}
    for file in files:
        stat = file.stat()
        name = file.relative_to(root).as_posix() if root.is_dir() else file.name
        known[name] = hash_file(file) if stat.st_size <= HASHED_BYTES else f"{stat.st_size}@{stat.st_mtime_ns}"
    return hash_json(known)


def _remote(url: str) -> str:
    filesystem, path = fsspec.core.url_to_fs(url)
    names = sorted(filesystem.find(path) if not filesystem.isfile(path) else [path])
    if not names:
        raise DataError(f"data.path={url} names no file; give a directory of items and interactions tables")
    digest = hashlib.sha256()
    for name in names:
        digest.update(f"{name} {filesystem.size(name)} {filesystem.ukey(name)}\n".encode())
    return digest.hexdigest()

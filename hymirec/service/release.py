"""Which bundle serves: the configured one, or the one that was swapped in since.

A swap is remembered in `active-bundle.json` beside the configured bundle, so that replicas that start later serve what
the others serve. Configuring another bundle, or writing a new one to the configured place, makes it void.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import NamedTuple

from hymirec.artifacts import read_json, read_manifest, write_json
from hymirec.errors import HyMiRecError

FILE = "active-bundle.json"
log = logging.getLogger(__name__)


class Release(NamedTuple):
    """A bundle that was swapped in."""

    path: str
    id: str


def swapped_in(configured: str) -> Release | None:
    """What was swapped in since `configured` was; None for nothing."""
    pointer = Path(configured).parent / FILE
    if not pointer.is_file():
        return None
    try:
        value = read_json(pointer)
        release, instead_of = Release(str(value["path"]), str(value["id"])), value["instead_of"]
        if value["configured"] != configured:
            return None
    except (HyMiRecError, KeyError, TypeError) as e:
        log.warning("%s is ignored: %s", pointer, e)
        return None
    found = _id(configured)
    return release if found in (None, instead_of) else None


def remember(configured: str, release: Release) -> None:
    """Make it what serves from now on, in every replica and after every restart."""
    pointer = Path(configured).parent / FILE
    value = {"configured": configured, "instead_of": _id(configured), "path": release.path, "id": release.id}
    write_json(pointer, value)


def _id(path: str) -> str | None:
    """Id of the bundle at a place; None when there is none any more."""
    try:
        return read_manifest(Path(path)).id
    except HyMiRecError:
        return None

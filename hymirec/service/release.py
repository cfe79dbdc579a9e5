"""Which bundle serves: the configured one, or the one that was swapped in since.

A swap is remembered in `active-bundle.json` beside the configured bundle, so that replicas that start later serve what
the others serve. Configuring another bundle makes it void.
"""

from __future__ import annotations

import logging
from pathlib import Path

from hymirec.artifacts import read_json, write_json
from hymirec.errors import HyMiRecError
from hymirec.inference import HyMiRec

FILE = "active-bundle.json"
log = logging.getLogger(__name__)


def active_path(configured: str) -> str:
    """Path of the bundle that serves."""
    pointer = Path(configured).parent / FILE
    if pointer.is_file():
        try:
            value = read_json(pointer)
            if value["configured"] == configured:
                return str(value["path"])
        except (HyMiRecError, KeyError, TypeError) as e:
            log.warning("%s is ignored: %s", pointer, e)
    return configured


def remember(configured: str, path: str) -> None:
    """Make `path` what serves from now on."""
    write_json(Path(configured).parent / FILE, {"configured": configured, "path": path})


def open_active(configured: str) -> HyMiRec:
    """Open what serves; when a swapped-in bundle is damaged by now, the configured one."""
    path = active_path(configured)
    if path != configured:
        try:
            return HyMiRec.from_pretrained(path)
        except HyMiRecError as e:
            log.error("the bundle that was swapped in cannot be opened, %s serves instead: %s", configured, e)
    return HyMiRec.from_pretrained(configured)

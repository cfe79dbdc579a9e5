"""Where a training run reports to, and where it finds its last checkpoint."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Protocol

SaveFn = Callable[[Path], None]
COMPLETE = "complete"


class Reporter(Protocol):
    """One rank's view of the run."""

    rank: int
    world: int

    def latest(self) -> AbstractContextManager[Path | None]:
        """Context manager that yields the directory of the newest whole checkpoint, or None."""
        ...

    def report(self, metrics: Mapping[str, float], save: SaveFn) -> None:
        """Record an epoch's metrics and a checkpoint. Every rank calls it equally often."""
        ...

    def keep(self, save: SaveFn) -> None:
        """Record a checkpoint within an epoch. Every rank calls it equally often."""
        ...

    def progress(self, epoch: int, step: int, steps: int, scalars: Mapping[str, float]) -> None:
        """Tell whoever watches how far this epoch is; called often, must be cheap."""
        ...


class LocalReporter:
    """One process, checkpoints in a directory, only the newest kept. Runs without Ray."""

    rank = 0
    world = 1

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.history: list[dict[str, float]] = []

    @contextmanager
    def latest(self) -> Iterator[Path | None]:
        """Yield the newest checkpoint that was written completely, or None."""
        whole = sorted(path.parent for path in self.directory.glob(f"checkpoint-*/{COMPLETE}"))
        yield whole[-1] if whole else None

    def report(self, metrics: Mapping[str, float], save: SaveFn) -> None:
        """Write the checkpoint and remember the metrics."""
        self.keep(save)
        self.history.append(dict(metrics))

    def keep(self, save: SaveFn) -> None:
        """Write the checkpoint, then its completion mark, then drop the older ones."""
        number = 1 + max((int(p.name.split("-")[1]) for p in self.directory.glob("checkpoint-*")), default=-1)
        target = self.directory / f"checkpoint-{number:06d}"
        target.mkdir(parents=True)
        save(target)
        (target / COMPLETE).touch()
        for old in sorted(self.directory.glob("checkpoint-*"))[:-1]:
            shutil.rmtree(old)

    def progress(self, epoch: int, step: int, steps: int, scalars: Mapping[str, float]) -> None:
        """Nobody watches a local run."""


class ProgressFile:
    """A small JSON file that a driver polls while a worker trains; replaced at most twice a second."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._next = 0.0

    def write(self, epoch: int, step: int, steps: int, scalars: Mapping[str, float]) -> None:
        """Replace the file's content unless it was replaced less than half a second ago."""
        now = time.monotonic()
        if now < self._next and step < steps:
            return
        self._next = now + 0.5
        self.path.parent.mkdir(parents=True, exist_ok=True)
        tmp = self.path.with_suffix(".tmp")
        tmp.write_text(json.dumps({"epoch": epoch, "step": step, "steps": steps, **scalars}))
        tmp.replace(self.path)

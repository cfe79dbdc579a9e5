"""Reporters of one worker."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from hymirec.training import LocalReporter
from hymirec.training.reporter import SaveFn


class Quiet:
    """Starts from nothing, forgets what it is told."""

    rank, world = 0, 1

    @contextmanager
    def latest(self) -> Iterator[Path | None]:
        yield None

    def report(self, metrics: Mapping[str, float], save: SaveFn) -> None:
        pass

    def keep(self, save: SaveFn) -> None:
        pass

    def progress(self, epoch: int, step: int, steps: int, scalars: Mapping[str, float]) -> None:
        pass


class Interrupted(LocalReporter):
    """Raises KeyboardInterrupt after a number of checkpoints within epochs; those at their ends do not count."""

    def __init__(self, directory: Path, after: int) -> None:
        super().__init__(directory)
        self._left = after

    def report(self, metrics: Mapping[str, float], save: SaveFn) -> None:
        super().keep(save)

    def keep(self, save: SaveFn) -> None:
        super().keep(save)
        self._left -= 1
        if not self._left:
            raise KeyboardInterrupt

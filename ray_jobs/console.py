"""What a person sees of a run: one line a step, with live progress on a terminal and plain lines elsewhere."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

OnProgress = Callable[[int, int], None]
QUIET_LOGGERS = ("ray", "ray.data", "ray.train", "ray.serve", "deepspeed", "DeepSpeed", "transformers")


class Screen:
    """Prints steps as they run."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(highlight=False)

    @contextmanager
    def step(self, number: int, total: int, title: str) -> Iterator[OnProgress]:
        """Show one running step; yields a callback `(done, total)`."""
        label = f"[{number}/{total}] {title}"
        start = time.monotonic()
        if not self.console.is_terminal:
            self.console.print(f"{label} ...", markup=False)
            yield lambda done, total: None
        else:
            columns = (
                SpinnerColumn(),
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=30),
                TextColumn("{task.percentage:>3.0f}%"),
                TimeElapsedColumn(),
            )
            with Progress(*columns, console=self.console, transient=True) as progress:
                task = progress.add_task(label, total=None)
                yield lambda done, total: progress.update(task, completed=done, total=max(total, 1))
        self.console.print(f"{label}: done in {time.monotonic() - start:.0f} s", markup=False)

    def skipped(self, number: int, total: int, title: str) -> None:
        """Say that a step was done before."""
        self.console.print(f"[{number}/{total}] {title}: done before, skipped", markup=False)


def log_to_file(path: Path) -> None:
    """Send Python's and Ray's log lines to a file, so that nothing scrolls that a newcomer would not read."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    for name in QUIET_LOGGERS:
        logger = logging.getLogger(name)
        logger.handlers[:] = []
        logger.propagate = True
    logging.captureWarnings(True)
    warnings.simplefilter("default")

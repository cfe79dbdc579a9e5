"""What a person sees of a run: one line a step, with live progress on a terminal and plain lines elsewhere."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from hymirec.errors import HyMiRecError

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


@contextmanager
def spoken_errors(screen: Screen, logs: Path) -> Iterator[None]:
    """End the process with one readable line for any error; what a developer wants is in the log file."""
    try:
        yield
    except HyMiRecError as e:
        _log_failure()
        screen.console.print(f"error: {e}", style="red", markup=False, soft_wrap=True)
        for line in getattr(e, "problems", []):
            screen.console.print(f"  {line}", markup=False, soft_wrap=True)
        raise typer.Exit(2) from e
    except (KeyboardInterrupt, typer.Exit):
        raise
    except Exception as e:
        _log_failure()
        last = (str(e).strip().splitlines() or [""])[-1]
        text = f"error: {type(e).__name__}: {last}. This is not your fault; {logs} has the whole story"
        screen.console.print(text, style="red", markup=False, soft_wrap=True)
        raise typer.Exit(1) from e


def _log_failure() -> None:
    # Before there is a log file, a logger without handlers would print the traceback.
    if logging.getLogger().handlers:
        logging.getLogger(__name__).exception("failed")


def log_to_file(path: Path) -> None:
    """Send every log line and all of stderr to a file: nothing scrolls that a newcomer would not read.

    stderr as a whole, because Ray's C++ side and progress bars of libraries write there past every logger. What a
    person should see goes through `Screen`, to stdout.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(path)
    handler.setLevel(logging.INFO)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    for name in QUIET_LOGGERS:
        logger = logging.getLogger(name)
        logger.handlers[:] = []
        logger.propagate = True
    sys.stderr.flush()
    os.dup2(handler.stream.fileno(), sys.stderr.fileno())


def mute() -> None:
    """Send stdout where stderr already goes: for the moments in which Ray says good-bye."""
    sys.stdout.flush()
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

"""How commands speak: plain lines, and an error as one line."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import typer
from rich.console import Console

from hymirec.errors import HyMiRecError

out = Console(highlight=False, soft_wrap=True)
F = TypeVar("F", bound=Callable[..., None])


def say(line: str) -> None:
    """Print a line as it is."""
    out.print(line, markup=False)


def speaks(command: F) -> F:
    """An error of ours is one line on stderr and exit code 2, never a traceback."""

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except (HyMiRecError, OSError) as e:
            sys.stderr.write(f"error: {' '.join(str(e).split())}\n")
            raise typer.Exit(2) from e

    return run  # type: ignore[return-value]

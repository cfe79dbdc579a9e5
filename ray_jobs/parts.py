"""Part files in, part files out, on Ray Data: what the encode and the code step share."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import ray

from hymirec import errors
from hymirec.catalog.parts import part_paths, pending_parts, same_rows
from hymirec.config import ComputeConfig
from hymirec.errors import ArtifactError, HyMiRecError, ModelError
from ray_jobs.cluster import worker_environment
from ray_jobs.console import OnProgress


class _Guarded:
    """A worker whose own errors come back as a row: Ray Data keeps only the text of an exception's stack trace.

    It is made with its first part: an error while an actor starts would come back as the actor's death.
    """

    def __init__(self, worker: Callable[..., Any], arguments: dict[str, Any]) -> None:
        self._make = functools.cache(lambda: worker(**arguments))

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        try:
            row = {key: np.asarray(value).reshape(-1)[0].item() for key, value in self._make()(batch).items()}
        except HyMiRecError as e:
            row = {"error": type(e).__name__, "message": str(e)}
        return {"row": np.array([json.dumps(row)])}


def _raised(name: str, message: str) -> HyMiRecError:
    """The error that a worker met, as its own class where a message is all that it holds."""
    kind = getattr(errors, name)
    return kind(message) if issubclass(kind, (ModelError, ArtifactError)) else HyMiRecError(message)


def map_parts(
    worker: Callable[..., Any],
    arguments: dict[str, Any],
    source: Path,
    target: Path,
    compute: ComputeConfig,
    on_progress: OnProgress | None,
    done: Callable[[Path, Path], bool] = same_rows,
) -> list[dict[str, Any]]:
    """Run `worker(**arguments)` as a pool of actors over the pending parts; each call gets one part's path.

    `worker` is a class whose instances map {"part": [path]} to {"rows": [n], ...}. A part that is already there is not
    made again: that is the resume, and `done` says whether a part is whole. Returns one row of numbers for each part
    that was made; which comes first depends on scheduling. An error of this project in a worker ends the run and is
    raised here.
    """
    target.mkdir(parents=True, exist_ok=True)
    total = len(part_paths(source))
    pending = pending_parts(source, target, done)
    if not pending:
        return []
    rows: list[dict[str, Any]] = []
    made = ray.data.from_items([{"part": str(path)} for path in pending], override_num_blocks=len(pending)).map_batches(
        _Guarded,
        fn_constructor_kwargs={"worker": worker, "arguments": arguments},
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=min(compute.encode_actors, len(pending))),
        num_cpus=compute.cpus_per_actor,
        num_gpus=1 if compute.use_gpu else 0,
        runtime_env={"env_vars": worker_environment(compute)},
    )
    for answer in made.iter_rows():
        row = json.loads(answer["row"])
        if "error" in row:
            raise _raised(row["error"], row["message"])
        rows.append(row)
        if on_progress is not None:
            on_progress(total - len(pending) + len(rows), total)
    return rows

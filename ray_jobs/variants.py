"""Many runs of one pipeline that differ in a few keys: what they have in common is made once.

Each run is brought up to date step by step. A step that several runs need with the same inputs is run for one of them,
as a Ray task, and the others take over its files; so are steps that an earlier process finished.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import os
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path

import ray
from ray.exceptions import RayTaskError

from hymirec.artifacts import MANIFEST, Manifest, Step, read_manifest, verify
from hymirec.config import ComputeConfig, PipelineConfig, load
from hymirec.errors import ArtifactError, HyMiRecError
from ray_jobs.cluster import home
from ray_jobs.console import log_to_file
from ray_jobs.pipeline import StepSpec, Work, make_step, run_step, steps_until, write_config

Tell = Callable[[str], None]


def load_base(source: Path, base: str, assignments: Iterable[str]) -> PipelineConfig:
    """The pipeline config that the YAML `source` names relative to itself, with overrides."""
    return load(PipelineConfig, source.parent / base, assignments)


def in_home(path: str | Path) -> Path:
    """An absolute path; a relative one lies where relative run directories do."""
    return (home() / Path(path).expanduser()).absolute()


def runs_at_once(compute: ComputeConfig) -> int:
    """How many runs the cluster carries: each takes its workers, and a CPU for what feeds them."""
    have = ray.cluster_resources()
    if compute.use_gpu:
        return max(1, int(have.get("GPU", 0) // compute.workers))
    return max(1, int(have.get("CPU", 0) // (compute.workers * compute.cpus_per_worker + 1)))


def cause(error: BaseException) -> str:
    """One line that says why a run failed."""
    inner = error.cause if isinstance(error, RayTaskError) else error
    text = (str(inner).strip().splitlines() or [""])[-1]
    return text if isinstance(inner, HyMiRecError) else f"{type(inner).__name__}: {text}"


class Gate:
    """Lets `most` in at a time; of those who wait the furthest step comes first, so that runs end one after another.

    Of one event loop.
    """

    def __init__(self, most: int) -> None:
        self._free = most
        self._waiting: list[tuple[int, int, asyncio.Future[None]]] = []
        self._came = itertools.count()

    @asynccontextmanager
    async def at(self, step: int) -> AsyncIterator[None]:
        """Wait, and be inside; `step` counts from the first one of a run."""
        if self._free:
            self._free -= 1
        else:
            turn = asyncio.get_running_loop().create_future()
            heapq.heappush(self._waiting, (-step, next(self._came), turn))
            try:
                await turn
            except asyncio.CancelledError:
                if turn.done() and not turn.cancelled():
                    self._leave()
                raise
        try:
            yield
        finally:
            self._leave()

    def _leave(self) -> None:
        while self._waiting:
            turn = heapq.heappop(self._waiting)[2]
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1


class StepPool:
    """Runs steps for many runs, `at_once` at a time. One event loop; `bring` may be called for all runs together.

    Runs lie under `root`; steps are also taken over from the run directories `reuse`. `tell` hears of each step that is
    run.
    """

    def __init__(self, root: Path, reuse: Iterable[Path], at_once: int, tell: Tell) -> None:
        self._gate = Gate(at_once)
        self._tell = tell
        self._making: dict[tuple[str, str], asyncio.Task[Path]] = {}
        self._finished: dict[tuple[str, str], list[Path]] = defaultdict(list)
        for run_dir in [*sorted(root.glob("*")), *reuse]:
            for manifest in sorted(run_dir.glob(f"*/{MANIFEST}")):
                self._note(manifest.parent)

    def _note(self, directory: Path) -> None:
        try:
            manifest = read_manifest(directory)
        except ArtifactError:
            return
        self._finished[manifest.kind, manifest.inputs].append(directory)

    async def bring(self, config: PipelineConfig, last: str) -> dict[str, Manifest]:
        """Bring the config's run up to date to the step `last`; returns the manifests.

        Raises what the step raised, for every run that needs it.
        """
        write_config(config)
        manifests: dict[str, Manifest] = {}
        for number, spec in enumerate(steps_until(config, last)):
            step = make_step(spec, config, manifests)
            key = (spec.name, step.inputs)
            if key not in self._making:
                self._making[key] = asyncio.ensure_future(self._make(number, spec, config, step))
            made = await self._making[key]
            manifests[spec.name] = await asyncio.to_thread(_taken_over, step, made)
        return manifests

    async def _make(self, number: int, spec: StepSpec, config: PipelineConfig, step: Step) -> Path:
        """A whole directory of the step: found, or made in this run's own."""
        async with self._gate.at(number):
            found = await asyncio.to_thread(_first_whole, [step.dir, *self._finished[spec.name, step.inputs]], step)
            if found is None:
                self._tell(f"{config.directory.name}: {spec.title}")
                task = _run.options(max_retries=config.compute.max_failures)
                await task.remote(spec.name, config, step, str(Path.cwd()))
        return found or step.dir


def _first_whole(directories: Iterable[Path], step: Step) -> Path | None:
    """The first of the directories that holds this step, undamaged."""
    for directory in directories:
        try:
            manifest = read_manifest(directory)
            if (manifest.kind, manifest.inputs) == (step.name, step.inputs):
                verify(directory)
                return directory
        except ArtifactError:
            continue
    return None


def _taken_over(step: Step, made: Path) -> Manifest:
    """The step's manifest; what another run made becomes its own, unless it had it before."""
    return read_manifest(made) if made == step.dir else step.done() or step.adopt(made)


# It only waits: Ray Train and Ray Data ask for CPUs and GPUs themselves, as in a pipeline's own process. If it held
# some, as many runs as there are CPUs would wait for each other for ever.
@ray.remote(num_cpus=0)
def _run(name: str, config: PipelineConfig, step: Step, cwd: str) -> None:
    """Run one step. Errors of this project come back as HyMiRecError: not all of their classes survive a pickle."""
    if Path(cwd).is_dir():
        os.chdir(cwd)
    log_to_file(config.directory / "logs" / "pipeline.log")
    spec = steps_until(config, name)[-1]
    try:
        run_step(spec, Work(config, config.directory, step, lambda done, total: None))
    except HyMiRecError as e:
        raise HyMiRecError(f"{spec.title}: {e}") from None

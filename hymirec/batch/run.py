"""A batch of recommendations as one artifact: planned, cut into parts, answered part by part, and signed last.

    batch = Batch.plan(bundle, histories, out, BatchOptions(k=100))
    batch.cut(); <answer the parts of batch.requests_dir into batch.out>; batch.commit()

A part is answered or not: what a kill leaves is used again, and the bytes are those of a run that nobody killed.
"""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import hymirec
from hymirec.artifacts import Manifest, Step, hash_file, read_manifest
from hymirec.batch.histories import cut_histories, history_files
from hymirec.batch.recommend import BatchOptions, answered, recommend_part
from hymirec.bundle import verify_bundle
from hymirec.catalog.parts import part_paths, part_rows, pending_parts
from hymirec.catalog.schemas import SEQUENCES_FILE
from hymirec.errors import ArtifactError
from hymirec.inference import HyMiRec

KIND = "recommendations"
PART_USERS = 10_000


@dataclass(frozen=True)
class Batch:
    """Everyone's recommendations on their way; histories in parts lie in `out/work` until all are answered."""

    bundle: Path
    bundle_id: str
    histories: Path
    options: BatchOptions
    part_users: int
    step: Step

    @classmethod
    def plan(
        cls, bundle: Path, histories: Path, out: Path, options: BatchOptions, part_users: int = PART_USERS
    ) -> Batch:
        """What is to be done: see `cut_histories` for what histories may be.

        Raises ArtifactError for a bundle that is not whole or an `out` that holds something else, DataError for
        histories of no known form.
        """
        manifest = verify_bundle(bundle)
        inputs = {
            "bundle": manifest.id,
            "histories": _fingerprint(histories),
            "options": asdict(options),
            "part_users": part_users,
            "version": hymirec.__version__,
        }
        step = Step(out.parent, out.name, inputs, KIND)
        if step.taken():
            raise ArtifactError(
                f"{out} holds something else, recommendations of other inputs perhaps; give another --out"
            )
        return cls(bundle, manifest.id, histories, options, part_users, step)

    @property
    def out(self) -> Path:
        """Directory of the answers, `part-*.parquet`."""
        return self.step.dir

    @property
    def requests_dir(self) -> Path:
        """Parts of histories, one for each part of answers."""
        return self.out / "work" / "requests"

    def cut(self) -> BatchOptions:
        """Write the parts of histories; returns the options with the time that they are asked for.

        Without a time it is the second after the newest event of all.
        """
        self.step.begin()
        newest = cut_histories(self.histories, self.requests_dir, self.part_users)
        return self.options.at(newest + 1)

    def commit(self) -> Manifest:
        """Sign the answers."""
        users = sum(part_rows(path) for path in part_paths(self.requests_dir))
        manifest = self.step.commit({"users": users, "k": self.options.k, "bundle": self.bundle_id})
        shutil.rmtree(self.out / "work", ignore_errors=True)
        return manifest

    def outcome(self) -> str:
        """One line for who asked for it."""
        info = read_manifest(self.out).info
        return f"the {info['k']} best items of {info['users']:,} users, bundle {info['bundle'][:12]}: {self.out}"


def recommend_all(batch: Batch) -> Manifest:
    """Everything in this process; ray_jobs/recommend_all.py does the same on a cluster."""
    done = batch.step.done()
    if done is not None:
        return done
    options, model = batch.cut(), HyMiRec.for_batches(batch.bundle)
    for part in pending_parts(batch.requests_dir, batch.out, answered):
        recommend_part(model, part, batch.out / part.name, options)
    return batch.commit()


def _fingerprint(histories: Path) -> str | dict[str, str]:
    """What identifies the histories: a run's data by its manifest, files by their bytes."""
    if (histories / SEQUENCES_FILE).is_file():
        return read_manifest(histories).id
    return {path.name: hash_file(path) for path in history_files(histories)}

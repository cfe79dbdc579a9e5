"""Recommendations for everyone on a real Ray: the bytes that one process writes, also when two parts were there."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_run import build_tiny_run, tiny_config

from hymirec.artifacts import read_manifest
from hymirec.batch import Batch, BatchOptions
from hymirec.batch import recommend_all as recommend_alone
from hymirec.errors import ArtifactDamagedError
from ray_jobs import recommend_all as job
from ray_jobs.console import Screen

pytestmark = [
    pytest.mark.ray,
    pytest.mark.timeout(1800),
    pytest.mark.usefixtures("ray_cluster"),
    # Ray warns about its own settings whenever its data context is made.
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray"),
]


def test_the_job_writes_what_one_process_writes_and_goes_on_after_a_kill(tmp_path: Path) -> None:
    run_dir = build_tiny_run(tmp_path / "run")
    compute = tiny_config().compute

    def plan(name: str) -> Batch:
        return Batch.plan(run_dir / "bundle", run_dir / "data", tmp_path / name, BatchOptions(5), part_users=20)

    recommend_alone(plan("alone"))
    batch = plan("out")
    batch.cut()
    kept = tmp_path / "alone" / "part-00001.parquet"
    (batch.out / kept.name).write_bytes(kept.read_bytes())
    seen = []
    options = batch.cut()
    job.answer(batch, options, compute, lambda done, total: seen.append((done, total)))
    assert seen == [(2, 3), (3, 3)]
    job.recommend_all(batch, compute, Screen())
    assert read_manifest(tmp_path / "out") == read_manifest(tmp_path / "alone")
    # What fails in a worker has its name.
    broken = plan("broken")
    options = broken.cut()
    (run_dir / "bundle" / "config.yaml").write_text("damaged")
    with pytest.raises(ArtifactDamagedError, match=r"config\.yaml is damaged"):
        job.answer(broken, options, compute)

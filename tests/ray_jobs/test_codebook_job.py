"""The codebook through real Ray Train: the same bytes for one worker that reads by itself, and for two that Ray Data
feeds and of which one is killed."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from codebook_workers import clustered

from hymirec.catalog.parts import part_name
from hymirec.catalog.vectors import write_vectors
from hymirec.codebook import ItemCodes, refresh_directory, report_directory
from hymirec.config import CodebookConfig, ComputeConfig, PipelineConfig
from ray_jobs.codebook import codebook_step, codes_step, refresh_step

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]
ROWS, PART_ROWS = 8000, 3000
FILES = ("config.json", "codebook.safetensors", "report.json", "README.md")


def make_config(workers: int) -> PipelineConfig:
    # Enough passes for a kill to fall among them.
    codebook = CodebookConfig(layers=2, centroids=256, iterations=30, slices=20)
    return PipelineConfig(codebook=codebook, compute=ComputeConfig(workers=workers, cpus_per_worker=1))


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("run")
    rows = clustered(ROWS, 64)
    for number, start in enumerate(range(0, ROWS, PART_ROWS)):
        index = np.arange(start, min(start + PART_ROWS, ROWS), dtype=np.int32)
        write_vectors(run / "embeddings" / part_name(number), index, rows[index])
    codebook_step(make_config(1), run, run / "codebook", "1" * 64)
    return run


def kill_a_worker(out: Path, killed: list[int]) -> None:
    """Wait for a checkpoint, then SIGKILL one worker of the group."""
    deadline = time.monotonic() + 480
    while time.monotonic() < deadline and not list((out / "checkpoints").glob("*/*/fit.json")):
        time.sleep(0.02)
    for process in psutil.Process().children(recursive=True):
        if "TrainWorker" in " ".join(process.cmdline()):
            killed.append(process.pid)
            os.kill(process.pid, signal.SIGKILL)
            return


def test_two_streamed_workers_of_which_one_is_killed_write_the_bytes_of_one(run_dir: Path, tmp_path: Path) -> None:
    killed: list[int] = []
    seen: list[tuple[int, int]] = []
    killer = threading.Thread(target=kill_a_worker, args=(tmp_path, killed))
    killer.start()
    codebook_step(
        make_config(2),
        run_dir,
        tmp_path,
        "2" * 64,
        lambda done, total: seen.append((done, total)),
        checkpoint_seconds=0.3,
        stream_bytes=0,
    )
    killer.join()
    assert len(killed) == 1
    assert seen[-1][1] == 60
    for name in FILES:
        assert (tmp_path / name).read_bytes() == (run_dir / "codebook" / name).read_bytes()
    assert not (tmp_path / "checkpoints").exists()


def test_items_are_coded_part_by_part_and_only_missing_parts_again(run_dir: Path) -> None:
    out = run_dir / "codes"
    codes_step(make_config(1), run_dir, out)
    first = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in out.iterdir()}
    assert sorted(first) == [part_name(number) for number in range(3)]
    assert len(ItemCodes.open(out)) == ROWS
    (out / part_name(1)).unlink()
    codes_step(make_config(1), run_dir, out)
    again = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in out.iterdir()}
    assert {name: data for name, (data, _) in again.items()} == {name: data for name, (data, _) in first.items()}
    assert [name for name in first if first[name][1] != again[name][1]] == [part_name(1)]
    assert report_directory(run_dir)["rows"] == ROWS


def test_a_refresh_on_workers_writes_the_bytes_of_a_refresh_on_one_machine(run_dir: Path, tmp_path: Path) -> None:
    last = run_dir / "codebook"
    report = refresh_step(make_config(2), run_dir, last, tmp_path / "ray", "3" * 64, passes=2)
    assert refresh_directory(last, run_dir / "embeddings", tmp_path / "here", passes=2) == report
    for name in ("config.json", "codebook.safetensors", "drift.json", "drift.md"):
        assert (tmp_path / "ray" / name).read_bytes() == (tmp_path / "here" / name).read_bytes()

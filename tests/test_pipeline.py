"""The whole pipeline: submitted as a job, served from its bundle, and killed in every step."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from head import ROOT, RayHead, free_port, plain_environment

from hymirec import HyMiRec
from hymirec.artifacts import MANIFEST, read_manifest, verify
from hymirec.catalog.prepared import Catalog, Sequences
from ray_jobs.pipeline import STEPS

pytestmark = [pytest.mark.ray, pytest.mark.timeout(2400)]
NAMES = [spec.name for spec in STEPS]
DEMO = "ray_jobs/configs/demo.yaml"
# The demo's config, made small: the same code paths in a tenth of the time.
SMALL = [
    "data.min_user_interactions=120",
    "encoder.hidden_size=32",
    "encoder.layers=1",
    "encoder.heads=2",
    "encoder.vocab_size=600",
    "encoder.optim={epochs: 2, batch_size: 32, lr: 1.0e-3}",
    "codebook={layers: 2, centroids: 32, iterations: 4}",
    "recommender.optim={epochs: 2, batch_size: 64, lr: 2.0e-3}",
    "recommender.llm.recent=20",
    "evaluation.bootstrap=100",
]


def command(run_dir: Path, *extra: str) -> list[str]:
    sets = [part for value in (*SMALL, f"run_dir={run_dir}", *extra) for part in ("--set", value)]
    return ["python", "ray_jobs/train.py", "--config", DEMO, *sets]


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayHead]:
    head = RayHead(tmp_path_factory.mktemp("head") / "ray.log")
    yield head
    head.stop()


@pytest.fixture(scope="module")
def submitted_run(head: RayHead, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("submitted") / "run"
    result = head.run("ray", "job", "submit", "--working-dir", ".", "--", *command(run_dir))
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-2000:]
    return run_dir


def test_a_submitted_job_leaves_every_step_whole(submitted_run: Path) -> None:
    for name in NAMES:
        assert verify(submitted_run / name).kind == name
    metrics = json.loads((submitted_run / "evaluation" / "metrics.json").read_text())
    assert {"R@10", "N@10", "R@200", "N@200"} <= set(metrics["models"][0])


def test_a_job_that_fails_says_why_and_exits_non_zero(head: RayHead, tmp_path: Path) -> None:
    result = head.run("ray", "job", "submit", "--working-dir", ".", "--", *command(tmp_path, "data.kindd=x"))
    assert result.returncode == 1
    assert "data.kindd: unknown key" in result.stdout


def test_the_bundle_of_a_job_is_served_by_serve_deploy(head: RayHead, submitted_run: Path, tmp_path: Path) -> None:
    port = free_port()
    deploy = yaml.safe_load((ROOT / "serve_apps/configs/recommend.yaml").read_text())
    deploy["http_options"] = {"host": "127.0.0.1", "port": port}
    deploy["applications"][0]["args"] |= {
        "bundle": str(submitted_run / "bundle"),
        "history": {"store": "rocksdb", "path": str(tmp_path / "history")},
        "stream": {"source": "file", "path": str(tmp_path / "log")},
    }
    deploy["applications"][0]["runtime_env"] = {"env_vars": {"PYTHONPATH": str(ROOT)}}
    path = tmp_path / "deploy.yaml"
    path.write_text(yaml.safe_dump(deploy))
    head.env["RAY_DASHBOARD_ADDRESS"] = head.dashboard
    result = head.run("serve", "deploy", str(path), "-a", head.dashboard)
    assert result.returncode == 0, result.stdout + result.stderr
    sequences, catalog = Sequences.open(submitted_run / "data"), Catalog.open(submitted_run / "data")
    items, ts = sequences.history(0, "test")
    history = [[catalog.item_ids[int(i)].as_py(), int(t)] for i, t in zip(items, ts, strict=True)]
    now = int(ts[-1]) + 60
    body = {"history": history, "k": 10, "now": now}
    served = _post(f"http://127.0.0.1:{port}/v1/recommend", body, wait=300)
    local = HyMiRec.from_pretrained(submitted_run / "bundle").recommend(history=history, k=10, now=now)
    assert [item["item_id"] for item in served["items"]] == [str(item.item_id) for item in local.items]
    assert [item["score"] for item in served["items"]] == pytest.approx([i.score for i in local.items], abs=1e-6)
    assert head.run("serve", "shutdown", "-y", "-a", head.dashboard).returncode == 0


def _post(url: str, body: object, wait: float) -> dict[str, list[dict[str, object]]]:
    """Post until the application has started and has time for a whole answer."""
    deadline = time.monotonic() + wait
    request = urllib.request.Request(url, json.dumps(body).encode(), {"content-type": "application/json"})
    while True:
        try:
            with urllib.request.urlopen(request, timeout=10) as reply:
                result: dict[str, list[dict[str, object]]] = json.loads(reply.read())
                if not result["degraded"] or time.monotonic() > deadline:
                    return result
        except OSError:
            if time.monotonic() > deadline:
                raise
        time.sleep(0.5)


class KilledRun:
    """A run that was killed once in every step and then finished."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self.killed_in: list[str] = []

    def start(self) -> subprocess.Popen[bytes]:
        log = (self.run_dir.parent / f"start-{len(self.killed_in)}.log").open("wb")
        arguments = [sys.executable, *command(self.run_dir)[1:]]
        return subprocess.Popen(
            arguments, cwd=ROOT, stdout=log, stderr=log, env=plain_environment(), start_new_session=True
        )

    def kill_in(self, step: str) -> None:
        process = self.start()
        deadline = time.monotonic() + 700
        while not self._inside(step):
            assert process.poll() is None, f"ended before {step}: {self._log()}"
            assert time.monotonic() < deadline, f"{step} did not begin: {self._log()}"
            time.sleep(0.005)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if not (self.run_dir / step / MANIFEST).exists():
            self.killed_in.append(step)

    def _inside(self, step: str) -> bool:
        """The step has begun; a training step has finished its first epoch, so that there is something to resume."""
        if not (self.run_dir / step / "work" / "inputs").exists():
            return False
        if step not in ("encoder", "recommender"):
            return True
        try:
            return bool(json.loads((self.run_dir / step / "logs" / "progress.json").read_text())["epoch"] >= 1)
        except (OSError, ValueError):
            return False

    def finish(self) -> None:
        process = self.start()
        assert process.wait(1200) == 0, self._log()

    def _log(self) -> str:
        logs = sorted(self.run_dir.parent.glob("start-*.log"), key=lambda p: p.stat().st_mtime)
        return logs[-1].read_text(errors="replace")[-3000:]


@pytest.fixture(scope="module")
def killed_run(tmp_path_factory: pytest.TempPathFactory) -> KilledRun:
    run = KilledRun(tmp_path_factory.mktemp("killed") / "run")
    for name in NAMES:
        run.kill_in(name)
    run.finish()
    return run


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("step", NAMES)
def test_kill_9_in_a_step_and_the_same_command_again_gives_the_same_artifacts(
    killed_run: KilledRun, submitted_run: Path, step: str
) -> None:
    assert step in killed_run.killed_in
    assert verify(killed_run.run_dir / step).as_dict() == read_manifest(submitted_run / step).as_dict()


def test_a_finished_run_does_nothing_when_run_again(submitted_run: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(submitted_run, run_dir)
    before = {
        path: path.stat().st_mtime_ns for path in run_dir.rglob("*") if path.is_file() and "logs" not in path.parts
    }
    result = subprocess.run(
        [sys.executable, *command(run_dir)[1:]], cwd=ROOT, capture_output=True, text=True, env=plain_environment()
    )
    assert result.returncode == 0, result.stdout
    assert result.stdout.count("done before, skipped") == len(NAMES)
    del before[run_dir / "config.yaml"]
    assert all(path.stat().st_mtime_ns == mtime for path, mtime in before.items())

"""A Ray head node of the test's own, started with the command line and stopped by its pid."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from services import ROOT, free_port

BIN = Path(sys.executable).parent
ATTEMPTS = 3


def plain_environment(**extra: str) -> dict[str, str]:
    """The environment of a person's shell: no Ray cluster chosen, this virtual environment first on the path."""
    env = {key: value for key, value in os.environ.items() if not key.startswith("RAY_") and key != "PYTHONPATH"}
    quiet = {"RAY_AUTH_MODE": "disabled", "RAY_worker_niceness": "0", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return env | quiet | {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"} | extra


class RayHead:
    """`ray start --head --block` on free ports."""

    def __init__(self, log: Path, cpus: int = 4) -> None:
        self.log = log
        for attempt in range(ATTEMPTS):
            self._start(cpus)
            if self._comes_up():
                return
            # Ray gives a node 30 s to start in; a starved machine may need another go.
            if attempt + 1 < ATTEMPTS and "timed out during startup" in log.read_text():
                continue
            raise RuntimeError(f"ray start did not come up:\n{log.read_text()}")

    def _start(self, cpus: int) -> None:
        self.dashboard = f"http://127.0.0.1:{(port := free_port())}"
        self.gcs = f"127.0.0.1:{(gcs_port := free_port())}"
        self.env = plain_environment(RAY_ADDRESS=self.dashboard)
        command = [
            *(str(BIN / "ray"), "start", "--head", "--block", "--disable-usage-stats", f"--num-cpus={cpus}"),
            *("--node-ip-address=127.0.0.1", f"--port={gcs_port}"),
            *("--dashboard-host=127.0.0.1", f"--dashboard-port={port}", f"--ray-client-server-port={free_port()}"),
            *(f"--dashboard-agent-listen-port={free_port()}", f"--dashboard-agent-grpc-port={free_port()}"),
            *("--object-store-memory=300000000", f"--metrics-export-port={free_port()}"),
        ]
        env = plain_environment()
        with self.log.open("wb") as out:
            self.process = subprocess.Popen(command, stdout=out, stderr=out, env=env, start_new_session=True)

    def _comes_up(self) -> bool:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                urllib.request.urlopen(f"{self.dashboard}/api/version", timeout=2).read()
                return True
            except (urllib.error.URLError, OSError):
                time.sleep(0.3)
        return False

    def run(self, *command: str, timeout: float = 2000) -> subprocess.CompletedProcess[str]:
        """Run a command of the virtual environment against this head, from the project's root."""
        return subprocess.run(
            [str(BIN / command[0]), *command[1:]],
            cwd=ROOT,
            env=self.env,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def stop(self) -> None:
        """End the head and everything it started."""
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

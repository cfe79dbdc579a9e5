"""Connect to the Ray cluster that is there, or start one on this machine."""

from __future__ import annotations

import logging
import os
import warnings
from pathlib import Path
from typing import Any

import ray

from hymirec.config import ComputeConfig, PipelineConfig

log = logging.getLogger(__name__)
# Logical CPUs of a local cluster. More than a small laptop has: readers and writers of Ray Data would otherwise wait
# for ever behind the actors they feed.
LEAST_CPUS = 4
OBJECT_STORE_BYTES = 400 << 20
# Ray gives a node 30 seconds to come up, which a machine that is busy with other things may not keep.
START_ATTEMPTS = 6
IN_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"
# Read when Ray starts on a node (cluster/Dockerfile says the same): Serve's proxies turn away what the service has no
# room for; see hymirec/service/turnstile.py. What else Serve could be told, and why it is not: docs/lab-log.md.
SERVE_ENVIRONMENT = {"RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "serve_apps.turnstile:middlewares"}

# A cluster of this machine alone is not taken away with a notice: no process of each training need watch for one.
LOCAL_ENVIRONMENT = SERVE_ENVIRONMENT | {"RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0"}


def worker_environment(compute: ComputeConfig) -> dict[str, str]:
    """Environment of a process that runs a model: threads, and DeepSpeed's accelerator where there is none."""
    env = {"OMP_NUM_THREADS": str(compute.threads_per_worker), "TOKENIZERS_PARALLELISM": "false"}
    return env if compute.use_gpu else env | {"DS_ACCELERATOR": "cpu"}


def home() -> Path:
    """Where relative run directories lie: $HYMIREC_HOME, else the current directory.

    A submitted job runs in a temporary copy of the project, so there it is ~/hymirec. On several nodes it must be on
    storage that all of them share.
    """
    default = Path.home() / "hymirec" if IN_JOB in os.environ else Path.cwd()
    return Path(os.environ.get("HYMIREC_HOME", default))


def placed(config: PipelineConfig) -> PipelineConfig:
    """The config with an absolute run directory."""
    return config.model_copy(update={"run_dir": str(home() / config.directory)})


def connect(compute: ComputeConfig) -> None:
    """Join the cluster of `RAY_ADDRESS` or of the running job; start a local one when there is none."""
    if ray.is_initialized():
        return
    warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"ray\..*")
    if "RAY_ADDRESS" in os.environ or IN_JOB in os.environ:
        ray.init(log_to_driver=False, logging_level="error")
    else:
        # Workers at nice 15 starve beside any ordinary process of the machine.
        os.environ.setdefault("RAY_worker_niceness", "0")
        wanted = int(compute.workers * compute.cpus_per_worker + 2)
        start_local(
            num_cpus=max(LEAST_CPUS, os.cpu_count() or 1, wanted),
            object_store_memory=OBJECT_STORE_BYTES,
            logging_level="error",
        )
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False


def start_local(**options: Any) -> None:
    """Start a cluster on this machine, in which workers' output stays in Ray's log files; tried again when it is late.

    Raises whatever Ray raises at the last attempt.
    """
    for name, value in LOCAL_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    for attempt in range(1, START_ATTEMPTS + 1):
        try:
            ray.init(address="local", include_dashboard=False, log_to_driver=False, **options)
            return
        except Exception as e:
            # Ray raises a plain Exception here.
            if attempt == START_ATTEMPTS or "timed out" not in str(e):
                raise
            log.warning("Ray did not start in time, attempt %d of %d: %s", attempt, START_ATTEMPTS, e)
            ray.shutdown()

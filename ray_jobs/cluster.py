"""Connect to the Ray cluster that is there, or start one on this machine."""

from __future__ import annotations

import os
import warnings

import ray

from hymirec.config import ComputeConfig

# Logical CPUs of a local cluster. More than a small laptop has: readers and writers of Ray Data would otherwise wait
# for ever behind the actors they feed.
LEAST_CPUS = 4
OBJECT_STORE_BYTES = 400 << 20


def connect(compute: ComputeConfig) -> None:
    """Join the cluster of `RAY_ADDRESS` or of the running job; start a local one when there is none."""
    if ray.is_initialized():
        return
    warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"ray\..*")
    if "RAY_ADDRESS" in os.environ or "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ:
        ray.init(log_to_driver=False, logging_level="error")
    else:
        # Workers at nice 15 starve beside any ordinary process of the machine.
        os.environ.setdefault("RAY_worker_niceness", "0")
        wanted = int(compute.workers * compute.cpus_per_worker + 2)
        ray.init(
            address="local",
            num_cpus=max(LEAST_CPUS, os.cpu_count() or 1, wanted),
            include_dashboard=False,
            object_store_memory=OBJECT_STORE_BYTES,
            log_to_driver=False,
            logging_level="error",
        )
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False

"""What every replica does first."""

from __future__ import annotations

import gc

from hymirec.config import ServiceConfig
from hymirec.service.logs import start_logs
from serve_apps.tracing import start_tracing


def begin(config: ServiceConfig) -> None:
    """Logs and traces as configured; garbage collection passes over what is imported, as in Serve's own proxies.

    What comes later, such as a bundle, is not passed over, since it may go.
    """
    start_logs(config.log_format)
    start_tracing(config)
    gc.collect()
    gc.freeze()

"""Serve on this machine: what `make serve`, the demo and the tests use."""

from __future__ import annotations

import socket
import sys
import time
from pathlib import Path
from typing import Annotated

import typer
import yaml
from ray import serve
from ray.serve.config import HTTPOptions

from hymirec.config import ServiceConfig, parse
from hymirec.errors import ConfigError, HyMiRecError
from serve_apps.app import build

NAME = "hymirec"


def run_local(config: ServiceConfig, port: int = 8000) -> str:
    """Start the application and wait until it is ready; returns its URL. Port 0 takes a free one.

    Raises ConfigError when the port is taken.
    """
    port = _port(config.host, port)
    options = HTTPOptions(host=config.host, port=port, request_timeout_s=config.limits.request_timeout_seconds + 5)
    serve.start(proxy_location="HeadOnly", http_options=options, logging_config={"log_level": "ERROR"})
    serve.run(build(config.model_dump(mode="json")), name=NAME, route_prefix="/", logging_config={"log_level": "ERROR"})
    return f"http://{config.host}:{port}"


def stop_local() -> None:
    """Stop the application and Serve; positions are in the store, so the next start goes on there."""
    serve.shutdown()


def _port(host: str, port: int) -> int:
    with socket.socket() as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            s.bind((host, port))
        except OSError as e:
            raise ConfigError(
                f"port {port} on {host} is taken ({e}); give another one with --port, or 0 for any"
            ) from e
        return int(s.getsockname()[1])


def main(
    path: Annotated[Path, typer.Argument(metavar="YAML")],
    port: Annotated[int, typer.Option(help="0 takes a free one")] = 8000,
) -> None:
    """Serve the application of a Serve YAML until Ctrl-C."""
    from hymirec.config import ComputeConfig
    from ray_jobs.cluster import connect

    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
        config = parse(ServiceConfig, values["applications"][0]["args"], str(path))
        connect(ComputeConfig())
        url = run_local(config, port)
    except (HyMiRecError, OSError) as e:
        sys.stderr.write(f"error: {e}\n")
        raise typer.Exit(2) from e
    sys.stdout.write(f"serving at {url}; Ctrl-C stops it\n")
    sys.stdout.flush()
    try:
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:
        stop_local()


if __name__ == "__main__":
    typer.run(main)

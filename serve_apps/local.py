"""Serve on this machine: what `make serve`, the demo and the tests use."""

from __future__ import annotations

import logging
import signal
import socket
import sys
import threading
from pathlib import Path
from typing import Annotated

import typer
import yaml
from ray import serve
from ray.serve.config import HTTPOptions

from hymirec.artifacts import MANIFEST
from hymirec.config import ServiceConfig, parse
from hymirec.errors import ConfigError, HyMiRecError, ServiceError
from serve_apps.app import build, home, placed
from serve_apps.tracing import trace_proxies

NAME = "hymirec"
QUIET = {"log_level": "ERROR", "enable_access_log": False}
# Serve's own time-out lies behind ours: our answer says what happened, Serve's is only a 408.
HTTP_MARGIN_SECONDS = 5.0


def run_local(config: ServiceConfig, port: int = 8000) -> str:
    """Start the application and wait until it is ready; returns its URL. Port 0 takes a free one.

    Raises ConfigError when the port is taken or the config cannot be served, ServiceError when it does not start.
    """
    application = build(config.model_dump(mode="json"))
    bundle = placed(config, home()).bundle
    if not (Path(bundle) / MANIFEST).is_file():
        raise ConfigError(f"there is no bundle at {bundle}; `make demo` makes one, or give another one as args.bundle")
    port = _port(config.host, port)
    seconds = config.limits.request_timeout_seconds + HTTP_MARGIN_SECONDS
    options = HTTPOptions(host=config.host, port=port, request_timeout_s=seconds)
    # Where the terminal belongs to the newcomer; the replicas' own logs are in Ray's session directory.
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    serve.start(proxy_location="HeadOnly", http_options=options, logging_config=QUIET)
    try:
        serve.run(application, name=NAME, route_prefix="/", logging_config=QUIET)
    except RuntimeError as e:
        cause = _cause()
        serve.shutdown()
        raise ServiceError(f"the service did not start: {cause or e}") from e
    return f"http://{config.host}:{port}"


def stop_local() -> None:
    """Stop the application and Serve; positions are in the store, so the next start goes on there."""
    serve.shutdown()


def _cause() -> str:
    """The last line of the first deployment's account of why it failed."""
    application = serve.status().applications.get(NAME)
    for deployment in application.deployments.values() if application else ():
        lines = [line.strip() for line in deployment.message.splitlines() if line.strip()]
        if lines and "hymirec.errors." in deployment.message:
            ours = [line for line in lines if line.startswith("hymirec.errors.")]
            return ours[-1] if ours else lines[-1]
    return application.message if application else ""


def _port(host: str, port: int) -> int:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            s.bind((host, port))
        except OSError as e:
            raise ConfigError(
                f"port {port} on {host} is taken ({e}); give another one with --port, or 0 for any"
            ) from e
        return int(s.getsockname()[1])


def read_service(path: Path) -> tuple[ServiceConfig, int]:
    """Service and HTTP port of a Serve YAML. Raises ConfigError."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
        arguments = values["applications"][0]["args"]
        port = int(values.get("http_options", {}).get("port", 8000))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as e:
        raise ConfigError(f"{path} cannot be read: {e}; the shipped ones are in serve_apps/configs") from e
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as e:
        raise ConfigError(f"{path} is not a Serve YAML: expected applications: [{{args: ...}}] ({e!r})") from e
    return parse(ServiceConfig, arguments, str(path)), port


def main(
    path: Annotated[Path, typer.Argument(metavar="YAML", help="a Serve YAML")],
    port: Annotated[int | None, typer.Option(help="HTTP port; 0 takes a free one; none given: the file's")] = None,
) -> None:
    """Serve the application of a Serve YAML until Ctrl-C."""
    from hymirec.config import ComputeConfig
    from ray_jobs.cluster import connect

    try:
        config, written = read_service(path)
        if config.tracing:
            trace_proxies()
        connect(ComputeConfig())
        url = run_local(config, written if port is None else port)
    except HyMiRecError as e:
        sys.stderr.write(f"error: {e}\n")
        raise typer.Exit(2) from e
    sys.stdout.write(f"serving at {url}; Ctrl-C stops it\n")
    sys.stdout.flush()
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    ended.wait()
    stop_local()


if __name__ == "__main__":
    typer.run(main)

"""What is decided before anything runs: arguments, places, shipped files, what exceptions of Ray mean."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.exceptions import ActorDiedError, RayTaskError
from ray.serve.exceptions import BackPressureError, RayServeException
from ray.serve.schema import ServeDeploySchema

from hymirec.config import ServiceConfig
from hymirec.errors import ConfigError, OverloadedError, RequestError, StageUnavailableError
from hymirec.service.guard import is_loopback
from serve_apps.app import build, home, placed
from serve_apps.local import read_service, run_local
from serve_apps.stages import ours

CONFIGS = sorted((Path(__file__).parents[2] / "serve_apps" / "configs").glob("*.yaml"))
ARGS: dict[str, Any] = {"bundle": "b", "history": {"path": "h"}, "stream": {"path": "l"}}
GROUP: dict[str, Any] = {
    "history": {"store": "redis", "url": "redis://127.0.0.1:1/0"},
    "stream": {"source": "kafka-python", "brokers": "127.0.0.1:1"},
    "max_writer_replicas": 2,
}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_file_is_one_that_serve_and_this_project_understand(path: Path) -> None:
    deploy = ServeDeploySchema.model_validate(yaml.safe_load(path.read_text()))
    config, port = read_service(path)
    assert is_loopback(deploy.http_options.host)
    assert deploy.http_options.host == config.host
    assert deploy.http_options.port == port
    assert deploy.applications[0].import_path == "serve_apps.app:build"
    assert (deploy.http_options.request_timeout_s or 0) > config.limits.request_timeout_seconds
    build(deploy.applications[0].args)


def test_relative_paths_lie_under_the_home_of_the_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYMIREC_HOME", str(tmp_path))
    config = placed(ServiceConfig(**ARGS | {"stream": {"path": "/var/log/events"}}), home())
    assert config.bundle == str(tmp_path / "b")
    assert config.history.path == str(tmp_path / "h")
    assert (config.stream.path, config.token_file) == ("/var/log/events", None)
    monkeypatch.delenv("HYMIREC_HOME")
    assert home() == Path.cwd()


def test_each_writer_has_a_name_of_its_own_in_the_group() -> None:
    named = ServiceConfig(**ARGS | GROUP | {"stream": GROUP["stream"] | {"member": "writer-{rank}"}})
    assert [named.for_writer(rank).stream.member for rank in (0, 2)] == ["writer-0", "writer-2"]
    assert named.for_writer(1).model_copy(update={"stream": named.stream}) == named
    nameless = ServiceConfig(**ARGS | GROUP)
    assert nameless.for_writer(1) == nameless


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"host": "0.0.0.0"}, "beyond loopback and needs token_file"),
        ({"host": "0.0.0.0", "token_file": "/absent"}, "/absent cannot be read"),
        ({"bundel": "x"}, "bundel: unknown key"),
        ({"writer_replicas": 2}, "writer_replicas > 1 needs"),
        ({"max_writer_replicas": 2}, "max_writer_replicas > 1 needs"),
        (GROUP | {"stream": GROUP["stream"] | {"member": "writer"}}, r"stream.member must contain \{rank\}"),
        (GROUP | {"stream": GROUP["stream"] | {"group_protocol": "consumer"}}, "needs stream.source=confluent"),
    ],
)
def test_what_cannot_be_served_is_refused_before_anything_starts(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(ARGS | change)


def test_a_service_without_a_bundle_does_not_start(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"there is no bundle at .*nowhere"):
        run_local(ServiceConfig(**ARGS | {"bundle": str(tmp_path / "nowhere")}), 0)


@pytest.mark.parametrize("text", ["applications: []", "- 1", "applications: [{}]", "a: ["])
def test_a_file_that_is_no_serve_yaml_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"x\.yaml"):
        read_service(tmp_path / "x.yaml")


def test_exceptions_of_ray_become_errors_that_say_what_to_do() -> None:
    ours_again = RayTaskError("recommend", "Traceback ...", RequestError("k must be at least 1"))
    found = ours("recommender", ours_again.as_instanceof_cause())
    assert (type(found), str(found)) == (RequestError, "k must be at least 1")
    assert isinstance(ours("recommender", BackPressureError(1, 0)), OverloadedError)
    for died in (ActorDiedError(), RayServeException("no replica")):
        assert isinstance(ours("recommender", died), StageUnavailableError)
    bug = RayTaskError("recommend", "Traceback ...", ZeroDivisionError("a bug"))
    assert isinstance(ours("recommender", bug), RayTaskError)

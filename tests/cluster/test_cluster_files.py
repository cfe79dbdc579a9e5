"""Files of cluster/, checked without a cluster: KubeRay's and compose's rules, as far as these files use them."""

from __future__ import annotations

import copy
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml
from ray.serve.schema import ServeDeploySchema

from hymirec.config import PipelineConfig, ServiceConfig, load, parse
from ray_jobs.cluster import SERVE_ENVIRONMENT
from serve_apps.app import build
from serve_apps.local import read_service

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster"
WORKDIR = "/srv/hymirec"
QUANTITY = re.compile(r"(\d+(\.\d+)?)(m|k|M|G|T|Ki|Mi|Gi|Ti)?")
NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
# Fields of the custom resources (ray.io/v1, KubeRay 1.6) that these files may use, by where they stand; required: "!".
CLUSTER_FIELDS = (
    "rayVersion enableInTreeAutoscaling autoscalerOptions authOptions gcsFaultToleranceOptions headGroupSpec! "
    "workerGroupSpecs"
)
FIELDS = {
    "RayService": "serveConfigV2 rayClusterConfig! upgradeStrategy rayClusterDeletionDelaySeconds "
    "excludeHeadPodFromServeSvc",
    "RayJob": "entrypoint runtimeEnvYAML submissionMode backoffLimit shutdownAfterJobFinishes ttlSecondsAfterFinished "
    "activeDeadlineSeconds rayClusterSpec",
    "autoscalerOptions": "version upscalingMode idleTimeoutSeconds resources securityContext",
    "authOptions": "mode!",
    "gcsFaultToleranceOptions": "redisAddress! redisPassword! externalStorageNamespace",
    "headGroupSpec": "rayStartParams template! serviceType",
    "workerGroupSpec": "groupName! replicas minReplicas! maxReplicas! rayStartParams template!",
    "pod": "securityContext! containers! volumes tolerations nodeSelector serviceAccountName",
    "container": "name! image! imagePullPolicy securityContext! ports! resources! volumeMounts env",
}


def read(name: str) -> Any:
    return yaml.safe_load((CLUSTER / name).read_text())


def fitted(value: dict[str, Any], kind: str, where: str) -> None:
    """Only fields that there are, and all that must be."""
    words = (CLUSTER_FIELDS if kind == "cluster" else FIELDS[kind]).split()
    known, required = {word.rstrip("!") for word in words}, {word[:-1] for word in words if word.endswith("!")}
    assert set(value) <= known, f"{where}: {sorted(set(value) - known)}"
    assert required <= set(value), f"{where}: {sorted(required - set(value))} missing"


def pods(cluster: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    yield "head", cluster["headGroupSpec"]["template"]["spec"]
    for group in cluster["workerGroupSpecs"]:
        yield group["groupName"], group["template"]["spec"]


def amounts(resources: dict[str, Any]) -> Iterator[str]:
    for kind in resources.values():
        yield from kind.values()


def check_cluster(cluster: dict[str, Any]) -> None:
    """What KubeRay and Kubernetes would refuse, and what this project asks of itself."""
    fitted(cluster, "cluster", "cluster")
    assert cluster["rayVersion"] == ray.__version__
    assert cluster["enableInTreeAutoscaling"] is True
    for part in ("autoscalerOptions", "authOptions", "gcsFaultToleranceOptions", "headGroupSpec"):
        fitted(cluster[part], part, part)
    options = cluster["autoscalerOptions"]
    assert (options["version"], options["upscalingMode"]) == ("v2", "Default")
    assert all(QUANTITY.fullmatch(amount) for amount in amounts(options["resources"]))
    assert cluster["authOptions"]["mode"] == "token"
    assert re.fullmatch(r"[a-z0-9.-]+:\d+", cluster["gcsFaultToleranceOptions"]["redisAddress"])
    secret = cluster["gcsFaultToleranceOptions"]["redisPassword"]["valueFrom"]["secretKeyRef"]
    assert set(secret) == {"name", "key"}
    # Nothing is scheduled on the head: it must stay when replicas are busy.
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    names = [group["groupName"] for group in cluster["workerGroupSpecs"]]
    assert len(set(names)) == len(names)
    for group in cluster["workerGroupSpecs"]:
        fitted(group, "workerGroupSpec", group["groupName"])
        assert NAME.fullmatch(group["groupName"])
        assert 0 <= group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
    for where, pod in pods(cluster):
        check_pod(pod, where)


def check_pod(pod: dict[str, Any], where: str) -> None:
    fitted(pod, "pod", where)
    assert pod["securityContext"]["runAsNonRoot"] is True
    volumes = {volume["name"] for volume in pod["volumes"]}
    (container,) = pod["containers"]
    fitted(container, "container", where)
    assert container["name"] == ("ray-head" if where == "head" else "ray-worker")
    assert container["image"] in ("hymirec:cpu", "hymirec:gpu")
    assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports["metrics"] == 8080
    assert all(NAME.fullmatch(name) and len(name) <= 15 for name in ports)
    requests, limits = container["resources"]["requests"], container["resources"]["limits"]
    assert {"cpu", "memory"} <= set(requests)
    assert "memory" in limits
    assert all(isinstance(a, str) and QUANTITY.fullmatch(a) for a in amounts(container["resources"]))
    # Kubernetes takes a device only where both are equal.
    assert requests.get("nvidia.com/gpu") == limits.get("nvidia.com/gpu")
    assert ("nvidia.com/gpu" in limits) == (where == "gpu") == (container["image"] == "hymirec:gpu")
    assert {mount["name"] for mount in container["volumeMounts"]} == volumes


@pytest.mark.parametrize(("kind", "key"), [("RayService", "rayClusterConfig"), ("RayJob", "rayClusterSpec")])
def test_a_resource_of_kuberay_is_whole(kind: str, key: str) -> None:
    resource = read(f"kuberay/{kind.lower()}.yaml")
    assert set(resource) == {"apiVersion", "kind", "metadata", "spec"}
    assert (resource["apiVersion"], resource["kind"]) == ("ray.io/v1", kind)
    assert NAME.fullmatch(resource["metadata"]["name"])
    fitted(resource["spec"], kind, kind)
    check_cluster(resource["spec"][key])


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("rayVersion",), "2.0.0"),
        (("autoscalerOption",), {}),
        (("gcsFaultToleranceOptions", "redisAdress"), "x:1"),
        (("headGroupSpec", "template", "spec", "containers", 0, "resources", "requests", "memory"), "8GB"),
        (("headGroupSpec", "template", "spec", "containers", 0, "securityContext"), {"privileged": True}),
        (("workerGroupSpecs", 0, "minReplicas"), 99),
        (("workerGroupSpecs", 0, "groupName"), "CPU pods"),
        (("workerGroupSpecs", 0, "template", "spec", "containers", 0, "name"), "worker"),
        (("workerGroupSpecs", 0, "template", "spec", "volumes"), []),
    ],
)
def test_a_mistake_in_a_cluster_is_found(place: tuple[str | int, ...], value: Any) -> None:
    cluster = copy.deepcopy(read("kuberay/rayservice.yaml")["spec"]["rayClusterConfig"])
    node = cluster
    for step in place[:-1]:
        node = node[step]
    node[place[-1]] = value
    with pytest.raises(AssertionError):
        check_cluster(cluster)


def test_the_service_on_kubernetes_is_one_that_serve_and_this_project_understand(tmp_path: Path) -> None:
    spec = read("kuberay/rayservice.yaml")["spec"]
    deploy = ServeDeploySchema.model_validate(yaml.safe_load(spec["serveConfigV2"]))
    (application,) = deploy.applications
    module, _, name = application.import_path.partition(":")
    assert getattr(__import__(module, fromlist=[name]), name) is build
    config = parse(ServiceConfig, application.args, "rayservice.yaml")
    assert deploy.http_options.host == config.host == "0.0.0.0"
    assert (deploy.http_options.request_timeout_s or 0) > config.limits.request_timeout_seconds
    # Each pod has the port, the tokens and the volume that the arguments name.
    for _, pod in pods(spec["rayClusterConfig"]):
        (container,) = pod["containers"]
        mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        assert str(Path(str(config.token_file)).parent) == mounts["tokens"]
        assert Path(WORKDIR, config.bundle).is_relative_to(mounts["runs"])
        assert {"containerPort": deploy.http_options.port, "name": "serve"} in container["ports"]
    tokens = tmp_path / "tokens"
    tokens.write_text(f"read {'r' * 32}\n")
    build(application.args | {"token_file": str(tokens)})
    # The least replicas fit the least pods.
    group = spec["rayClusterConfig"]["workerGroupSpecs"][0]
    cpus = int(group["template"]["spec"]["containers"][0]["resources"]["requests"]["cpu"])
    room, most = group["minReplicas"] * cpus, group["maxReplicas"] * cpus
    assert config.recommender_replicas * config.threads + config.writer_replicas <= room
    assert config.max_recommender_replicas * config.threads + config.most_writers <= most


def test_the_training_job_runs_a_script_and_a_config_that_are_in_the_image() -> None:
    spec = read("kuberay/rayjob.yaml")["spec"]
    python, script, *options = shlex.split(spec["entrypoint"])
    assert python == "python"
    assert (ROOT / Path(script).relative_to(WORKDIR)).is_file()
    pairs = list(zip(options[::2], options[1::2], strict=True))
    (path,) = [value for name, value in pairs if name == "--config"]
    assignments = [value for name, value in pairs if name == "--set"]
    config = load(PipelineConfig, ROOT / Path(path).relative_to(WORKDIR), assignments)
    mounts = {
        mount["mountPath"] for _, pod in pods(spec["rayClusterSpec"]) for mount in pod["containers"][0]["volumeMounts"]
    }
    assert {str(config.data.path), str(config.directory)} == {
        f"{mount}/{n}" for mount in mounts for n in ("tables", "industrial")
    }
    # A lost cluster is made again, and the run goes on.
    assert spec["backoffLimit"] > 0
    assert spec["shutdownAfterJobFinishes"] is True
    groups = {group["groupName"]: group for group in spec["rayClusterSpec"]["workerGroupSpecs"]}
    assert not config.compute.use_gpu or groups["gpu"]["maxReplicas"] >= config.compute.workers
    container = groups["gpu"]["template"]["spec"]["containers"][0]
    assert int(container["resources"]["requests"]["cpu"]) >= config.compute.cpus_per_worker


def bound(port: str) -> str:
    """The address of the host that a published port is bound to; empty for all."""
    return port.rpartition(":")[0].rpartition(":")[0]


def test_compose_names_files_that_exist_and_publishes_nothing_beyond_loopback() -> None:
    compose = read("compose.yaml")
    services = compose["services"]
    assert set(services) == {"kafka", "topics", "valkey", "ray", "prometheus", "grafana"}
    for name, service in services.items():
        assert {bound(port) for port in service.get("ports", ())} <= {"127.0.0.1"}, name
        assert set(service.get("depends_on", ())) <= set(services)
        for mount in service.get("volumes", ()):
            source = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", mount).split(":")[0]
            assert source in compose["volumes"] or source == "../runs" or (CLUSTER / source).exists(), mount
    for condition in services["ray"]["depends_on"].items():
        needed, how = condition
        assert how["condition"] != "service_healthy" or "healthcheck" in services[needed]
    build_section = services["ray"]["build"]
    assert (CLUSTER / build_section["context"] / build_section["dockerfile"]).is_file()
    # Those that share the host's network say themselves where they listen.
    assert {name for name, service in services.items() if service.get("network_mode") == "host"} == {
        "ray",
        "prometheus",
        "grafana",
    }
    assert "--web.listen-address=127.0.0.1:9090" in services["prometheus"]["command"]
    assert services["grafana"]["environment"]["GF_SERVER_HTTP_ADDR"] == "127.0.0.1"
    start = services["ray"]["command"][0]
    assert "--node-ip-address=127.0.0.1" in start
    assert "--dashboard-host=127.0.0.1" in start
    assert services["ray"]["environment"]["RAY_AUTH_MODE"] == "token"


def test_serve_runs_in_the_image_as_on_a_laptop() -> None:
    text = (CLUSTER / "Dockerfile").read_text()
    assert dict(re.findall(r"(RAY_SERVE_\w+)=(\S+)", text)) == SERVE_ENVIRONMENT


def test_compose_runs_what_the_shipped_service_asks_for() -> None:
    services = read("compose.yaml")["services"]
    start = services["ray"]["command"][0]
    (path,) = re.findall(r"serve deploy (\S+)", start)
    config, port = read_service(ROOT / path)
    assert f"http://127.0.0.1:{port}/readyz" in services["ray"]["healthcheck"]["test"]
    assert f"HOST://{config.stream.brokers}" in services["kafka"]["environment"]["KAFKA_ADVERTISED_LISTENERS"]
    assert services["kafka"]["environment"]["KAFKA_AUTO_CREATE_TOPICS_ENABLE"] == "false"
    made = re.findall(r"--topic (\S+) --partitions (\d+)", services["topics"]["command"][0])
    partitions = {topic: int(number) for topic, number in made}
    assert set(partitions) == {config.stream.topic, config.stream.dead_letter_topic}
    assert partitions[config.stream.topic] >= config.most_writers
    command = services["valkey"]["command"]
    assert command[command.index("--maxmemory-policy") + 1] == "noeviction"
    assert command[command.index("--appendonly") + 1] == "yes"
    assert (
        f"127.0.0.1:{(config.history.url or '').rpartition(':')[2].partition('/')[0]}" in services["valkey"]["ports"][0]
    )
    assert "--port=6379" not in start
    (target,) = re.findall(r"--metrics-export-port=(\d+)", start)
    jobs = {job["job_name"]: job for job in read("prometheus/prometheus.yml")["scrape_configs"]}
    assert jobs["ray"]["static_configs"] == [{"targets": [f"127.0.0.1:{target}"]}]


def test_the_image_holds_what_it_copies_and_runs_as_nobody_special() -> None:
    lines = (CLUSTER / "Dockerfile").read_text().replace("\\\n", " ").splitlines()
    steps = [line.split(maxsplit=1) for line in lines if line and not line.startswith("#")]
    ignored = (CLUSTER / "Dockerfile.dockerignore").read_text().splitlines()
    kept = [line[1:].removesuffix("/**") for line in ignored if line.startswith("!")]
    for source in (name for step, rest in steps if step == "COPY" for name in rest.split()[:-1]):
        assert (ROOT / source).exists(), source
        assert source in kept, f"{source} is copied and ignored"
    last_user = [rest for step, rest in steps if step == "USER"][-1]
    assert last_user not in ("root", "0")
    installs = [rest for step, rest in steps if step == "RUN" and "pip install" in rest]
    assert installs
    assert all("--constraint cluster/constraints.txt" in install for install in installs)
    extras = {extra for _, rest in steps for given in re.findall(r"EXTRAS=(\S+)", rest) for extra in given.split(",")}
    project = (ROOT / "pyproject.toml").read_text()
    assert extras
    assert all(re.search(rf"^{extra} = \[", project, re.MULTILINE) for extra in extras)
    text = "".join(path.read_text() for path in CLUSTER.rglob("*") if path.name in ("Dockerfile", "compose.yaml"))
    # Where images and packages come from is the machine's business.
    assert not re.search(r"index-url|pypi|docker\.io|ghcr\.io|quay\.io|gcr\.io", text)

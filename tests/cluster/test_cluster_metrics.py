"""Metrics, alerts, dashboard and runbook name the same things."""

from __future__ import annotations

import ast
import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from hymirec import telemetry
from hymirec.telemetry import METRICS, Metric

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PROMETHEUS, GRAFANA = ROOT / "cluster" / "prometheus", ROOT / "cluster" / "grafana"
OPERATIONS = (ROOT / "docs" / "operations.md").read_text()
RULES = [rule for group in yaml.safe_load((PROMETHEUS / "alerts.yml").read_text())["groups"] for rule in group["rules"]]
ALERTS = [rule for rule in RULES if "alert" in rule]
DASHBOARD = json.loads((GRAFANA / "dashboard.json").read_text())
# What others expose: Prometheus itself, and Ray 2.60.
FOREIGN = {"up": {"job", "instance"}, "ray_node_cpu_utilization": {"ip"}, "ray_node_mem_used": {"ip"}}
# What Ray adds to every metric of a deployment.
ADDED = {"application", "deployment", "replica"}
SUFFIXES = {"counter": ("",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}
UNITS = (
    "_total",
    "_seconds",
    "_events",
    "_users",
    "_bytes",
    "_items",
    "_info",
    "_ready",
    "_problems",
    "_requests",
    "_ratio",
)
WORDS = re.compile(r"[A-Za-z_:][A-Za-z0-9_:]*")
SERIES = re.compile(r"([A-Za-z_:][A-Za-z0-9_:]*)\s*(\{[^}]*\})?")


def exposed() -> dict[str, set[str]]:
    """Every series that there is, with its labels."""
    found = dict(FOREIGN)
    for metric in METRICS:
        for suffix in SUFFIXES[metric.kind]:
            labels = {*metric.labels, *ADDED, *({"le"} if suffix == "_bucket" else ())}
            found[f"ray_{metric.name}{suffix}"] = labels
    return found | {rule["record"]: {"stage"} for rule in RULES if "record" in rule}


def series(expression: str) -> Iterator[tuple[str, set[str]]]:
    """Names of an expression with the labels of their matchers; functions, keywords and grouping are none."""
    bare = re.sub(r"\b(by|without|on|ignoring)\s*\([^)]*\)", " ", expression)
    bare = re.sub(r"\[[^\]]*\]", " ", bare)
    for match in SERIES.finditer(bare):
        name, matchers = match.groups()
        after = bare[match.end() :].lstrip()
        if name in ("and", "or", "unless") or (after.startswith("(") and not matchers):
            continue
        yield name, set(re.findall(r"([a-z_]+)\s*(?:=~|!~|!=|=)", matchers or ""))


def grouped(expression: str) -> set[str]:
    """Labels that an expression groups by."""
    found = re.findall(r"\bby\s*\(([^)]*)\)", expression)
    return {label.strip() for labels in found for label in labels.split(",") if label.strip()}


def expressions() -> list[tuple[str, str]]:
    rules = [(rule.get("alert") or rule["record"], rule["expr"]) for rule in RULES]
    panels = [(panel["title"], target["expr"]) for panel in DASHBOARD["panels"] for target in panel.get("targets", ())]
    return rules + panels


def anchor(heading: str) -> str:
    return re.sub(r"[^a-z0-9 -]", "", heading.lower()).replace(" ", "-")


def test_the_list_of_metrics_is_whole_and_each_name_has_a_unit() -> None:
    declared = {value for value in vars(telemetry).values() if isinstance(value, Metric)}
    assert declared == set(METRICS)
    assert len({metric.name for metric in METRICS}) == len(METRICS) == len(declared)
    for metric in METRICS:
        assert metric.name.startswith("hymirec_")
        assert metric.name.endswith(UNITS)
        assert metric.name.endswith("_total") == (metric.kind == "counter")
        assert metric.help.endswith(".")
        assert not set(metric.labels) & ADDED


def test_every_metric_is_observed_somewhere_with_its_labels() -> None:
    names = {name: value for name, value in vars(telemetry).items() if isinstance(value, Metric)}
    observed: dict[str, set[frozenset[str]]] = {}
    library = ROOT / "hymirec"
    files = [*(library / "service").glob("*.py"), library / "inference.py", library / "streaming" / "consumer.py"]
    for call in (node for path in files for node in ast.walk(ast.parse(path.read_text()))):
        if isinstance(call, ast.Call):
            labels = frozenset(word.arg for word in call.keywords if word.arg)
            for argument in call.args:
                if isinstance(argument, ast.Name) and argument.id in names:
                    observed.setdefault(argument.id, set()).add(labels)
    assert observed == {name: {frozenset(metric.labels)} for name, metric in names.items()}


def test_the_documented_metrics_are_those_of_the_code() -> None:
    rows = re.findall(r"^\| `(hymirec_\w+)` \| (\w+) \| (.*?) \| (.+?) \|$", OPERATIONS, re.MULTILINE)
    assert rows == [(m.name, m.kind, ", ".join(f"`{label}`" for label in m.labels), m.help) for m in METRICS]
    mentioned = set(re.findall(r"\b(?:ray_)?(hymirec_[a-z_]+)\b", OPERATIONS))
    assert mentioned == {metric.name for metric in METRICS}


@pytest.mark.parametrize(("where", "expression"), expressions(), ids=lambda value: value[:40].replace(" ", "-"))
def test_an_expression_names_only_series_and_labels_that_exist(where: str, expression: str) -> None:
    known = exposed()
    used = dict(series(expression))
    assert used, where
    assert set(used) <= set(known), where
    for name, labels in used.items():
        assert labels <= known[name], (where, name)
    assert grouped(expression) <= set().union(*(known[name] for name in used)), where


@pytest.mark.parametrize(
    ("expression", "unknown"),
    [
        ('sum by (le) (rate(ray_hymirec_nothing_bucket{reason="full"}[5m]))', {"ray_hymirec_nothing_bucket"}),
        ("hymirec_lag_seconds > 1", {"hymirec_lag_seconds"}),
        ("ray_hymirec_recommend_seconds > 1 and up == 1", {"ray_hymirec_recommend_seconds"}),
        ("absent(ray_hymirec_lag_seconds) or vector(1)", set()),
    ],
)
def test_an_expression_with_a_series_that_does_not_exist_is_seen(expression: str, unknown: set[str]) -> None:
    assert {name for name, _ in series(expression)} - set(exposed()) - {"vector"} == unknown


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: rule["alert"])
def test_an_alert_says_what_it_means_and_where_its_runbook_is(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in ("page", "ticket")
    notes = rule["annotations"]
    assert set(notes) == {"summary", "description", "runbook"}
    page, _, place = notes["runbook"].partition("#")
    assert (ROOT / page).is_file()
    assert place == anchor(rule["alert"])
    section = re.search(rf"^### {rule['alert']}\n(.*?)(?=^##)", OPERATIONS, re.MULTILINE | re.DOTALL)
    assert section, f"no runbook for {rule['alert']}"
    assert re.search(r"^    \S", section[1], re.MULTILINE), f"the runbook of {rule['alert']} names no command"
    for label in re.findall(r"\$labels\.(\w+)", json.dumps(notes)):
        assert label in set().union(*(labels for name, labels in exposed().items() if name in rule["expr"]))


def test_every_runbook_has_its_alert() -> None:
    assert set(re.findall(r"^### (HyMiRec\w+)$", OPERATIONS, re.MULTILINE)) == {rule["alert"] for rule in ALERTS}


def test_the_dashboard_is_provisioned_and_its_panels_are_whole() -> None:
    source = yaml.safe_load((GRAFANA / "provisioning" / "datasources" / "prometheus.yaml").read_text())
    uids = {entry["uid"] for entry in source["datasources"]}
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, f"{panel['title']} lies on another panel"
        taken |= cells
        if panel["type"] != "row":
            assert panel["description"]
            assert {target["datasource"]["uid"] for target in panel["targets"]} <= uids
    shown = {name for _, expression in expressions() for name, _ in series(expression)}
    for metric in METRICS:
        assert any(f"ray_{metric.name}{suffix}" in shown for suffix in SUFFIXES[metric.kind]), (
            f"{metric.name} is nowhere"
        )


def test_prometheus_reads_the_rules() -> None:
    config = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())
    assert [path for path in config["rule_files"] if not (PROMETHEUS / path).is_file()] == []
    jobs = {job["job_name"] for job in config["scrape_configs"]}
    assert "ray" in jobs


def test_every_alert_is_shown_to_fire() -> None:
    cases = yaml.safe_load((HERE / "alerts_test.yml").read_text())["tests"]
    checks = [check for case in cases for check in case["alert_rule_test"]]
    everyone = {rule["alert"] for rule in ALERTS}
    assert {check["alertname"] for check in checks if check["exp_alerts"]} == everyone
    assert {check["alertname"] for check in checks if not check["exp_alerts"]} == everyone


@pytest.mark.prometheus
@pytest.mark.parametrize(
    "command",
    [["check", "config", str(PROMETHEUS / "prometheus.yml")], ["test", "rules", str(HERE / "alerts_test.yml")]],
    ids=lambda command: "-".join(command[:2]),
)
def test_prometheus_itself_agrees(command: list[str]) -> None:
    done = subprocess.run(["promtool", *command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr

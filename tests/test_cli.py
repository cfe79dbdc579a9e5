"""The `hymirec` command: what it prints, how it exits, and never a traceback."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cli_kit import hymirec, refused
from tiny_run import build_tiny_run

from hymirec.artifacts import read_manifest
from hymirec.config_docs import reference

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_run(tmp_path_factory.mktemp("cli") / "tiny")


def write_tables(directory: Path, items: list[Any], users: list[int], bought: list[Any], ts: list[int]) -> Path:
    directory.mkdir()
    pq.write_table(pa.table({"item": items, "title": [f"title {i}" for i in items]}), directory / "items.parquet")
    pq.write_table(pa.table({"user": users, "item": bought, "ts": ts}), directory / "interactions.parquet")
    return directory


def test_validate_accepts_good_tables_and_counts_them(tmp_path: Path) -> None:
    found = hymirec("validate", write_tables(tmp_path / "data", [1, 2, 3], [7, 7, 8], [1, 2, 3], [5, 6, 7]))
    assert found.exit_code == 0
    assert "3 items and 3 interactions" in found.stdout


def test_validate_names_every_problem_with_row_and_column_and_exits_1(tmp_path: Path) -> None:
    found = hymirec("validate", write_tables(tmp_path / "data", [1, 2, 2], [7, 7, 8], [1, 9, 2], [5, -6, 7]))
    assert found.exit_code == 1
    lines = found.stdout.splitlines()
    assert len(lines) == 3
    for words in (("items", "row 2", "item"), ("interactions", "row 1", "item", "9"), ("row 1", "ts", "-6")):
        assert any(all(word in line for word in words) for line in lines), (words, lines)


def test_validate_of_nothing_is_an_error(tmp_path: Path) -> None:
    refused(hymirec("validate", tmp_path / "absent"), "absent")


def test_recommend_prints_items_with_titles(run_dir: Path) -> None:
    found = hymirec("recommend", run_dir / "bundle", "--history", "item-000000001, item-000000004,nothing", "-k", 3)
    assert found.exit_code == 0
    *items, last = found.stdout.splitlines()
    assert [line.split()[0] for line in items] == ["1", "2", "3"]
    assert all("item-000000" in line for line in items)
    assert last.startswith("(full; 1 unknown items; bundle ")
    assert "cold_start" in hymirec("recommend", run_dir / "bundle").stdout


def test_recommend_refuses_an_impossible_k_and_a_directory_without_bundle(run_dir: Path, tmp_path: Path) -> None:
    refused(hymirec("recommend", run_dir / "bundle", "-k", 0), "k must be")
    refused(hymirec("recommend", tmp_path), "manifest.json")
    refused(hymirec("recommend", run_dir / "data"), "not a bundle")


def test_evaluate_prints_the_table_of_the_run(run_dir: Path) -> None:
    found = hymirec("evaluate", run_dir)
    assert found.exit_code == 0
    recall = json.loads((run_dir / "evaluation" / "metrics.json").read_text())["models"][0]["R@10"]
    row = next(line for line in found.stdout.splitlines() if line.startswith("| HyMiRec |"))
    assert f"| {recall:.4f} |" in row
    refused(hymirec("evaluate", run_dir / "data"), "config.yaml")


def test_codebook_report_measures_a_run(run_dir: Path) -> None:
    found = hymirec("codebook", "report", run_dir, "--json")
    assert found.exit_code == 0
    shown = json.loads(found.stdout)
    written = run_dir / "codebook" / "report"
    assert shown == json.loads((written / "report.json").read_text())
    # What the codebook's step measured, and titles.
    assert shown.items() >= json.loads((run_dir / "codebook" / "report.json").read_text()).items()
    assert shown["titles"]
    assert "2 layers of 16 centroids" in hymirec("codebook", "report", run_dir).stdout
    assert (written / "report.md").exists()
    assert (written / "recall.svg").exists()
    refused(hymirec("codebook", "report", run_dir / "data"), "codebook")


def test_bundle_inspect_and_verify(run_dir: Path, tmp_path: Path) -> None:
    manifest = read_manifest(run_dir / "bundle")
    shown = json.loads(hymirec("bundle", "inspect", run_dir / "bundle").stdout)
    assert (shown["id"], shown["files"]) == (manifest.id, manifest.files)
    assert shown["metrics"]["models"][0]["model"] == "HyMiRec"
    whole = hymirec("bundle", "verify", run_dir / "bundle")
    assert (whole.exit_code, manifest.id in whole.stdout) == (0, True)
    damaged = shutil.copytree(run_dir / "bundle", tmp_path / "damaged")
    (damaged / "index.faiss").write_bytes(b"something else")
    refused(hymirec("bundle", "verify", damaged), "index.faiss", "damaged")
    refused(hymirec("bundle", "verify", run_dir / "data"), "not a bundle")


def test_the_configuration_reference_is_up_to_date() -> None:
    found = hymirec("config", "docs")
    assert found.exit_code == 0
    assert found.stdout == reference()
    written = (ROOT / "docs" / "configuration.md").read_text()
    assert written == reference(), "run `hymirec config docs > docs/configuration.md`"


def test_every_key_of_the_configuration_is_in_the_reference() -> None:
    text = reference()
    for key in ("recommender.dmil.decay", "codebook.balance", "stream.topic", "limits.max_k", "data.synthetic.zipf"):
        assert f"`{key}`" in text
    assert [line for line in text.splitlines() if line.endswith("|  |")] == [], "each key says what it means"


def test_the_command_is_installed_and_imports_no_ray() -> None:
    code = "import sys, hymirec.cli, hymirec.inference; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
    shown = subprocess.run([Path(sys.executable).parent / "hymirec", "--help"], capture_output=True, text=True)
    assert shown.returncode == 0
    assert "recommend" in shown.stdout

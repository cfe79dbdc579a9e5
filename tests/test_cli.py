"""The `hymirec` command: what it prints, how it exits, and never a traceback."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from click.testing import Result
from tiny_run import build_tiny_run
from typer.testing import CliRunner

from hymirec.artifacts import read_manifest
from hymirec.catalog.events import Event
from hymirec.cli import app
from hymirec.config import ServiceConfig, load
from hymirec.config_docs import reference
from hymirec.errors import SourceUnavailableError
from hymirec.history import open_store
from hymirec.streaming import HistoryConsumer, event_message, open_log

ROOT = Path(__file__).parents[1]


def hymirec(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def refused(result: Result, *words: str) -> None:
    """Exit 2, one line on stderr that names the words, nothing on stdout."""
    assert (result.exit_code, result.stdout) == (2, ""), result.output
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    for word in words:
        assert word in result.stderr


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


class Shop:
    """A service's store and log, and its YAML."""

    def __init__(self, home: Path) -> None:
        self.home = home
        args = {
            "bundle": "bundle",
            "history": {"store": "rocksdb", "path": "history", "sync": False},
            "stream": {"source": "file", "path": "log", "partitions": 2, "poll_seconds": 0.02},
        }
        self.yaml = home / "serve.yaml"
        self.yaml.write_text(yaml.safe_dump({"applications": [{"name": "shop", "args": args}]}))
        self.config = load(ServiceConfig, self._plain(args)).placed(home)

    def _plain(self, args: dict[str, Any]) -> Path:
        path = self.home / "plain.yaml"
        path.write_text(yaml.safe_dump(args))
        return path

    def act(self, user: str, items: list[str]) -> None:
        events = [
            Event(event_id=f"{user}-{item}", user_id=user, item_id=item, ts=1_700_000_000 + n, action="click")
            for n, item in enumerate(items)
        ]
        producer = open_log(self.config.stream).producer()
        producer.send([event_message(event) for event in events])
        producer.close()

    def apply(self) -> None:
        """Run the history writer's consumer until it has caught up."""
        store, log = open_store(self.config.history), open_log(self.config.stream)
        consumer = HistoryConsumer(log, store, self.config.stream)
        consumer.start()
        try:
            source = log.source(group=False)
            ends = {partition: source.end(partition) for partition in source.assigned()}
            source.close()
            wait(
                lambda: (
                    {p: x for p, x in consumer.status().positions.items() if x} == {p: e for p, e in ends.items() if e}
                )
            )
        finally:
            consumer.stop()
            store.close()


def wait(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not done():
        if time.monotonic() > deadline:
            raise SourceUnavailableError("the consumer did not catch up")
        time.sleep(0.02)


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shop]:
    monkeypatch.setenv("HYMIREC_HOME", str(tmp_path))
    shop = Shop(tmp_path)
    shop.act("ann", ["pen", "ink", "mug"])
    shop.act("bob", ["mug"])
    shop.apply()
    return shop


def test_history_show_prints_events_oldest_first(shop: Shop) -> None:
    found = hymirec("history", "show", "ann", "--config", shop.yaml)
    assert found.exit_code == 0
    *events, last = found.stdout.splitlines()
    assert [line.split()[:2] for line in events] == [[str(1_700_000_000 + n), "click"] for n in range(3)]
    assert last == "(3 of 3 events)"
    assert "(1 of 3 events)" in hymirec("history", "show", "ann", "--limit", 1, "--config", shop.yaml).stdout
    assert "(0 of 0 events)" in hymirec("history", "show", "nobody", "--config", shop.yaml).stdout


def test_history_is_shown_beside_a_running_writer(shop: Shop) -> None:
    writer = open_store(shop.config.history)
    found = hymirec("history", "show", "ann", "--config", shop.home / "plain.yaml")
    writer.close()
    assert "(3 of 3 events)" in found.stdout


def test_history_erase_goes_through_the_log(shop: Shop) -> None:
    found = hymirec("history", "erase", "ann", "--config", shop.yaml)
    assert (found.exit_code, "'ann' is in the log" in found.stdout) == (0, True)
    assert "1 behind" in hymirec("history", "verify", "--config", shop.yaml).stdout
    shop.apply()
    assert "(0 of 0 events)" in hymirec("history", "show", "ann", "--config", shop.yaml).stdout
    assert "(1 of 1 events)" in hymirec("history", "show", "bob", "--config", shop.yaml).stdout


def test_history_verify_compares_every_history_with_the_log(shop: Shop) -> None:
    hymirec("history", "erase", "bob", "--config", shop.yaml)
    shop.apply()
    shop.act("bob", ["pen"])
    shop.apply()
    found = hymirec("history", "verify", "--replay", "--config", shop.yaml)
    assert found.exit_code == 0
    assert "2 of 2 histories are what the log makes them" in found.stdout


def test_history_verify_finds_a_history_that_lacks_events(shop: Shop) -> None:
    shop.act("ann", ["cup"])
    # An operator who skips the new event on every partition leaves a history that the log does not make.
    log = open_log(shop.config.stream).source(group=False)
    for partition in log.assigned():
        arguments = ("--partition", partition, "--offset", log.end(partition), "--config", shop.yaml)
        assert hymirec("history", "reset-position", *arguments).exit_code == 0
    log.close()
    assert hymirec("history", "verify", "--config", shop.yaml).exit_code == 0
    found = hymirec("history", "verify", "--replay", "--config", shop.yaml)
    assert found.exit_code == 1
    assert "user 'ann': expected 4 events, the store has 3" in found.stdout


def test_history_verify_finds_a_topic_that_was_created_again(shop: Shop) -> None:
    shutil.rmtree(shop.home / "log" / "events")
    shop.act("ann", ["pen"])
    found = hymirec("history", "verify", "--config", shop.yaml)
    assert found.exit_code == 1
    assert "the topic was deleted and created again" in found.stdout


def test_a_position_beyond_the_log_is_found(shop: Shop) -> None:
    hymirec("history", "reset-position", "--partition", 0, "--offset", 99, "--config", shop.yaml)
    found = hymirec("history", "verify", "--config", shop.yaml)
    assert found.exit_code == 1
    assert "position 99 is outside of the log" in found.stdout
    refused(hymirec("history", "reset-position", "--partition", 7, "--offset", 0, "--config", shop.yaml), "7", "[0, 1]")


def test_history_commands_make_no_store_where_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYMIREC_HOME", str(tmp_path))
    shop = Shop(tmp_path)
    for command in (("show", "ann"), ("verify",), ("erase", "ann")):
        refused(hymirec("history", *command, "--config", shop.yaml), "history.path", "HYMIREC_HOME")
    assert not (tmp_path / "history").exists()
    assert not (tmp_path / "log").exists()


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("{bundle: [", "YAML"),
        ("bundle: b\nhistry: {}", "histry: unknown key"),
        ("bundle: b\nhistory: {store: memory}\nstream: {path: log}", "memory"),
        ("3", "config"),
        ("applications: [{args: {}}]", "bundle"),
    ],
)
def test_a_wrong_service_file_is_named(tmp_path: Path, text: str, word: str) -> None:
    path = tmp_path / "serve.yaml"
    path.write_text(text)
    refused(hymirec("history", "show", "ann", "--config", path), "serve.yaml", word)
    refused(hymirec("history", "show", "ann", "--config", tmp_path / "absent.yaml"), "absent.yaml")


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

"""The page of a run: its figures are those of the run's files, and what is missing is told."""

from __future__ import annotations

import html
import re
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from tiny_run import build_tiny_run
from typer.testing import CliRunner

from hymirec.artifacts import read_json, write_json
from hymirec.catalog.parts import part_paths
from hymirec.catalog.prepared import Sequences
from hymirec.catalog.schemas import INDEX, TITLE
from hymirec.cli import app
from hymirec.config import PipelineConfig, load
from hymirec.errors import ConfigError, RequestError
from hymirec.evaluation.charts import Bars, Line, bar_chart, line_chart
from hymirec.evaluation.evaluate import run_results
from hymirec.evaluation.page import table
from hymirec.evaluation.portraits import find_users, spread_users
from hymirec.evaluation.run_report import write_run_report

HISTORY = [
    {"epoch": 0.0, "ndcg@10": 0.1234, "overlap": 0.9},
    {"epoch": 1.0, "ndcg@10": 0.2345, "overlap": 0.8, "train_loss": 7.5},
    {"epoch": 2.0, "ndcg@10": 0.2222, "overlap": 0.7, "train_loss": 6.5},
]


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_run(tmp_path_factory.mktemp("report") / "run")


@pytest.fixture
def copy(run_dir: Path, tmp_path: Path) -> Path:
    """A run that may be changed, with the file that a training of the pipeline leaves."""
    copy = tmp_path / "copy"
    shutil.copytree(run_dir, copy)
    write_json(copy / "recommender" / "training.json", {"history": HISTORY, "best_epoch": 1})
    return copy


def text_of(path: Path) -> str:
    return html.unescape(re.sub(r"<[^>]+>", " ", path.read_text()))


def test_the_figures_are_those_of_the_files(copy: Path) -> None:
    path, missing = write_run_report(copy)
    assert (path, missing) == (copy / "report" / "report.html", [])
    text = text_of(path)
    for row in read_json(copy / "evaluation" / "metrics.json")["models"]:
        assert f"{row['N@10']:.4f}" in text
        for groups in row["groups"].values():
            assert all(f"{group['R@10']:.4f}" in text for group in groups.values())
    assert "1 (best)" in text
    assert all(f"{row['ndcg@10']:.4f}" in text for row in HISTORY)


def test_the_page_needs_nothing_else_and_every_picture_has_words(copy: Path) -> None:
    content = write_run_report(copy)[0].read_text()
    assert not re.search(r"<script|<link|<img|https?://(?!www\.w3\.org)", content)
    pictures = re.findall(r'<svg class="chart"[^>]*>', content)
    assert len(pictures) >= 5
    assert all('role="img"' in own and re.search(r'aria-label="[^"]{20,}"', own) for own in pictures)


def test_users_are_shown_with_their_next_item_and_its_rank(copy: Path) -> None:
    sequences = Sequences.open(copy / "data")
    user = str(sequences.users[spread_users(sequences, "test", 1)[0]].as_py())
    text = text_of(write_run_report(copy, users=[user])[0])
    assert f"User {user}:" in text
    assert len(re.findall(r"Took next:.*?rank \d+ of", text)) == 1
    assert "Cosine between interests" in text
    with pytest.raises(RequestError, match="some that have one"):
        write_run_report(copy, users=["nobody"])


def test_the_rank_is_the_evaluations_and_a_title_cannot_become_markup(copy: Path) -> None:
    config = load(PipelineConfig, copy / "config.yaml")
    ranks, sequences = run_results(copy, config)[0].ranks, Sequences.open(copy / "data")
    row = int(ranks.user_T[3])
    target = int(sequences.targets(row, "test")[0][0])
    for part in part_paths(copy / "data" / "items"):
        items = pq.read_table(part)
        index, titles = items[INDEX].to_pylist(), items[TITLE].to_pylist()
        titles = ["<b>Tom & Jerry" if i == target else title for i, title in zip(index, titles, strict=True)]
        place = items.column_names.index(TITLE)
        pq.write_table(items.set_column(place, items.schema.field(TITLE), [titles]), part)
    content = write_run_report(copy, users=[str(sequences.users[row].as_py())])[0].read_text()
    assert f"<mark>&lt;b&gt;Tom &amp; Jerry</mark>, rank {ranks.rank_T[3] + 1} of" in content
    assert "<b>" not in content


def test_quartiles_of_history_lengths(copy: Path) -> None:
    sequences = Sequences.open(copy / "data")
    rows = spread_users(sequences, "test", 3)
    lengths = sequences.n_val[rows]
    assert len(set(rows)) == 3
    assert lengths.tolist() == sorted(lengths)
    ids = [str(sequences.users[row].as_py()) for row in rows]
    assert find_users(sequences, "test", ids) == rows


def test_what_is_missing_is_told_with_what_to_do(copy: Path) -> None:
    (copy / "recommender" / "training.json").unlink()
    shutil.rmtree(copy / "evaluation")
    path, missing = write_run_report(copy)
    assert [line.split(":")[0] for line in missing] == ["Results", "Learning curves", "Who is served well"]
    assert f"ray_jobs/train.py --config {copy / 'config.yaml'}" in text_of(path)
    with pytest.raises(ConfigError):
        write_run_report(copy / "nowhere")


def test_runs_are_drawn_side_by_side(copy: Path, tmp_path: Path) -> None:
    other = tmp_path / "other<b>"
    shutil.copytree(copy, other)
    content = write_run_report(copy, against=[other])[0].read_text()
    assert "other&lt;b&gt;" in content
    assert "other<b>" not in content
    assert content.count("HyMiRec (other&lt;b&gt;)") >= 1


def test_a_closed_form_has_neither_curve_nor_interests(copy: Path) -> None:
    values = yaml.safe_load((copy / "config.yaml").read_text()) | {"baseline": {"kind": "ease"}}
    (copy / "config.yaml").write_text(yaml.safe_dump(values))
    text = text_of(write_run_report(copy)[0])
    assert "closed form: nothing is trained" in text
    assert "has no interests to show" in text


def test_the_command(copy: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["report", str(copy), "--out", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    assert (tmp_path / "out" / "report.html").is_file()


def test_titles_are_escaped_everywhere() -> None:
    evil = '"><script>'
    drawn = line_chart(evil, [Line(evil, [(0, 1), (1, 2)], 1)], evil) + bar_chart(evil, [evil], [Bars(evil, [1])], evil)
    assert "<script>" not in drawn + table(evil, [evil], [[evil]])
    assert '"">' not in drawn


def test_values_that_are_not_finite_are_left_out() -> None:
    assert line_chart("t", [Line("a", [(0, float("nan"))])], "x") == ""
    drawn = line_chart("t", [Line("a", [(0, float("nan")), (1, 2.0)])], "x")
    assert 'aria-label="t. Lines by x. a: 2 at 1."' in drawn


def test_names_are_drawn_as_they_are_and_equal_pictures_are_equal_bytes() -> None:
    drawn = bar_chart("t", ["a"], [Bars("$x_1$ & $y", [0.5])], "x")
    assert "$x_1$ &amp; $y" in drawn
    assert drawn == bar_chart("t", ["a"], [Bars("$x_1$ & $y", [0.5])], "x")

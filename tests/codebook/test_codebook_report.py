"""The report's numbers by hand, its page and its plots."""

from __future__ import annotations

import json
import math
import shutil
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_run import build_tiny_run

from hymirec.codebook import EuclideanCodebook, Usage, quality_report, report_directory, to_markdown, write_report
from hymirec.codebook.report.directory import SAMPLE_ROWS, code_titles, sample_rows
from hymirec.codebook.report.plots import DARK

PLOTS = ("cosine", "load", "magnitudes", "recall")


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_run(tmp_path_factory.mktemp("tiny"))


def test_usage_is_what_a_hand_counts() -> None:
    usage = Usage.of(torch.tensor([1, 0, 3, 4]))
    assert usage.max_over_mean == 2.0
    assert usage.dead == 1
    # Mean absolute difference of all 16 pairs is 2 (1 + 2 + 3 + 3 + 4 + 1) / 16, over twice the mean of 2.
    assert usage.gini == pytest.approx(28 / 16 / 4)
    assert usage.cv == pytest.approx(math.sqrt((1 + 4 + 1 + 4) / 4) / 2, abs=1e-6)
    entropy = -sum(p * math.log(p) for p in (1 / 8, 3 / 8, 1 / 2))
    assert usage.perplexity == pytest.approx(math.exp(entropy), abs=1e-3)
    assert usage.load == (2.0, 1.5, 0.5, 0.0)


def test_equal_loads_and_a_single_one_are_the_ends_of_gini() -> None:
    even, single = Usage.of(torch.tensor([5] * 10)), Usage.of(torch.tensor([0] * 9 + [7]))
    assert (even.gini, even.perplexity, even.cv) == (0.0, 10.0, 0.0)
    assert (single.gini, single.perplexity, single.dead) == (0.9, 1.0, 9)


def test_usage_survives_json() -> None:
    usage = Usage.of(torch.tensor([1, 0, 3, 4]))
    assert Usage.parse(json.loads(json.dumps(vars(usage)))) == usage


def line_report() -> dict[str, Any]:
    """102 directions on a quarter circle, of which a hand-made codebook keeps the nearer of its two ends."""
    angle = np.linspace(0, math.pi / 2, 102)
    rows = np.stack([np.cos(angle), np.sin(angle)], 1).astype(np.float32)
    codebook = EuclideanCodebook(torch.tensor([[[1.0, 0.0], [0.0, 1.0]]]))
    return quality_report(codebook, rows, codebook.encode_items(rows))


def test_recall_and_cosine_of_a_tiny_case_are_what_a_hand_counts() -> None:
    report = line_report()
    angle = np.linspace(0, math.pi / 2, 102)
    near = np.minimum(angle, math.pi / 2 - angle)
    assert report["cosine_mean"] == pytest.approx(np.cos(near).mean(), abs=1e-6)
    assert report["per_layer"][0]["cosine_p50"] == pytest.approx(np.median(np.cos(near)), abs=1e-6)
    # 100 of the 101 others are neighbours: only the last one in each order is left out. True: the far end of the line.
    # Found: the last of the far half, because its rows are all alike and ties go to the first row. For the lower half
    # that is row 101 in both. For the upper half, true is row 0 and found is row 50.
    assert report["recall_at_100"] == pytest.approx((51 * 1.0 + 51 * 0.99) / 102, abs=1e-4)
    usage = report["per_layer"][0]["usage_argmax"]
    assert (usage["perplexity"], usage["gini"], usage["dead"]) == (2.0, 0.0, 0)


def test_layers_read_more_and_more(run_dir: Path) -> None:
    report = report_directory(run_dir)
    first, last = report["per_layer"]
    assert first["cosine_mean"] < last["cosine_mean"] == report["cosine_mean"]
    assert first["recall_at_100"] <= last["recall_at_100"] == report["recall_at_100"]
    assert first["bytes_read"] * 2 == last["bytes_read"] == report["bytes_per_item"]
    for row in report["per_layer"]:
        assert row["cosine_p05"] <= row["cosine_p25"] <= row["cosine_p50"] <= row["cosine_p75"] <= row["cosine_p95"]
        assert sum(row["magnitudes"]["counts"]) == report["rows"]


def test_titles_are_of_items_with_that_code_nearest_first(run_dir: Path) -> None:
    rows = np.array([[1, 0], [0.9, 0.1], [0.8, 0.3], [0, 1], [0.1, 1]], np.float32)
    codebook = EuclideanCodebook(torch.tensor([[[1.0, 0.0], [0.0, 1.0]]]))
    found = code_titles(codebook, rows, codebook.encode_items(rows), ["red", "rose", "red", "blue", "sky"])
    assert found == [
        {"layer": 1, "code": 0, "items": 3, "titles": ["red", "rose"]},
        {"layer": 1, "code": 1, "items": 2, "titles": ["blue", "sky"]},
    ]
    assert report_directory(run_dir)["titles"][0]["titles"]


def test_a_sample_is_spread_over_all_rows() -> None:
    assert sample_rows(7).tolist() == list(range(7))
    rows = sample_rows(1_000_003)
    assert len(rows) == SAMPLE_ROWS
    assert (np.diff(rows) > 0).all()
    assert rows[0] == 0
    assert rows[-1] > 940_000


def test_a_title_cannot_break_out_of_its_cell() -> None:
    report = line_report() | {"titles": [{"layer": 1, "code": 0, "items": 3, "titles": ["a|b\n![x](y) <b>", "z" * 90]}]}
    (line,) = [line for line in to_markdown(report).splitlines() if line.startswith("| 1 | 0 |")]
    assert r"a\|b !\[x\](y) \<b\>" in line
    assert "z" * 59 + "…" in line


def test_what_the_step_noted_of_the_fit_is_shown(run_dir: Path, tmp_path: Path) -> None:
    for name in ("embeddings", "codes", "data"):
        (tmp_path / name).symlink_to(run_dir / name)
    shutil.copytree(run_dir / "codebook", tmp_path / "codebook")
    assert "Fitted" not in to_markdown(report_directory(tmp_path))
    noted = {"kernel": "int8", "workers": 2, "layer_seconds": [1.5, 2.0], "seconds": 9.9}
    (tmp_path / "codebook" / "timing.json").write_text(json.dumps(noted))
    page = to_markdown(report_directory(tmp_path))
    assert "Fitted with kernel int8, 2 workers, 3.5 s (1.5 + 2.0 by layer)." in page


def test_page_numbers_and_plots_are_written_and_equal_runs_give_equal_bytes(run_dir: Path, tmp_path: Path) -> None:
    report = report_directory(run_dir)
    first, second = write_report(tmp_path / "a", report), write_report(tmp_path / "b", report)
    files = {"report.md", "report.json"} | {f"{name}.{kind}" for name in PLOTS for kind in ("svg", "png")}
    assert {path.name for path in first.iterdir()} == files
    for name in files:
        assert (first / name).read_bytes() == (second / name).read_bytes()
    assert json.loads((first / "report.json").read_text()) == report
    page = (first / "report.md").read_text()
    for name in PLOTS:
        root = ET.fromstring((first / f"{name}.svg").read_text())
        assert root.tag.endswith("svg")
        assert f"({name}.svg)" in page
        with Image.open(first / f"{name}.png") as image:
            assert image.width >= 800


def test_plots_know_a_dark_page(run_dir: Path, tmp_path: Path) -> None:
    out = write_report(tmp_path, report_directory(run_dir))
    for name in PLOTS:
        text = (out / f"{name}.svg").read_text()
        assert "prefers-color-scheme: dark" in text
        # The rules match colours as they are written; a colour that is nowhere would make its rule void.
        for light in DARK:
            drawn = text.split("</style>", 1)[1]
            assert f"fill: {light}" in drawn or f"stroke: {light}" in drawn


def test_a_kind_without_codes_leaves_no_plots_of_another_behind(tmp_path: Path) -> None:
    report = line_report()
    out = write_report(tmp_path, report)
    assert (out / "cosine.svg").exists()
    assert not (out / "magnitudes.svg").exists()
    write_report(tmp_path, report | {"centroids": 0, "per_layer": [{**report["per_layer"][0], "usage_argmax": {}}]})
    assert {path.name for path in out.iterdir()} == {"report.md", "report.json"}


def test_a_report_does_not_touch_the_codebook_nor_the_bundle(run_dir: Path, tmp_path: Path) -> None:
    from hymirec.artifacts import verify
    from hymirec.bundle import write_bundle
    from hymirec.config import PipelineConfig, load

    before = verify(run_dir / "bundle").id
    write_report(run_dir, report_directory(run_dir))
    verify(run_dir / "codebook")
    config = load(PipelineConfig, run_dir / "config.yaml")
    assert write_bundle(run_dir, config, tmp_path / "bundle").id == before

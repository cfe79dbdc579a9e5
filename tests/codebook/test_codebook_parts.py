"""Codes on disk, and the report on a run's directory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from codebook_workers import clustered

from hymirec.catalog.parts import part_name
from hymirec.catalog.vectors import read_vectors, write_vectors
from hymirec.codebook import (
    IdentityReducer,
    ItemCodes,
    ResidualCodebook,
    code_part,
    fit_codebook,
    item_codes,
    quality_report,
    report_directory,
    to_markdown,
)
from hymirec.config import CodebookConfig
from hymirec.errors import ArtifactDamagedError, ArtifactMissingError, ModelError

PART_ROWS = 120


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with embeddings in three parts, a codebook, and codes."""
    run = tmp_path_factory.mktemp("run")
    rows = clustered(300, 16)
    for number, start in enumerate(range(0, 300, PART_ROWS)):
        index = np.arange(start, min(start + PART_ROWS, 300), dtype=np.int32)
        write_vectors(run / "embeddings" / part_name(number), index, rows[index])
    vectors = read_vectors(run / "embeddings")
    config = CodebookConfig(layers=2, centroids=32, iterations=4, magnitudes="float16")
    fit_codebook(vectors, np.arange(300), config, 1, IdentityReducer()).save_pretrained(run / "codebook")
    codebook = ResidualCodebook.from_pretrained(run / "codebook")
    for part in sorted((run / "embeddings").iterdir()):
        code_part(codebook, part, run / "codes" / part.name)
    return run


def test_parts_together_are_the_codes_of_all_items(run_dir: Path) -> None:
    codes = ItemCodes.open(run_dir / "codes")
    codebook = ResidualCodebook.from_pretrained(run_dir / "codebook")
    expected = item_codes(codebook, read_vectors(run_dir / "embeddings"))
    assert codes.codes_NL.dtype == np.uint16
    assert codes.magnitudes_NL.dtype == np.float32
    assert np.array_equal(codes.codes_NL, expected.codes_NL)
    assert np.array_equal(codes.magnitudes_NL, expected.magnitudes_NL)
    assert (len(codes), codes.layers, codes.bytes_per_item) == (300, 2, 6)


def test_a_part_is_the_same_bytes_again(run_dir: Path, tmp_path: Path) -> None:
    codebook = ResidualCodebook.from_pretrained(run_dir / "codebook")
    assert code_part(codebook, run_dir / "embeddings" / part_name(1), tmp_path / part_name(1)) == PART_ROWS
    assert (tmp_path / part_name(1)).read_bytes() == (run_dir / "codes" / part_name(1)).read_bytes()


def test_magnitudes_may_be_fp32(run_dir: Path, tmp_path: Path) -> None:
    codebook = ResidualCodebook.from_pretrained(run_dir / "codebook")
    code_part(codebook, run_dir / "embeddings" / part_name(0), tmp_path / part_name(0), "float32")
    codes = ItemCodes.open(tmp_path)
    exact = codebook.encode(read_vectors(run_dir / "embeddings", 0, PART_ROWS))[1]
    assert np.array_equal(codes.magnitudes_NL, exact.numpy())
    assert codes.bytes_per_item == 10


def test_a_magnitude_beyond_fp16_is_refused(run_dir: Path) -> None:
    codebook = ResidualCodebook.from_pretrained(run_dir / "codebook")
    rows = np.ones((3, 16), np.float32)
    rows[2] = 60_000
    with pytest.raises(ModelError, match=r"row 2 .*magnitudes=float32"):
        item_codes(codebook, rows)


def test_codes_that_are_missing_or_out_of_order_are_named(run_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactMissingError):
        ItemCodes.open(tmp_path)
    (tmp_path / part_name(0)).write_bytes((run_dir / "codes" / part_name(1)).read_bytes())
    with pytest.raises(ArtifactDamagedError, match=r"part-00000.*0\.\.120"):
        ItemCodes.open(tmp_path)
    pq.write_table(pa.table({"index": pa.array([0], pa.int32())}), tmp_path / part_name(0))
    with pytest.raises(ArtifactDamagedError, match="holds no codes"):
        ItemCodes.open(tmp_path)


def test_the_report_counts_what_numpy_counts(run_dir: Path) -> None:
    report = report_directory(run_dir)
    vectors, codes = read_vectors(run_dir / "embeddings"), ItemCodes.open(run_dir / "codes")
    codebook = ResidualCodebook.from_pretrained(run_dir / "codebook")
    decoded = codebook.decode(codes.codes_NL, codes.magnitudes_NL).numpy()
    unit, near = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (vectors, decoded))
    cosines = (unit * near).sum(1)
    last = report["per_layer"][-1]
    assert report["cosine_mean"] == pytest.approx(cosines.mean(), abs=1e-5)
    assert last["cosine_p05"] == pytest.approx(np.percentile(cosines, 5), abs=1e-5)
    counts = np.bincount(codes.codes_NL[:, 0], minlength=32)
    first = report["per_layer"][0]
    assert first["usage_argmax"]["max_over_mean"] == pytest.approx(counts.max() / counts.mean(), abs=1e-5)
    assert first["usage_fitted"] == codebook.info["usage"][0]
    assert (report["bytes_per_item"], report["raw_bytes"], report["compression_ratio"]) == (6, 32, 5.33)
    true, found = unit @ unit.T, unit @ near.T
    for scores in (true, found):
        np.fill_diagonal(scores, -np.inf)
    sets = [[set(row) for row in np.argsort(-scores, axis=1)[:, :100]] for scores in (true, found)]
    recall = np.mean([len(a & b) / 100 for a, b in zip(*sets, strict=True)])
    assert report["recall_at_100"] == pytest.approx(recall, abs=2e-3)


def test_the_report_is_the_same_with_and_without_written_codes(run_dir: Path, tmp_path: Path) -> None:
    for name in ("embeddings", "codebook"):
        (tmp_path / name).symlink_to(run_dir / name)
    assert report_directory(tmp_path) == report_directory(run_dir)


def test_a_page_shows_every_layer(run_dir: Path) -> None:
    page = to_markdown(report_directory(run_dir))
    assert "6 bytes an item instead of 32" in page
    assert all(any(line.startswith(f"| {layer} |") for line in page.splitlines()) for layer in (1, 2))


def test_a_lossless_codebook_reports_perfect_figures() -> None:
    rows = clustered(20, 8)
    codebook = ResidualCodebook(torch.from_numpy(rows)[None])
    report = quality_report(codebook, rows, item_codes(codebook, rows, "float32"))
    assert report["cosine_mean"] == pytest.approx(1.0, abs=1e-6)
    assert report["recall_at_100"] == 1.0
    assert report["per_layer"][0]["usage_argmax"]["dead"] == 0
    single = quality_report(codebook, rows[:1], item_codes(codebook, rows[:1]))
    assert single["recall_at_100"] == 1.0
    zero = quality_report(codebook, 0 * rows, item_codes(codebook, 0 * rows))
    assert zero["cosine_mean"] == 0.0

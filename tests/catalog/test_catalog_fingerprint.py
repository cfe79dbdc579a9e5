"""The fingerprint of a source changes when, and only when, a source file does."""

from __future__ import annotations

from pathlib import Path

import pytest

from hymirec.catalog.fingerprint import source_fingerprint
from hymirec.config import DataConfig
from hymirec.errors import DataError


def fingerprint(path: Path | str) -> str:
    return source_fingerprint(DataConfig(kind="parquet", path=str(path)))


def test_a_changed_file_changes_the_fingerprint_and_a_copy_does_not(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "items.csv").write_text("item,title\n1,x\n")
    before = fingerprint(tmp_path / "a")
    assert fingerprint(tmp_path / "b") == before
    (tmp_path / "a" / "items.csv").write_text("item,title\n1,y\n")
    assert fingerprint(tmp_path / "a") != before


def test_a_source_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="names no file"):
        fingerprint(tmp_path / "nowhere")


def test_data_without_a_path_is_known_by_its_kind() -> None:
    kinds = ("online-retail", "synthetic")
    assert len({source_fingerprint(DataConfig(kind=kind)) for kind in kinds}) == 2  # type: ignore[arg-type]

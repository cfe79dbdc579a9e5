"""The table of an ablation, against values worked out by hand."""

from __future__ import annotations

import numpy as np

from hymirec.evaluation.ablation import Failure, RunFigures, VariantRuns, ablation_rows, to_markdown


def figures(recall: list[float], targets: str = "same", **costs: float) -> RunFigures:
    values = np.array(recall)
    return RunFigures(
        items=100,
        targets=targets,
        per_user={"R@10": values, "N@10": values / 2, "R@200": np.ones(len(recall)), "N@200": values},
        costs=costs or {"overlap": 0.5, "bytes_per_item": 5.0, "seconds": 60.0, "peak_rss_mb": 700.0},
    )


BASE = VariantRuns("base", (), {1: figures([1, 0, 0, 0]), 2: figures([1, 1, 0, 0])})


def test_a_row_is_the_mean_over_seeds_and_users_and_its_difference_to_the_base() -> None:
    better = VariantRuns("better", ("a.b=c",), {1: figures([1, 1, 1, 0]), 2: figures([1, 1, 0, 1], seconds=90.0)})
    base, row = ablation_rows([BASE, better], "base", 200, 0)
    assert (base["R@10"], row["R@10"], row["R@10_diff"]) == (0.375, 0.75, 0.375)
    assert (base["N@10"], row["N@10"], row["N@10_diff"]) == (0.1875, 0.375, 0.1875)
    assert row["R@10_by_seed"] == {"1": 0.75, "2": 0.75}
    assert (row["users"], row["items"], row["seeds"], row["set"]) == (4, 100, [1, 2], ["a.b=c"])
    assert row["seconds"] == 75.0
    assert "overlap" not in row
    assert base["overlap"] == 0.5
    assert "R@10_diff" not in base
    low, high = row["R@10_ci"]
    assert 0 <= low < 0.75 < high <= 1


def test_the_p_value_is_small_where_users_agree_and_large_where_they_do_not() -> None:
    rng = np.random.default_rng(0)
    chance = rng.random(500)
    base = VariantRuns("base", (), {1: figures((chance < 0.3).astype(float).tolist())})
    up = VariantRuns("up", (), {1: figures((chance < 0.4).astype(float).tolist())})
    same = VariantRuns("same", (), {1: figures((rng.permutation(chance) < 0.3).astype(float).tolist())})
    _, up_row, same_row = ablation_rows([base, up, same], "base", 500, 0)
    assert up_row["R@10_p"] < 0.01
    assert same_row["R@10_p"] > 0.5


def test_only_seeds_that_both_have_are_compared() -> None:
    one = VariantRuns("one", (), {2: figures([1, 1, 1, 1])})
    row = ablation_rows([BASE, one], "base", 0, 0)[1]
    assert row["R@10_diff"] == 0.5
    assert "R@10_p" not in row
    other = VariantRuns("other", (), {3: figures([1, 1, 1, 1])})
    assert "R@10_diff" not in ablation_rows([BASE, other], "base", 0, 0)[1]


def test_runs_with_other_targets_are_not_compared_and_their_users_stand_side_by_side() -> None:
    other = VariantRuns("other", (), {1: figures([1, 1, 1, 1], "others"), 2: figures([1, 0])})
    row = ablation_rows([BASE, other], "base", 100, 0)[1]
    assert "R@10_diff" not in row
    assert row["R@10"] == 0.75


def test_a_base_that_failed_leaves_rows_without_differences() -> None:
    (row,) = ablation_rows([VariantRuns("base", (), {}), VariantRuns("x", (), BASE.runs)], "base", 0, 0)
    assert row["variant"] == "x"
    assert "R@10_diff" not in row


def test_markdown_has_one_line_a_variant_what_it_changes_and_who_failed() -> None:
    better = VariantRuns("better", ("a.b=c",), {1: figures([1, 1, 1, 0]), 2: figures([1, 1, 0, 1])})
    rows = ablation_rows([BASE, better], "base", 200, 0)
    text = to_markdown("name", rows, [Failure("broken", 7, "no such model")])
    header, rule, *lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len(lines) == 2
    assert all(line.count("|") == header.count("|") == rule.count("|") for line in lines)
    cells = dict(zip([h.strip() for h in header.split("|")], [c.strip() for c in lines[1].split("|")], strict=True))
    assert (cells["variant"], cells["R@10"], cells["R@10 - base"]) == ("better", "0.7500", "+0.3750")
    assert (cells["bytes an item"], cells["seconds"], cells["peak MB"], cells["runs"]) == ("5", "60", "700", "2")
    assert "- better: `a.b=c`" in text
    assert "- `broken`, seed 7: no such model" in text


def test_markdown_without_any_row_still_names_the_failures() -> None:
    assert "- `broken`, seed 7: out of memory" in to_markdown("name", [], [Failure("broken", 7, "out of memory")])


def test_other_cut_offs_are_shown_where_there_is_no_10() -> None:
    run = RunFigures(10, "same", {name: np.array([0.0, 1.0]) for name in ("R@5", "R@9", "N@5", "N@9")}, {})
    rows = ablation_rows([VariantRuns("base", (), {1: run})], "base", 10, 0)
    assert "| R@5 | R@9 | N@5 | N@9 |" in to_markdown("name", rows, [])

"""The prepared catalogue: order, repeats, splits, popularity, and equal bytes for equal inputs."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hymirec.artifacts import hash_file
from hymirec.catalog.keys import item_key
from hymirec.catalog.normalise import Tables
from hymirec.catalog.prepare import prepare
from hymirec.catalog.prepared import Catalog, Sequences
from hymirec.config import DataConfig
from hymirec.errors import DataError

Event = tuple[Any, Any, int]


def tables(events: list[Event], items: list[Any], titles: list[str | None] | None = None) -> Tables:
    user, item, ts = (list(column) for column in zip(*events, strict=True))
    titles = titles or [f"t{i}" for i in items]
    return Tables(
        pa.table({"item": items, "title": pa.array(titles, pa.string())}),
        pa.table({"user": user, "item": item, "ts": ts}),
    )


def config(**change: Any) -> DataConfig:
    return DataConfig(min_user_interactions=3, **change)


def histories(out: Path) -> dict[Any, list[Any]]:
    catalog, sequences = Catalog.open(out), Sequences.open(out)
    ends = sequences.offsets
    return {
        sequences.users[u].as_py(): [catalog.item_id(int(i)) for i in sequences.items[ends[u] : ends[u + 1]]]
        for u in range(len(sequences))
    }


EVENTS: list[Event] = [(2, 30, 5), (1, 10, 3), (1, 20, 1), (2, 10, 5), (1, 30, 2), (2, 20, 4), (1, 10, 4), (3, 10, 1)]


def test_events_are_in_time_order_and_ties_keep_file_order(tmp_path: Path) -> None:
    prepare(tables(EVENTS, [30, 10, 20]), config(), tmp_path)
    assert histories(tmp_path) == {1: [20, 30, 10], 2: [20, 30, 10]}


def test_items_are_numbered_in_order_of_their_id(tmp_path: Path) -> None:
    prepare(tables(EVENTS, [30, 10, 20, 9]), config(), tmp_path)
    assert Catalog.open(tmp_path).item_ids.to_pylist() == [9, 10, 20, 30]


def test_string_ids_are_numbered_by_their_bytes(tmp_path: Path) -> None:
    events = [(f"u{user}", str(item), ts) for user, item, ts in EVENTS]
    prepare(tables(events, ["30", "10", "20", "9", "é", "Z"]), config(), tmp_path)
    catalog = Catalog.open(tmp_path)
    assert catalog.id_type == "string"
    assert catalog.item_ids.to_pylist() == ["10", "20", "30", "9", "Z", "é"]
    assert histories(tmp_path) == {"u1": ["20", "30", "10"], "u2": ["20", "30", "10"]}


def test_repeats_are_kept_when_asked(tmp_path: Path) -> None:
    prepare(tables(EVENTS, [10, 20, 30]), config(repeats="keep"), tmp_path)
    assert histories(tmp_path)[1] == [20, 30, 10, 10]


def test_users_are_counted_after_repeats(tmp_path: Path) -> None:
    repeated = [*EVENTS, (3, 10, 2), (3, 10, 3), (3, 10, 4)]
    stats = prepare(tables(repeated, [10, 20, 30]), config(), tmp_path)
    assert set(histories(tmp_path)) == {1, 2}
    assert stats["left_out"] == {"repeats": 4, "users": 1, "interactions_of_users": 1, "items": 0}


def test_leave_one_out_holds_the_last_two_events(tmp_path: Path) -> None:
    stats = prepare(tables(EVENTS, [10, 20, 30]), config(repeats="keep"), tmp_path)
    sequences = Sequences.open(tmp_path)
    items = {name: sequences.targets(0, name)[0].tolist() for name in ("train", "validation", "test")}  # type: ignore[arg-type]
    assert items == {"train": [1, 2], "validation": [0], "test": [0]}
    assert sequences.history(0, "validation")[0].tolist() == [1, 2]
    assert sequences.history(0, "test")[0].tolist() == [1, 2, 0]
    assert sequences.history(0, "train")[0].tolist() == []
    assert sequences.targets(0, "test")[1].tolist() == [4]
    assert stats["split"] == {"train": 3, "validation": 2, "test": 2}


def test_a_global_cut_is_one_time_for_all_users(tmp_path: Path) -> None:
    events = [(user, item, 10 * item + user) for user in range(4) for item in range(10)]
    prepare(
        tables(events, list(range(10))), config(split="global-time", validation_share=0.2, test_share=0.1), tmp_path
    )
    sequences = Sequences.open(tmp_path)
    parts = {
        name: np.concatenate([sequences.targets(u, name)[1] for u in range(4)])  # type: ignore[arg-type]
        for name in ("train", "validation", "test")
    }
    assert [len(parts[name]) for name in ("train", "validation", "test")] == [28, 8, 4]
    assert parts["train"].max() < parts["validation"].min() <= parts["validation"].max() < parts["test"].min()


def test_a_global_cut_never_parts_events_of_one_time(tmp_path: Path) -> None:
    times = [0, 0, 0, 1, 1, 1, 1, 2, 2, 2]
    events = [(1, item, ts) for item, ts in enumerate(times)]
    prepare(
        tables(events, list(range(10))), config(split="global-time", validation_share=0.2, test_share=0.2), tmp_path
    )
    sequences = Sequences.open(tmp_path)
    assert (sequences.n_train[0], sequences.n_val[0]) == (3, 7)


def test_a_global_cut_that_leaves_a_part_empty_says_what_to_change(tmp_path: Path) -> None:
    events = [(1, item, 5) for item in range(10)]
    with pytest.raises(DataError, match=r"no event for training, validation.*validation_share"):
        prepare(tables(events, list(range(10))), config(split="global-time"), tmp_path)


def test_popularity_counts_training_events_only(tmp_path: Path) -> None:
    events = [(user, item, ts) for user in (1, 2) for ts, item in enumerate([10, 20, 30, 40])]
    prepare(tables(events, [10, 20, 30, 40, 50]), config(), tmp_path)
    assert Catalog.open(tmp_path).popularity.tolist() == [2, 2, 0, 0, 0]


def test_unseen_items_are_kept_or_dropped(tmp_path: Path) -> None:
    source = tables(EVENTS, [5, 10, 20, 25, 30])
    prepare(source, config(), tmp_path / "keep")
    stats = prepare(source, config(unseen_items="drop"), tmp_path / "drop")
    assert Catalog.open(tmp_path / "keep").size == 5
    assert Catalog.open(tmp_path / "drop").item_ids.to_pylist() == [10, 20, 30]
    assert stats["left_out"]["items"] == 2
    assert histories(tmp_path / "keep") == histories(tmp_path / "drop")


def test_titles_and_texts_have_defined_fallbacks(tmp_path: Path) -> None:
    stats = prepare(tables(EVENTS, [10, 20, 30], [" A  b ", None, ""]), config(), tmp_path)
    catalog = Catalog.open(tmp_path)
    assert catalog.titles.to_pylist() == ["A b", "", ""]
    assert catalog.texts(0) == ["Title: A b", "", ""]
    assert stats["items_without_text"] == 2


def test_no_user_left_says_what_to_change(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"min_user_interactions=7 .* most active of 3 has 4.*lower it"):
        prepare(tables(EVENTS, [10, 20, 30]), DataConfig(min_user_interactions=7, repeats="keep"), tmp_path)


def test_an_unknown_item_is_an_error_and_not_a_wrong_number(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="hymirec validate"):
        prepare(tables(EVENTS, [10, 20]), config(), tmp_path)


def test_equal_inputs_give_equal_bytes_and_remains_are_removed(tmp_path: Path) -> None:
    source = tables(EVENTS, [10, 20, 30])
    prepare(source, config(part_rows=1), tmp_path / "b")
    for name in ("a", "b"):
        prepare(source, config(part_rows=2), tmp_path / name)
    hashes = [
        {p.relative_to(tmp_path / name): hash_file(p) for p in (tmp_path / name).rglob("*") if p.is_file()}
        for name in ("a", "b")
    ]
    assert hashes[0] == hashes[1]
    assert {p.as_posix() for p in hashes[0]} == {
        "items/part-00000.parquet",
        "items/part-00001.parquet",
        "sequences.parquet",
        "stats.json",
    }


def test_the_stats_say_what_is_there(tmp_path: Path) -> None:
    stats = prepare(tables(EVENTS, [10, 20, 30, 40]), config(), tmp_path)
    assert json.loads((tmp_path / "stats.json").read_text()) == stats
    assert (stats["users"], stats["items"], stats["interactions"], stats["mean_length"]) == (2, 4, 6, 3.0)
    assert (stats["density"], stats["cold_items"], stats["first_ts"], stats["last_ts"]) == (0.75, 3, 1, 5)


@settings(max_examples=60, deadline=None)
@given(
    events=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 6), st.integers(0, 5)), min_size=1, max_size=60),
    repeats=st.sampled_from(["keep", "first"]),
)
def test_histories_are_those_of_a_plain_loop(
    tmp_path_factory: pytest.TempPathFactory, events: list[Event], repeats: str
) -> None:
    expected: dict[int, list[int]] = {}
    for user, item, _ in sorted(events, key=lambda e: (e[0], e[2])):
        history = expected.setdefault(user, [])
        if repeats == "keep" or item not in history:
            history.append(item)
    expected = {user: history for user, history in expected.items() if len(history) >= 3}
    out = tmp_path_factory.mktemp("prepared")
    source = tables(events, list(range(7)))
    if not expected:
        with pytest.raises(DataError):
            prepare(source, config(repeats=repeats), out)
        return
    prepare(source, config(repeats=repeats, part_rows=3), out)
    assert histories(out) == expected
    counts = Counter(item for history in expected.values() for item in history[:-2])
    assert Catalog.open(out).popularity.tolist() == [counts[item] for item in range(7)]
    assert Catalog.open(out).keys.tolist() == [item_key(item) for item in range(7)]

"""Recommendations for everyone: each user's are what that user would get alone, from histories in any form."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny_run import ITEMS, build_tiny_run, trending

from hymirec.artifacts import read_manifest, verify
from hymirec.batch import Batch, BatchOptions, cut_histories, recommend_all, recommend_part
from hymirec.catalog.keys import item_key
from hymirec.catalog.prepared import Catalog, Sequences
from hymirec.config import HistoryConfig
from hymirec.errors import ArtifactDamagedError, ArtifactError, ConfigError, DataError
from hymirec.history import open_store
from hymirec.history.archive import export_store
from hymirec.history.backfill import fold_shard, sharded, take_in
from hymirec.inference import HyMiRec
from hymirec.recommender.trend import Trend

K = 7


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_run(tmp_path_factory.mktemp("batch"))


def histories_of(run_dir: Path) -> dict[str, list[tuple[str, int]]]:
    sequences, catalog = Sequences.open(run_dir / "data"), Catalog.open(run_dir / "data")
    bounds = sequences.offsets
    return {
        user: [
            (str(catalog.item_id(int(item))), int(at))
            for item, at in zip(
                sequences.items[bounds[row] : bounds[row + 1]], sequences.ts[bounds[row] : bounds[row + 1]], strict=True
            )
        ]
        for row, user in enumerate(sequences.users.to_pylist())
    }


def lists_of(batch: Batch) -> dict[str, list[tuple[int, str, float, int | None, str]]]:
    """Rows by user, in order of the parts."""
    found: dict[str, list[tuple[int, str, float, int | None, str]]] = {}
    for path in sorted(batch.out.glob("part-*.parquet")):
        for row in pq.read_table(path).to_pylist():
            own = (row["rank"], row["item"], row["score"], row["interest"], row["bundle"])
            found.setdefault(row["user"], []).append(own)
    return found


def test_everyone_of_a_run_gets_what_recommend_many_gives(run_dir: Path, tmp_path: Path) -> None:
    base = trending(run_dir, tmp_path / "trending", Trend(0.2, 30.0))
    batch = Batch.plan(base, run_dir / "data", tmp_path / "out", BatchOptions(K, batch=16), part_users=20)
    manifest = recommend_all(batch)
    histories = histories_of(run_dir)
    assert manifest.info == {"users": len(histories), "k": K, "bundle": read_manifest(base).id}
    assert len(list(batch.out.glob("part-*.parquet"))) == 3
    now = max(at for history in histories.values() for _, at in history) + 1
    model = HyMiRec.from_pretrained(base)
    expected = model.recommend_many(list(histories.values()), K, now=now)
    found = lists_of(batch)
    assert list(found) == list(histories)
    for rows, answer in zip(found.values(), expected, strict=True):
        assert [row[0] for row in rows] == list(range(1, K + 1))
        assert [row[1] for row in rows] == [item.item_id for item in answer.items]
        assert [row[3] for row in rows] == [item.interest for item in answer.items]
        assert {row[4] for row in rows} == {model.bundle_id}
        assert np.allclose([row[2] for row in rows], [item.score for item in answer.items], atol=1e-5)


def test_histories_come_in_any_form(run_dir: Path, tmp_path: Path) -> None:
    histories = histories_of(run_dir)
    pairs = [(user, item, at) for user, history in histories.items() for item, at in history]
    # Everyone's events mixed by time; users of lists in their own order.
    mixed = sorted(pairs, key=lambda row: (row[2], row[0]))
    user, item, ts = zip(*mixed, strict=True)
    long = tmp_path / "interactions.parquet"
    pq.write_table(pa.table({"ts": ts, "item": item, "user": user}), long)
    split = {
        "user": list(histories),
        "items": [[item for item, _ in history] for history in histories.values()],
        "ts": [[at for _, at in history] for history in histories.values()],
    }
    (tmp_path / "lists").mkdir()
    pq.write_table(pa.table(split).slice(0, 11), tmp_path / "lists" / "a.parquet", row_group_size=4)
    pq.write_table(pa.table(split).slice(11), tmp_path / "lists" / "b.parquet")
    with_store = HistoryConfig(path=str(tmp_path / "store"), sync=False)
    store = open_store(with_store)
    folded = fold_shard(sharded(long, 0, 1), with_store.model_dump())
    take_in(store, iter([folded]))
    export_store(store, "events", tmp_path / "export")
    store.close()
    options = BatchOptions(K, now=1_800_000_000)
    places = {"run": run_dir / "data", "long": long, "lists": tmp_path / "lists", "export": tmp_path / "export"}
    answers = {}
    for name, place in places.items():
        batch = Batch.plan(run_dir / "bundle", place, tmp_path / f"out-{name}", options, part_users=25)
        recommend_all(batch)
        answers[name] = {user: [row[1] for row in rows] for user, rows in lists_of(batch).items()}
    assert answers["long"] == answers["lists"] == answers["export"] == answers["run"]


def test_unknown_users_and_items_get_what_is_popular(run_dir: Path, tmp_path: Path) -> None:
    model = HyMiRec.from_pretrained(run_dir / "bundle")
    everything = [str(item) for item in model.bundle.catalog.item_ids.to_pylist()]
    table = pa.table(
        {
            "user": [7, 5, 6],
            "items": [["never heard of"], [], everything],
            "ts": [[1], [], list(range(ITEMS))],
        }
    )
    pq.write_table(table, tmp_path / "lists.parquet")
    batch = Batch.plan(run_dir / "bundle", tmp_path / "lists.parquet", tmp_path / "out", BatchOptions(K), 2)
    assert recommend_all(batch).info["users"] == 3
    found = lists_of(batch)
    popular = [item.item_id for item in model.recommend([], K).items]
    # Who has seen everything gets nothing, and is answered all the same.
    assert {user: [row[1] for row in rows] for user, rows in found.items()} == {7: popular, 5: popular}
    assert {row[3] for row in found[7]} == {None}


def test_a_kill_at_any_moment_and_the_same_again_end_in_the_same_bytes(run_dir: Path, tmp_path: Path) -> None:
    def plan() -> Batch:
        return Batch.plan(run_dir / "bundle", run_dir / "data", tmp_path / "out", BatchOptions(K), part_users=10)

    whole = recommend_all(plan())
    parts = sorted(tmp_path.glob("out/part-*"))
    kept = {path.name: path.read_bytes() for path in parts}
    shutil.rmtree(tmp_path / "out")
    # Killed with two parts answered, a third one cut off in the middle, and a temporary file.
    batch = plan()
    batch.cut()
    for name in list(kept)[:2]:
        (batch.out / name).write_bytes(kept[name])
    (batch.out / list(kept)[2]).write_bytes(kept[list(kept)[2]][:50])
    (batch.out / ".part-00003.parquet.half").write_bytes(b"half")
    times = {name: (batch.out / name).stat().st_mtime_ns for name in list(kept)[:2]}
    assert recommend_all(plan()) == whole
    assert times == {name: (batch.out / name).stat().st_mtime_ns for name in times}
    assert verify(batch.out) == whole
    # A part of another cut is no answer.
    shutil.rmtree(tmp_path / "out")
    batch = plan()
    options = batch.cut()
    smaller = tmp_path / "smaller"
    cut_histories(run_dir / "data", smaller, 9)
    recommend_part(
        HyMiRec.from_pretrained(run_dir / "bundle"), smaller / "part-00000.parquet", batch.out / parts[0].name, options
    )
    assert recommend_all(plan()) == whole


def test_what_cannot_be_used_is_named(run_dir: Path, tmp_path: Path) -> None:
    def refused(columns: dict[str, list[object]], message: str) -> None:
        pq.write_table(pa.table(columns), tmp_path / "wrong.parquet")
        with pytest.raises(DataError, match=message):
            cut_histories(tmp_path / "wrong.parquet", tmp_path / "parts", 10)

    refused({"user": [1], "item": [1]}, "has the columns user, item; expected")
    refused({"user": [1], "item": [None], "ts": [1]}, "item must not be empty")
    refused({"user": [1], "item": [1], "ts": [1 << 40]}, "expected seconds since 1970")
    refused({"user": [1], "items": [[1, 2]], "ts": [[1]]}, "lists of equal length")
    refused({"user": [1], "items": [[1, 2]], "ts": [[1, None]]}, "without nulls")
    with pytest.raises(DataError, match="neither the data of a run nor Parquet"):
        cut_histories(tmp_path / "nowhere", tmp_path / "parts", 10)
    bundle = run_dir / "bundle"
    with pytest.raises(ArtifactError, match="holds something else"):
        Batch.plan(bundle, run_dir / "data", run_dir / "encoder", BatchOptions(K))
    batch = Batch.plan(bundle, run_dir / "data", tmp_path / "out", BatchOptions(K))
    batch.cut()
    with pytest.raises(ConfigError, match="is not known"):
        recommend_part(
            HyMiRec.from_pretrained(bundle), batch.requests_dir / "part-00000.parquet", batch.out / "x", batch.options
        )
    shutil.copytree(bundle, tmp_path / "damaged")
    (tmp_path / "damaged" / "index.faiss").write_bytes(b"")
    with pytest.raises(ArtifactDamagedError, match=r"index\.faiss"):
        Batch.plan(tmp_path / "damaged", run_dir / "data", tmp_path / "other", BatchOptions(K))


def test_numbers_and_strings_name_the_same_item(tmp_path: Path) -> None:
    pq.write_table(pa.table({"user": ["a"], "items": [[42, 7]], "ts": [[1, 2]]}), tmp_path / "numbers.parquet")
    cut_histories(tmp_path / "numbers.parquet", tmp_path / "parts", 10)
    keys = pq.read_table(tmp_path / "parts")["item_key"].to_pylist()
    assert keys == [[item_key("42"), item_key("7")]]

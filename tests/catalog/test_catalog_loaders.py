"""Every named data set and any directory of the two tables becomes the same pair of tables."""

from __future__ import annotations

import gzip
import lzma
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest

import hymirec
from hymirec.catalog.normalise import Tables
from hymirec.catalog.prepare import prepare
from hymirec.catalog.tables import load_tables
from hymirec.catalog.validation import find_problems
from hymirec.config import DataConfig
from hymirec.errors import DataError

SHARED = Path(hymirec.__file__).resolve().parents[2] / "shared" / "data"
ITEMS = pa.table({"item": pa.array([1, 2], pa.int32()), "title": ["a", "b"], "price": [1.0, 2.0]})
INTERACTIONS = pa.table({"user": ["u", "v"], "item": pa.array([2, 1], pa.int32()), "ts": [5, 6], "rating": [1, 2]})


def load(kind: Any, path: object = None) -> Tables:
    return load_tables(DataConfig(kind=kind, path=None if path is None else str(path)), seed=17)


def assert_plain(tables: Tables) -> None:
    assert tables.items["item"].to_pylist() == [1, 2]
    assert tables.interactions.to_pydict() == {"user": ["u", "v"], "item": [2, 1], "ts": [5, 6]}
    assert find_problems(tables.items, tables.interactions) == []


# -- any directory of the two tables ----------------------------------------------------------------------------------


def test_two_parquet_files(tmp_path: Path) -> None:
    pq.write_table(ITEMS, tmp_path / "items.parquet")
    pq.write_table(INTERACTIONS, tmp_path / "interactions.parquet")
    (tmp_path / "README.txt").write_text("not a table")
    assert_plain(load("parquet", tmp_path))
    assert_plain(load("parquet", f"file://{tmp_path}"))
    assert_plain(load("parquet", f"{tmp_path}/*.parquet"))


def test_directories_of_parts_are_read_in_order_of_name(tmp_path: Path) -> None:
    for name, table in (("items", ITEMS), ("interactions", INTERACTIONS)):
        (tmp_path / name).mkdir()
        pq.write_table(table.slice(1), tmp_path / name / "part-2.parquet")
        pq.write_table(table.slice(0, 1), tmp_path / name / "part-1.parquet")
        (tmp_path / name / "_SUCCESS").touch()
    assert_plain(load("parquet", tmp_path))


def test_csv_files_plain_and_compressed(tmp_path: Path) -> None:
    pacsv.write_csv(ITEMS, tmp_path / "items.csv")
    pacsv.write_csv(INTERACTIONS, tmp_path / "plain.csv")
    (tmp_path / "interactions.csv.gz").write_bytes(gzip.compress((tmp_path / "plain.csv").read_bytes()))
    assert_plain(load("parquet", tmp_path))


def test_only_an_empty_cell_of_a_csv_is_null(tmp_path: Path) -> None:
    (tmp_path / "items.csv").write_text("item,title\na,NA\nNULL,\n")
    (tmp_path / "interactions.csv").write_text("user,item,ts\n1,NULL,2022-01-01T00:00:10\n")
    tables = load("parquet", tmp_path)
    assert tables.items.to_pydict() == {"item": ["a", "NULL"], "title": ["NA", None]}
    assert tables.interactions.to_pydict() == {"user": [1], "item": ["NULL"], "ts": [1640995210]}


def test_a_file_system_by_url() -> None:
    memory = fsspec.filesystem("memory")
    for name, table in (("items", ITEMS), ("interactions", INTERACTIONS)):
        with memory.open(f"/shop/{name}.parquet", "wb") as f:
            pq.write_table(table, f)
    try:
        assert_plain(load("parquet", "memory://shop"))
    finally:
        memory.rm("/shop", recursive=True)


def test_parts_with_integers_of_two_widths_go_together(tmp_path: Path) -> None:
    pq.write_table(ITEMS, tmp_path / "items.parquet")
    (tmp_path / "interactions").mkdir()
    pq.write_table(INTERACTIONS.slice(0, 1), tmp_path / "interactions" / "1.parquet")
    wide = INTERACTIONS.slice(1).set_column(1, "item", pa.array([1], pa.int64()))
    pq.write_table(wide, tmp_path / "interactions" / "2.parquet")
    assert_plain(load("parquet", tmp_path))


def test_parts_of_two_types_are_refused(tmp_path: Path) -> None:
    pq.write_table(INTERACTIONS, tmp_path / "interactions.parquet")
    pq.write_table(ITEMS, tmp_path / "items-1.parquet")
    pq.write_table(ITEMS.set_column(0, "item", pa.array(["x", "y"])), tmp_path / "items-2.parquet")
    with pytest.raises(DataError, match="the files of items do not have one schema"):
        load("parquet", tmp_path)


def test_a_missing_table_is_named_with_what_is_there(tmp_path: Path) -> None:
    pq.write_table(ITEMS, tmp_path / "items.parquet")
    with pytest.raises(DataError, match=r"no interactions table.*found items\.parquet"):
        load("parquet", tmp_path)


@pytest.mark.parametrize("path", ["nowhere", "nowhere/*.parquet", "memory://nowhere", "nosuchscheme://x"])
def test_a_place_that_is_not_there_is_named(tmp_path: Path, path: str) -> None:
    with pytest.raises(DataError, match=r"data\.path="):
        load("parquet", path if ":" in path else tmp_path / path)


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    pq.write_table(ITEMS, tmp_path / "items.parquet")
    (tmp_path / "interactions.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(DataError, match=r"interactions\.parquet cannot be read"):
        load("parquet", tmp_path)


def test_a_column_that_is_missing_is_left_to_validation(tmp_path: Path) -> None:
    pq.write_table(ITEMS, tmp_path / "items.parquet")
    pq.write_table(INTERACTIONS.drop_columns(["ts"]), tmp_path / "interactions.parquet")
    tables = load("parquet", tmp_path)
    assert find_problems(tables.items, tables.interactions)[0].startswith("interactions: no column ts")


# -- online-retail ----------------------------------------------------------------------------------------------------


def test_online_retail_ships_with_the_package() -> None:
    tables = load("online-retail")
    assert (tables.items.num_rows, tables.interactions.num_rows) == (3665, 397_884)
    assert tables.items.column_names == ["item", "title"]
    assert find_problems(tables.items, tables.interactions) == []
    directory = Path(hymirec.__file__).parent / "catalog" / "data" / "online_retail"
    assert "CC BY 4.0" in (directory / "ATTRIBUTION.md").read_text()
    assert sum(p.stat().st_size for p in directory.iterdir()) <= 2_000_000


# -- movielens-1m -----------------------------------------------------------------------------------------------------

MOVIES = '1::Toy Story (1995)::Animation|Children\'s\n2::Léon: "The" Professional (1994)::Crime\n'
RATINGS = "1::2::5::978300760\n1::1::3::978302109\n2::1::4::978301968\n"


@pytest.mark.parametrize("name", ["ratings.dat", "ratings.dat.xz"])
def test_movielens_as_published(tmp_path: Path, name: str) -> None:
    (tmp_path / "movies.dat").write_bytes(MOVIES.encode("latin-1"))
    data = RATINGS.encode()
    (tmp_path / name).write_bytes(lzma.compress(data) if name.endswith(".xz") else data)
    (tmp_path / "users.dat").write_text("1::F::1::10::48067\n")
    tables = load("movielens-1m", tmp_path)
    assert tables.items.to_pydict() == {
        "item": [1, 2],
        "title": ["Toy Story (1995)", 'Léon: "The" Professional (1994)'],
        "genres": ["Animation|Children's", "Crime"],
    }
    assert tables.interactions.to_pydict() == {
        "user": [1, 1, 2],
        "item": [2, 1, 1],
        "ts": [978300760, 978302109, 978301968],
    }


def test_movielens_with_a_file_missing_or_broken(tmp_path: Path) -> None:
    (tmp_path / "movies.dat").write_text(MOVIES)
    with pytest.raises(DataError, match=r"expected movies\.dat and ratings\.dat.*grouplens"):
        load("movielens-1m", tmp_path)
    (tmp_path / "ratings.dat").write_text("1::2\n")
    with pytest.raises(DataError, match=r"ratings\.dat: expected lines of user::item::rating::ts"):
        load("movielens-1m", tmp_path)


# The data may not be redistributed, so it is not everywhere; its two formats are tested above on rows of our own.
if (SHARED / "ml-1m").is_dir():

    @pytest.mark.parametrize("published", [False, True])
    def test_movielens_1m_has_the_published_size(tmp_path: Path, published: bool) -> None:
        source = SHARED / "ml-1m"
        if published:
            for name in ("movies.dat", "ratings.dat.xz"):
                (tmp_path / name).symlink_to(source / name)
        config = DataConfig(
            kind="movielens-1m",
            path=str(tmp_path if published else source),
            min_user_interactions=60,
            unseen_items="drop",
        )
        stats = prepare(load_tables(config, 0), config, tmp_path / "out")
        assert (stats["users"], stats["items"], stats["interactions"]) == (3938, 3677, 924_053)
        assert stats["text_columns"] == ["title", "genres"]


# -- pixelrec ---------------------------------------------------------------------------------------------------------


def write_pixelrec(directory: Path) -> None:
    (directory / "item_info").mkdir(parents=True)
    (directory / "Pixel200K.csv").write_text("item_id,user_id,timestamp\ni7,u1,1656000000\ni1,u2,1656000001\n")
    (directory / "item_info" / "item_info.csv").write_text(
        'item_id,view_number,title,tag,description\ni1,10,"猫, cat",萌宠,"line one\nline two"\ni7,20,2022,舞蹈,\n',
        encoding="utf-8",
    )


def test_pixelrec_as_published(tmp_path: Path) -> None:
    write_pixelrec(tmp_path)
    tables = load("pixelrec", tmp_path)
    assert tables.items.column_names == ["item", "title", "tag", "description"]
    assert tables.items["title"].to_pylist() == ["猫, cat", "2022"]
    assert tables.items["description"].to_pylist()[0] == "line one\nline two"
    assert tables.interactions.to_pydict() == {
        "user": ["u1", "u2"],
        "item": ["i7", "i1"],
        "ts": [1656000000, 1656000001],
    }
    assert find_problems(tables.items, tables.interactions) == []


def test_pixelrec_with_two_overlapping_files_is_refused(tmp_path: Path) -> None:
    write_pixelrec(tmp_path)
    (tmp_path / "Pixel1M.csv").write_bytes((tmp_path / "Pixel200K.csv").read_bytes())
    with pytest.raises(DataError, match=r"2 files of interactions.*overlap"):
        load("pixelrec", tmp_path)


def test_pixelrec_without_items_is_refused(tmp_path: Path) -> None:
    write_pixelrec(tmp_path)
    (tmp_path / "item_info" / "item_info.csv").unlink()
    with pytest.raises(DataError, match="no CSV file of items"):
        load("pixelrec", tmp_path)

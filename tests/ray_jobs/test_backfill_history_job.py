"""A store from past interactions on a real Ray; the log goes on from a position, and all is what one fold makes it."""

from __future__ import annotations

import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cli_kit import Shop, hymirec, small_shop
from typer.testing import CliRunner

from hymirec.errors import ConfigError, DataError
from hymirec.history import open_store
from ray_jobs import backfill_history as job

pytestmark = [
    pytest.mark.ray,
    pytest.mark.usefixtures("ray_cluster"),
    # Ray warns about its own settings whenever its data context is made.
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray"),
]


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shop:
    return small_shop(tmp_path, monkeypatch)


def past(directory: Path) -> Path:
    """Three files with users in several of them, many equal times, and one user of more events than a page."""
    directory.mkdir()
    rng = random.Random(1)
    for number in range(3):
        rows = [
            (rng.choice(["ann", "cat", "dan", "eve", "ünal"]), rng.randrange(50), rng.randrange(9)) for _ in range(400)
        ]
        user, item, ts = zip(*rows, strict=True)
        pq.write_table(pa.table({"user": user, "item": item, "ts": ts}), directory / f"part-{number}.parquet")
    return directory


def test_a_new_store_is_what_parquet_and_the_log_from_the_position_make_it(shop: Shop) -> None:
    parquet, place = past(shop.home / "past"), shop.home / "history-2"
    lines = job.run(shop.yaml, parquet, str(place), [], shards=3)
    assert lines[0].startswith("5 histories in")
    # What comes meanwhile is in the log behind the position.
    shop.act("ann", ["late"])
    shop.act("fay", ["first"])
    shop.yaml.write_text(shop.yaml.read_text().replace("path: history", "path: history-2"))
    shop.config = shop.config.model_copy(
        update={"history": shop.config.history.model_copy(update={"path": str(place)})}
    )
    shop.apply()
    store = open_store(shop.config.history)
    counts = {user: store.read(user).count for user in store.users()}
    store.close()
    # Not what the log held before the position: it must be in the Parquet.
    assert sum(counts.values()) == 1_200 + 2
    assert "bob" not in counts
    words = lines[1].partition("hymirec ")[2].split()
    found = hymirec(*words)
    assert (found.exit_code, "6 of 6 histories" in found.stdout) == (0, True)
    for wrong in (words[: words.index("--from")], [*words[:-4], "--from", "0=0", "--from", "1=0"]):
        assert hymirec(*wrong).exit_code == 1


def test_the_position_may_be_given_and_the_number_of_shards_changes_nothing(shop: Shop) -> None:
    parquet = past(shop.home / "past")
    dumps = []
    for shards in (1, 7):
        place = shop.home / f"new-{shards}"
        job.run(shop.yaml, parquet, str(place), ["0=1", "1=0"], shards)
        store = open_store(shop.config.history.model_copy(update={"path": str(place)}))
        assert {p: position.offset for p, position in store.positions("events").items()} == {0: 1, 1: 0}
        dumps.append({user: store.dump(user) for user in store.users()})
        store.close()
    assert dumps[0] == dumps[1]
    assert len(dumps[0]) == 5


def test_what_cannot_be_used_is_said_in_one_line(shop: Shop) -> None:
    parquet, empty = past(shop.home / "past"), shop.home / "empty.parquet"
    with pytest.raises(ConfigError, match="not empty"):
        job.run(shop.yaml, parquet, str(shop.home / "history"), [], 2)
    with pytest.raises(ConfigError, match=r"partitions \[9\]"):
        job.run(shop.yaml, parquet, str(shop.home / "new"), ["9=1"], 2)
    pq.write_table(pa.table({"user": ["a", None], "item": [1, 2], "ts": [1, 2]}), empty)
    with pytest.raises(DataError, match="must not be empty"):
        job.run(shop.yaml, empty, str(shop.home / "new"), [], 2)
    found = CliRunner().invoke(_app(), ["--config", str(shop.yaml), "--interactions", "nowhere", "--to", "new-3"])
    assert (found.exit_code, "no Parquet file" in found.stdout) == (2, True)


def _app() -> job.typer.Typer:
    app = job.typer.Typer()
    app.command()(job.main)
    return app

"""`hymirec history`: what it prints, how it exits, and what it leaves in the store."""

from __future__ import annotations

import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cli_kit import Shop, hymirec, refused, small_shop
from services import RedisServer

from hymirec.history import Entry, PartitionBatch, Position, open_store
from hymirec.history.pages import head_key
from hymirec.history.record import Head
from hymirec.streaming import open_log


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shop:
    return small_shop(tmp_path, monkeypatch)


def test_history_show_prints_events_oldest_first(shop: Shop) -> None:
    found = hymirec("history", "show", "ann", "--config", shop.yaml)
    assert found.exit_code == 0
    *events, last = found.stdout.splitlines()
    assert [line.split()[:2] for line in events] == [[str(1_700_000_000 + n), "click"] for n in range(3)]
    assert last == "(3 of 3 events)"
    assert "(1 of 3 events)" in hymirec("history", "show", "ann", "--limit", 1, "--config", shop.yaml).stdout
    assert "(0 of 0 events)" in hymirec("history", "show", "nobody", "--config", shop.yaml).stdout


def test_history_is_shown_beside_a_running_writer(shop: Shop) -> None:
    writer = open_store(shop.config.history)
    found = hymirec("history", "show", "ann", "--config", shop.home / "plain.yaml")
    writer.close()
    assert "(3 of 3 events)" in found.stdout


def test_history_erase_goes_through_the_log(shop: Shop) -> None:
    found = hymirec("history", "erase", "ann", "--config", shop.yaml)
    assert (found.exit_code, "'ann' is in the log" in found.stdout) == (0, True)
    assert "1 behind" in hymirec("history", "verify", "--config", shop.yaml).stdout
    shop.apply()
    assert "(0 of 0 events)" in hymirec("history", "show", "ann", "--config", shop.yaml).stdout
    assert "(1 of 1 events)" in hymirec("history", "show", "bob", "--config", shop.yaml).stdout


def test_history_verify_compares_every_history_with_the_log(shop: Shop) -> None:
    hymirec("history", "erase", "bob", "--config", shop.yaml)
    shop.apply()
    shop.act("bob", ["pen"])
    shop.apply()
    found = hymirec("history", "verify", "--replay", "--config", shop.yaml)
    assert found.exit_code == 0
    assert "2 of 2 histories are what the log makes them" in found.stdout


def test_history_verify_finds_a_history_that_lacks_events(shop: Shop) -> None:
    shop.act("ann", ["cup"])
    # An operator who skips the new event on every partition leaves a history that the log does not make.
    log = open_log(shop.config.stream).source(group=False)
    for partition in log.assigned():
        arguments = ("--partition", partition, "--offset", log.end(partition), "--config", shop.yaml)
        assert hymirec("history", "reset-position", *arguments).exit_code == 0
    log.close()
    assert hymirec("history", "verify", "--config", shop.yaml).exit_code == 0
    found = hymirec("history", "verify", "--replay", "--config", shop.yaml)
    assert found.exit_code == 1
    assert "user 'ann': expected 4 events, the store has 3" in found.stdout


def test_history_verify_finds_a_topic_that_was_created_again(shop: Shop) -> None:
    shutil.rmtree(shop.home / "log" / "events")
    shop.act("ann", ["pen"])
    found = hymirec("history", "verify", "--config", shop.yaml)
    assert found.exit_code == 1
    assert "the topic was deleted and created again" in found.stdout


def test_a_position_beyond_the_log_is_found(shop: Shop) -> None:
    hymirec("history", "reset-position", "--partition", 0, "--offset", 99, "--config", shop.yaml)
    found = hymirec("history", "verify", "--config", shop.yaml)
    assert found.exit_code == 1
    assert "position 99 is outside of the log" in found.stdout
    refused(hymirec("history", "reset-position", "--partition", 7, "--offset", 0, "--config", shop.yaml), "7", "[0, 1]")


def test_history_commands_make_no_store_where_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYMIREC_HOME", str(tmp_path))
    shop = Shop(tmp_path)
    for command in (("show", "ann"), ("verify",), ("erase", "ann")):
        refused(hymirec("history", *command, "--config", shop.yaml), "history.path", "HYMIREC_HOME")
    assert not (tmp_path / "history").exists()
    assert not (tmp_path / "log").exists()


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("{bundle: [", "YAML"),
        ("bundle: b\nhistry: {}", "histry: unknown key"),
        ("bundle: b\nhistory: {store: memory}\nstream: {path: log}", "memory"),
        ("3", "config"),
        ("applications: [{args: {}}]", "bundle"),
    ],
)
def test_a_wrong_service_file_is_named(tmp_path: Path, text: str, word: str) -> None:
    path = tmp_path / "serve.yaml"
    path.write_text(text)
    refused(hymirec("history", "show", "ann", "--config", path), "serve.yaml", word)
    refused(hymirec("history", "show", "ann", "--config", tmp_path / "absent.yaml"), "absent.yaml")


def damage(shop: Shop) -> None:
    """Put pages of bob's, whole as they are, in the place of ann's."""
    store = open_store(shop.config.history)
    mine, theirs = sorted(store.dump("ann").items()), sorted(store.dump("bob").items())
    store.restore("ann", dict(mine) | {key: value for (key, _), (_, value) in zip(mine[:2], theirs[:2], strict=True)})
    store.close()


def test_verify_compares_byte_for_byte_and_repair_puts_the_user_right(shop: Shop) -> None:
    store = open_store(shop.config.history)
    before = store.dump("ann")
    store.close()
    damage(shop)
    found = hymirec("history", "verify", "--replay", "--config", shop.yaml)
    assert found.exit_code == 1
    assert "user 'ann'" in found.stdout
    assert "user 'bob'" not in found.stdout
    told = hymirec("history", "repair", "--dry-run", "--config", shop.yaml)
    assert "1 histories would be rebuilt" in told.stdout
    assert hymirec("history", "verify", "--replay", "--config", shop.yaml).exit_code == 1
    assert "0 histories rebuilt" in hymirec("history", "repair", "--user", "bob", "--config", shop.yaml).stdout
    found = hymirec("history", "repair", "--config", shop.yaml)
    assert (found.exit_code, "1 histories rebuilt" in found.stdout) == (0, True)
    assert hymirec("history", "verify", "--replay", "--config", shop.yaml).exit_code == 0
    store = open_store(shop.config.history)
    assert store.dump("ann") == before
    store.close()


def test_event_ids_that_are_not_the_logs_are_found_though_the_events_are_right(shop: Shop) -> None:
    store = open_store(shop.config.history)
    values = store.dump("ann")
    head = Head.unpack(values[head_key("ann")], "head")
    assert head.tail is not None
    head.tail = head.tail._replace(hashes=bytes(len(head.tail.hashes)))
    store.restore("ann", values | {head_key("ann"): head.pack()})
    store.close()
    found = hymirec("history", "verify", "--replay", "--config", shop.yaml)
    assert (found.exit_code, "what is kept beside them (event ids) is not" in found.stdout) == (1, True)


def test_somebody_whom_the_log_does_not_know_is_found_and_removed(shop: Shop) -> None:
    store = open_store(shop.config.history)
    store.apply(PartitionBatch("elsewhere", "t", 0, None, 1, [Entry(0, "eve", 1, 1, 1, 1)]))
    store.close()
    found = hymirec("history", "verify", "--replay", "--config", shop.yaml)
    assert (found.exit_code, "user 'eve': expected nothing" in found.stdout) == (1, True)
    hymirec("history", "repair", "--config", shop.yaml)
    assert "(0 of 0 events)" in hymirec("history", "show", "eve", "--config", shop.yaml).stdout
    assert hymirec("history", "verify", "--replay", "--config", shop.yaml).exit_code == 0


def test_repair_is_refused_while_the_writer_runs(shop: Shop) -> None:
    writer = open_store(shop.config.history)
    refused(hymirec("history", "repair", "--config", shop.yaml), "one writer")
    writer.close()


@pytest.fixture
def redis_url(redis_server: RedisServer) -> str:
    redis_server.flush()
    return redis_server.url


@pytest.mark.parametrize("kind", ["rocksdb", pytest.param("redis", marks=pytest.mark.redis)])
def test_an_export_comes_back_byte_for_byte_with_tombstones_and_positions(
    shop: Shop, kind: str, request: pytest.FixtureRequest
) -> None:
    hymirec("history", "erase", "bob", "--config", shop.yaml)
    shop.act("cat", [f"item {n}" for n in range(200)])
    shop.apply()
    target = shop.home / "copy"
    found = hymirec("history", "export", target, "--config", shop.yaml)
    assert (found.exit_code, "2 histories" in found.stdout) == (0, True)
    rows = {row["user"]: row for row in pq.read_table(target / "histories.parquet").to_pylist()}
    assert [len(rows[user]["item_key"]) for user in ("ann", "cat")] == [3, 200]
    refused(hymirec("history", "export", target, "--config", shop.yaml), "there already")
    place = request.getfixturevalue("redis_url") if kind == "redis" else str(shop.home / "new")
    assert hymirec("history", "import", target, "--store", place).exit_code == 0
    refused(hymirec("history", "import", target, "--store", place), "holds histories")
    changes = {"store": "redis", "url": place} if kind == "redis" else {"path": place}
    old, new = open_store(shop.config.history), open_store(shop.config.history.model_copy(update=changes))
    assert sorted(old.users()) == sorted(new.users()) == ["ann", "cat"]
    for user in ("ann", "bob", "cat"):
        assert old.dump(user) == new.dump(user)
    assert len(old.dump("bob")) == 1
    assert old.positions("events") == new.positions("events")
    assert dict(new.tombstones()) == dict(old.tombstones())
    old.close()
    new.close()


def test_a_damaged_export_is_refused_before_anything_is_written(shop: Shop) -> None:
    target = shop.home / "copy"
    hymirec("history", "export", target, "--config", shop.yaml)
    path = target / "histories.parquet"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    refused(hymirec("history", "import", target, "--store", shop.home / "new"), "histories.parquet", "damaged")
    assert "(0 of 0" in hymirec("history", "show", "ann", "--store", shop.home / "new").stdout


def past(path: Path) -> Path:
    pq.write_table(pa.table({"user": [7, 8, 7, 7], "item": ["a", "b", "c", "a"], "ts": [30, 10, 20, 20]}), path)
    return path


def test_a_store_is_compared_with_parquet_alone_and_built_from_it(shop: Shop) -> None:
    parquet, place = past(shop.home / "past.parquet"), shop.home / "new"
    open_store(shop.config.history.model_copy(update={"path": str(place)})).close()
    assert hymirec("history", "verify", "--store", place, "--parquet", parquet).exit_code == 1
    assert "2 histories rebuilt" in hymirec("history", "repair", "--store", place, "--parquet", parquet).stdout
    found = hymirec("history", "verify", "--store", place, "--parquet", parquet)
    assert (found.exit_code, "2 of 2 histories" in found.stdout) == (0, True)
    shown = hymirec("history", "show", 7, "--store", place).stdout.splitlines()
    assert [line.split()[0] for line in shown[:-1]] == ["20", "20", "30"]


def test_a_store_of_parquet_and_of_the_log_from_a_position(shop: Shop) -> None:
    history = shop.config.history.model_copy(update={"path": str(shop.home / "new")})
    parquet = past(shop.home / "past.parquet")
    open_store(history).close()
    hymirec("history", "repair", "--store", shop.home / "new", "--parquet", parquet)
    source = open_log(shop.config.stream).source(group=False)
    store = open_store(history)
    ends = {partition: source.end(partition) for partition in source.assigned()}
    for partition, end in ends.items():
        store.reset_position("events", partition, Position(source.topic_id(), end))
    store.close()
    shop.config = shop.config.model_copy(update={"history": history})
    shop.yaml.write_text(shop.yaml.read_text().replace("path: history", "path: new"))
    shop.act("7", ["later"])
    shop.act("ann", ["later"])
    shop.apply()
    starts = [word for partition, end in ends.items() for word in ("--from", f"{partition}={end}")]
    arguments = ("history", "verify", "--replay", "--config", shop.yaml, "--parquet", parquet)
    found = hymirec(*arguments, *starts)
    assert (found.exit_code, "3 of 3 histories" in found.stdout) == (0, True)
    # Without the position the log is read from its beginning, and ann has too much.
    assert hymirec(*arguments).exit_code == 1


def test_what_names_no_store_or_no_sense_is_said(shop: Shop) -> None:
    refused(hymirec("history", "show", "ann"), "--config", "--store")
    refused(hymirec("history", "show", "ann", "--config", shop.yaml, "--store", shop.home / "history"), "--store")
    refused(hymirec("history", "show", "ann", "--store", shop.home / "absent"), "no store")
    refused(hymirec("history", "verify", "--replay", "--store", shop.home / "history"), "nothing to compare")
    refused(hymirec("history", "verify", "--store", shop.home / "history", "--parquet", shop.home / "no"), "no Parquet")
    command = ("history", "verify", "--replay", "--config", shop.yaml, "--from", "x")
    refused_late = hymirec(*command)
    assert (refused_late.exit_code, "PARTITION=OFFSET" in refused_late.stderr) == (2, True)
    wrong = shop.home / "wrong.parquet"
    pq.write_table(pa.table({"user": [1], "ts": [1]}), wrong)
    refused(hymirec("history", "verify", "--store", shop.home / "history", "--parquet", wrong), "'item'")

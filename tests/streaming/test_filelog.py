"""The embedded log: crashes in the middle of a write, damage, several writers, other processes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from hymirec.config import StreamConfig
from hymirec.errors import LogDamagedError, SourceUnavailableError
from hymirec.streaming import Message, open_log
from hymirec.streaming.filelog import FileLog
from hymirec.streaming.letters import LetterFile
from hymirec.streaming.source import EventSource


def config(path: Path, partitions: int = 1) -> StreamConfig:
    return StreamConfig(source="file", path=str(path), topic="t", partitions=partitions)


def values(source: EventSource, partition: int = 0) -> list[bytes | None]:
    source.seek(partition, 0)
    found: list[bytes | None] = []
    while messages := source.poll(0, 10_000):
        found += [message.value for message in messages]
    return found


@pytest.mark.parametrize("cut", [1, 7, 8, 9, 20])
def test_a_torn_tail_is_never_seen_and_cut_off_by_the_next_writer(tmp_path: Path, cut: int) -> None:
    log = FileLog(config(tmp_path))
    log.producer().send([("k", b"one"), ("k", b"two")])
    path = tmp_path / "t" / "0.log"
    whole = path.read_bytes()
    # A writer that died: part of a third message, nothing made known.
    path.write_bytes(whole + whole[: len(whole) // 2][:cut])
    assert values(log.source(group=False)) == [b"one", b"two"]
    assert log.producer().send([("k", b"three")]) == [(0, 2)]
    assert values(log.source(group=False)) == [b"one", b"two", b"three"]


def test_whole_messages_behind_the_known_end_are_taken(tmp_path: Path) -> None:
    log = FileLog(config(tmp_path))
    log.producer().send([("k", b"one")])
    end = (tmp_path / "t" / "0.end").read_bytes()
    log.producer().send([("k", b"two")])
    # Power failed after the messages were synced and before the end was.
    (tmp_path / "t" / "0.end").write_bytes(end)
    assert values(log.source(group=False)) == [b"one", b"two"]
    (tmp_path / "t" / "0.end").unlink()
    assert log.producer().send([("k", b"three")]) == [(0, 2)]


def test_zeros_behind_the_end_are_no_messages(tmp_path: Path) -> None:
    log = FileLog(config(tmp_path))
    log.producer().send([("k", b"one")])
    path = tmp_path / "t" / "0.log"
    path.write_bytes(path.read_bytes() + bytes(4096))
    assert log.producer().send([("k", b"two")]) == [(0, 1)]
    assert values(log.source(group=False)) == [b"one", b"two"]


def test_a_damaged_message_is_told_and_nothing_behind_it_is_thrown_away(tmp_path: Path) -> None:
    log = FileLog(config(tmp_path))
    log.producer().send([("k", str(i).encode() * 10) for i in range(10)])
    path = tmp_path / "t" / "0.log"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 64
    path.write_bytes(bytes(data))
    log.producer().send([("k", b"later")])
    source = log.source(group=False)
    source.seek(0, 0)
    before = source.poll(0, 100)
    assert [message.value for message in before] == [str(i).encode() * 10 for i in range(len(before))]
    with pytest.raises(LogDamagedError, match=f"offset {len(before)} .* is damaged"):
        source.poll(0, 100)
    assert path.stat().st_size > len(data)


def test_messages_of_a_key_keep_their_order_and_place_over_reopening(tmp_path: Path) -> None:
    sent = [(f"k{i % 9}", b"%d" % i) for i in range(5_000)]
    log = open_log(config(tmp_path, partitions=3))
    places = log.producer().send(sent[:3_000]) + open_log(config(tmp_path, partitions=8)).producer().send(sent[3_000:])
    source = open_log(config(tmp_path)).source(group=False)
    assert source.assigned() == [0, 1, 2]
    for partition in range(3):
        mine = [value for (key, value), place in zip(sent, places, strict=True) if place[0] == partition]
        assert values(source, partition) == mine
        source.seek(partition, len(mine) - 3)
        assert [m.value for m in source.poll(0, 100) if m.partition == partition] == mine[-3:]


def test_a_busy_partition_does_not_keep_others_waiting(tmp_path: Path) -> None:
    log = open_log(config(tmp_path, partitions=2))
    log.producer().send([(f"k{i}", b"x") for i in range(200)])
    source = log.source(group=False)
    for partition in (0, 1):
        source.seek(partition, 0)
    assert {message.partition for _ in range(2) for message in source.poll(0, 10)} == {0, 1}


WRITER = """
import sys
from hymirec.config import StreamConfig
from hymirec.streaming import open_log
producer = open_log(StreamConfig(source="file", path=sys.argv[1], topic="t")).producer()
for i in range(100):
    producer.send([("k", b"%s %d" % (sys.argv[2].encode(), i)), ("k", b"%s %d+" % (sys.argv[2].encode(), i))])
"""


def test_writers_of_several_processes_mix_whole_batches(tmp_path: Path) -> None:
    log = FileLog(config(tmp_path))
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path), name]) for name in "ab"]
    assert [writer.wait(60) for writer in writers] == [0, 0]
    found = values(log.source(group=False))
    for name in (b"a", b"b"):
        mine = [value for value in found if value is not None and value.startswith(name)]
        assert mine == [b"%s %d%s" % (name, i, plus) for i in range(100) for plus in (b"", b"+")]
    assert all(pair[1] == (pair[0] or b"") + b"+" for pair in zip(found[::2], found[1::2], strict=True))


def test_a_log_that_cannot_be_written_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(SourceUnavailableError, match="cannot be created"):
        FileLog(config(tmp_path / "file"))


def test_a_dead_letter_behind_a_torn_line_has_its_own_line(tmp_path: Path) -> None:
    path = tmp_path / "letters.jsonl"
    path.write_bytes(b'{"reason": "mal')
    LetterFile(path, "t").send(Message(0, 1, b"k", "ü".encode()), "malformed", "why")
    torn, line = path.read_text().splitlines()
    assert torn == '{"reason": "mal'
    assert '"value": "ü"' in line


def test_a_dead_letter_of_another_writer_that_runs_is_not_stored_again(tmp_path: Path) -> None:
    path = tmp_path / "letters.jsonl"
    one, two = LetterFile(path, "t"), LetterFile(path, "t")
    for offset in (1, 2, 3):
        for letters in (one, two):
            letters.send(Message(0, offset, b"k", b"x"), "malformed", "why")
    assert [f'"offset": {offset}' in line for offset, line in zip((1, 2, 3), path.open(), strict=True)] == [True] * 3

"""Exactly once under SIGKILL: a real writer process on RocksDB and the file log, killed again and again."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from stream_logs import LogUnderTest

from hymirec.catalog.events import Event
from hymirec.config import HistoryConfig
from hymirec.history import open_store
from hymirec.history.verify import Placed, differences, fold
from hymirec.streaming import decode, erase_message, event_message

WRITER = """
import sys, time
from hymirec.config import HistoryConfig, StreamConfig
from hymirec.history import open_store
from hymirec.streaming import HistoryConsumer, open_log

stream = StreamConfig.model_validate_json(sys.argv[1])
consumer = HistoryConsumer(open_log(stream), open_store(HistoryConfig.model_validate_json(sys.argv[2])), stream)
consumer.start()
while True:
    sys.stdout.write(str(sum(consumer.status().positions.values())) + chr(10))
    sys.stdout.flush()
    time.sleep(0.005)
"""
KILLS = 4


@pytest.mark.timeout(120)
def test_a_writer_killed_at_any_moment_loses_and_doubles_nothing(tmp_path: Path) -> None:
    log = LogUnderTest("file", tmp_path / "log", None)
    stream = log.config.model_copy(update={"batch_events": 100, "poll_seconds": 0.01})
    history = HistoryConfig(store="rocksdb", path=str(tmp_path / "store"), max_events=500, dedup_horizon=200)
    rng = random.Random(7)
    producer = log.open().producer()
    sent: list[tuple[str, bytes]] = []
    for i in range(12_000):
        user = f"u{rng.randrange(40)}"
        if rng.random() < 0.005:
            sent.append(erase_message(user))
        elif rng.random() < 0.01:
            sent.append((user, b"{poison"))
        else:
            # One in twenty is sent twice.
            event_id = f"e{i - (i % 20 == 19)}"
            sent.append(
                event_message(Event(event_id=event_id, user_id=user, item_id=f"i{i}", ts=1000 + i - rng.randrange(50)))
            )
    places = []
    for i in range(0, len(sent), 2000):
        places += producer.send(sent[i : i + 2000])

    command = [sys.executable, "-c", WRITER, stream.model_dump_json(), history.model_dump_json()]
    progress: list[int] = []
    for attempt in range(KILLS + 1):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        begun = progress[-1] if progress else 0
        # Killed some way on, in the middle of whatever it does; the last one comes to the end.
        goal = len(sent) if attempt == KILLS else begun + rng.randrange(200, 2_500)
        for line in process.stdout:
            if int(line) >= goal:
                progress.append(int(line))
                break
        time.sleep(rng.random() * 0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
    assert progress[-1] == len(sent)
    assert len(progress) == KILLS + 1

    source = log.open().source(group=False)
    for partition in source.assigned():
        source.seek(partition, 0)
    placed, poison = [], 0
    while len(placed) + poison < len(sent):
        for message in source.poll(5, 10_000):
            if message.value == b"{poison":
                poison += 1
            else:
                entry = decode(message.value, message.offset, message.log_ms).entry
                placed.append(Placed(source.topic_id(), message.partition, entry))
    store = open_store(history)
    expected = fold(placed, history.max_events, history.dedup_horizon)
    assert sum(map(len, expected.values())) > 3_000
    assert differences(store, expected) == []
    assert sum(position.offset for position in store.positions(log.topic).values()) == len(sent)
    store.close()
    letters = (log._path / f"{log.config.dead_letter_topic}.jsonl").read_text().splitlines()
    assert len(letters) == len(set(letters)) == poison

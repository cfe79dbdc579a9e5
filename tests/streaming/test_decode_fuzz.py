"""The decoder against bytes of all kinds: an entry or a reason, never anything else, and at once.

`PYTHONPATH=tests python tests/streaming/test_decode_fuzz.py 1000000` runs the mutator for so many inputs and prints
what came of them; `make faults` does.
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hymirec.config import HistoryConfig, StreamConfig
from hymirec.errors import EventError
from hymirec.history import Entry, open_store
from hymirec.streaming import HistoryConsumer, decode, erase_message, open_log
from hymirec.streaming.decode import AT_ONCE, MAX_BYTES, decode_all
from hymirec.streaming.source import Message

INPUTS = 20_000
SLOWEST_SECONDS = 2.0
REASONS = {"empty", "too_large", "malformed", "missing_field", "bad_id", "bad_ts", "unknown_type"}
LOG_MS = 1_700_000_000_000
# What a mutation puts in: all that JSON, UTF-8 and our limits are known to stumble over.
PIECES = [
    *(
        b"{",
        b"}",
        b"[",
        b"]",
        b",",
        b":",
        b'"',
        b"\\",
        b"\n",
        b"\r",
        b"\t",
        b" ",
        b"\0",
        b"\xff",
        b"\xc3",
        b"\xed\xa0\x80",
    ),
    *(b"null", b"true", b"NaN", b"Infinity", b"-", b"-0", b"1e999", b"1e-999", b"1.0", b"9" * 40, b"-1", b"4294967296"),
    *(
        b"\\ud800",
        b"\\udc00\\ud800",
        b"\\u0000",
        b"\\x",
        "ü☕𝄞".encode(),
        b'"ts":1,',
        b'"user_id":"v",',
        b'"type":"erase",',
    ),
    *(b"[" * 600, b'{"a":' * 600, b"[{}", b"{}]", b"} {", b"}\n{", b"},{", b"x" * 600, b"y" * (MAX_BYTES + 1)),
]


def valid(rng: random.Random) -> bytes:
    """A message that can be used."""
    event: dict[str, object] = {
        "event_id": rng.choice(["e1", 17, "ü", "e" * 512]),
        "user_id": rng.choice(["u1", 5, "Ω", ""]),
        "item_id": rng.choice(["i1", 2**70, "☕"]),
        "ts": rng.choice([0, 1_700_000_000, 1_700_009_999, 2**32 - 1]),
        "action": rng.choice(["click", "view", "what", "other", "", None]),
    }
    if rng.random() < 0.3:
        event[rng.choice(["more", "type", "ts", "nested"])] = rng.choice(["erase", "event", [1, {"a": [2]}], {}, 1.5])
    return json.dumps(event, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")


def mutated(rng: random.Random) -> bytes:
    """A valid message, and what becomes of it when a few bytes are changed, put in, cut out or doubled."""
    value = bytearray(valid(rng))
    for _ in range(rng.choice([0, 1, 1, 1, 2, 3, 8])):
        kind, at = rng.randrange(6), rng.randrange(len(value) + 1)
        if kind == 0:
            value[at:at] = rng.choice(PIECES)
        elif kind == 1 and at < len(value):
            value[at] ^= 1 << rng.randrange(8)
        elif kind == 2:
            del value[at : at + rng.randrange(1, 9)]
        elif kind == 3:
            value[at:at] = value[: rng.randrange(len(value) + 1)]
        elif kind == 4:
            del value[at:]
        else:
            value[at:at] = rng.randbytes(rng.randrange(1, 5))
    return bytes(value)


def messages(values: list[bytes], rng: random.Random) -> list[Message]:
    return [Message(0, i, None, value, rng.choice([0, LOG_MS])) for i, value in enumerate(values)]


def check(batch: list[Message]) -> Counter[str]:
    """Each message alone gives an entry or a reason; all of them at once give the same; counts of what came."""
    alone: list[Entry] = []
    refused: list[tuple[int, str, str]] = []
    notes: Counter[str] = Counter()
    slowest = 0.0
    for message in batch:
        start = time.perf_counter()
        try:
            entry, put_right = decode(message.value, message.offset, message.log_ms)
        except EventError as e:
            refused.append((message.offset, e.reason, str(e)))
        else:
            assert entry.offset == message.offset
            assert 0 < len(entry.user_id.encode()) <= 512
            assert 0 <= entry.ts < 2**32
            alone.append(entry)
            notes.update(put_right)
        slowest = max(slowest, time.perf_counter() - start)
    assert slowest < SLOWEST_SECONDS
    assert {reason for _, reason, _ in refused} <= REASONS
    together = decode_all(batch)
    assert together.entries == alone
    assert [(message.offset, e.reason, str(e)) for message, e in together.rejected] == refused
    assert together.notes == notes
    return Counter({"entries": len(alone)}) + Counter(reason for _, reason, _ in refused)


def fuzz(inputs: int, seed: int) -> Counter[str]:
    """So many mutated messages in batches of all sizes."""
    rng, total = random.Random(seed), Counter[str]()
    while total.total() < inputs:
        size = min(rng.choice([1, 2, 3, 10, AT_ONCE, AT_ONCE + 1, 600]), inputs - total.total())
        # Whole batches must be good, too: one bad message has its neighbours decoded one by one.
        make = valid if rng.random() < 0.3 else mutated
        total += check(messages([make(rng) for _ in range(size)], rng))
    return total


def test_mutated_messages_give_an_entry_or_a_reason_alone_and_in_batches() -> None:
    total = fuzz(INPUTS, seed=7)
    assert set(total) == REASONS | {"entries"}
    assert total["entries"] > INPUTS // 10


JSON_LIKE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=4),
)
FIELDS = st.sampled_from(["event_id", "user_id", "item_id", "ts", "action", "type", "other"])
OBJECTS = st.lists(st.tuples(FIELDS, JSON_LIKE), max_size=9).map(
    # Duplicate keys included.
    lambda pairs: "{" + ",".join(f"{json.dumps(name)}:{json.dumps(value)}" for name, value in pairs) + "}"
)
VALUES = st.binary(max_size=300) | OBJECTS.map(lambda text: text.encode("utf-8", "surrogatepass"))


@settings(max_examples=200)
@given(st.lists(VALUES, max_size=8), st.randoms(use_true_random=False))
def test_any_bytes_and_any_objects_give_an_entry_or_a_reason(values: list[bytes], rng: random.Random) -> None:
    check(messages(values, rng))


@pytest.mark.parametrize(
    "values",
    [
        # Torn so that the lines together are as many values as there are messages.
        [b'{"z":[{}', b"{}]}", b"{}{}"],
        [b'{"z":{}', b'{"ts":1}}', b"{} {}"],
        [b'{"z":"}', b'{"}', b"{}{}"],
        [b'{"z":}', b"{}", b"{}"],
        [b"{}\n{}", b"{}"],
        [b"{}\r{}", b"{}"],
    ],
)
def test_neighbours_never_become_one_message(values: list[bytes]) -> None:
    assert check(messages(values, random.Random(1)))["entries"] == 0


def test_every_reject_is_a_dead_letter_once_also_when_the_log_is_read_again(tmp_path: Path) -> None:
    config = StreamConfig(path=str(tmp_path), partitions=2, poll_seconds=0.02)
    log, rng = open_log(config), random.Random(3)
    values = [mutated(rng) for _ in range(400)]
    producer = log.producer()
    places = producer.send([(f"k{i % 9}", value) for i, value in enumerate(values)])
    places += producer.send([erase_message("u1")])
    store = open_store(HistoryConfig(store="memory"))
    refused = []
    for (partition, offset), value in zip(places, values, strict=False):
        try:
            decode(value, offset, LOG_MS * 2)
        except EventError as e:
            refused.append((partition, offset, e.reason))
    for _ in range(2):
        consumer = HistoryConsumer(log, store, config)
        consumer.start()
        assert consumer.wait_for(places, 30)
        consumer.stop()
        letters = [
            json.loads(line) for line in (tmp_path / f"{config.dead_letter_topic}.jsonl").read_bytes().splitlines()
        ]
        assert sorted((x["partition"], x["offset"], x["reason"]) for x in letters) == sorted(refused)
        for partition in (0, 1):
            store.reset_position(config.topic, partition, None)
    assert len(refused) > 100


if __name__ == "__main__":
    begun, wanted = time.monotonic(), int(sys.argv[1])
    found = fuzz(wanted, seed=int(sys.argv[2]) if len(sys.argv) > 2 else 1)
    told = ", ".join(f"{name} {count}" for name, count in found.most_common())
    sys.stdout.write(f"{found.total()} inputs in {time.monotonic() - begun:.0f} s: {told}\n")

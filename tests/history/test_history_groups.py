"""Which pages of a history lie together: what is read, kept and written stays the same, and older stores are read."""

from __future__ import annotations

import contextlib
import struct
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis
from hypothesis import given, settings
from hypothesis import strategies as st

from hymirec.config import HistoryConfig
from hymirec.errors import StoreDamagedError, UnsupportedFormatError
from hymirec.history import Entry, PartitionBatch, RawStore, open_store
from hymirec.history.memory import MemoryStore
from hymirec.history.pages import (
    event_ids,
    group_at,
    head_key,
    kept_columns,
    laid_out,
    page_key,
    read_pages,
    record_keys,
    value_pages,
)
from hymirec.history.record import (
    PAGE_RECORDS,
    RECORD,
    RECORD_COLUMNS,
    Head,
    Tail,
    Tombstone,
    pack_hashes,
    pack_records,
    seal,
    unseal,
)
from hymirec.history.verify import Placed, differences, fold

DAY = 86_400
WAITING: dict[str, Any] = {"flush_events": 1_000_000, "flush_seconds": 3600.0}


def as_before(user: str, values: Mapping[bytes, bytes], version: int) -> dict[bytes, bytes]:
    """What is kept of a user as programs wrote it whose last page (heads of version 2) or each page (1) has a value."""
    head = Head.unpack(values[head_key(user)], "head")
    columns = kept_columns(user, head, read_pages(lambda keys: [*map(values.get, keys)], user, head))
    records = np.empty(len(columns[0]), RECORD)
    for name, column in zip(RECORD_COLUMNS, columns, strict=True):
        records[name] = column
    before = {key: value for key, value in laid_out(user, values).items() if version == 2 or not key.startswith(b"h")}
    if version == 2:
        size = group_at(head.first_page, head.last_page)
        before[head_key(user)] = Head(head.first_page, head.last_page, head.total, head.first_page, size).pack()
    else:
        before[head_key(user)] = seal(struct.pack("<IIQ", head.first_page, head.last_page, head.total))
    for page in [head.last_page] if version == 2 else range(head.first_page, head.last_page + 1):
        start = (page - head.first_page) * PAGE_RECORDS
        before[page_key(b"h", user, page)] = pack_records(records[start : start + PAGE_RECORDS])
    if head.tail is not None:
        ids = event_ids(user, head, values)[-(head.total - head.last_page * PAGE_RECORDS) :]
        before[page_key(b"d", user, head.last_page)] = pack_hashes(ids.tolist())
    return before


def apply(store: RawStore, entries: Sequence[Entry]) -> None:
    """One batch."""
    first = entries[0].offset
    store.apply(PartitionBatch("events", "id", 0, first or None, entries[-1].offset + 1, entries))


def events(start: int, stop: int, user: str = "u") -> list[Entry]:
    return [Entry(i, user, i, i, 2, i + 10**6) for i in range(start, stop)]


@pytest.fixture(params=["memory", "rocksdb", pytest.param("redis", marks=pytest.mark.redis)])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RawStore]:
    places: dict[str, Callable[[], dict[str, Any]]] = {
        "memory": dict,
        "rocksdb": lambda: {"path": str(tmp_path / "store"), "sync": False},
        "redis": lambda: {"url": request.getfixturevalue("redis_server").url, "shards": 4},
    }
    place = places[request.param]()
    if request.param == "redis":
        redis.Redis.from_url(place["url"]).flushall()
    with contextlib.closing(open_store(HistoryConfig(store=request.param, **place))) as opened:
        yield opened


STEPS = st.lists(
    st.tuples(
        st.integers(1, 700),  # events
        st.integers(0, 9),  # days that pass before them
        st.sampled_from(
            ["", "", "", "erase", "version 1", "version 2", "laid out", "flush"]
        ),  # what happens after them
    ),
    min_size=1,
    max_size=10,
)


@settings(max_examples=60, deadline=None)
@given(
    STEPS,
    st.sampled_from([64, 130, 300, 1_100, 2_000, 10_000]),
    st.sampled_from([None, 20]),
    st.sampled_from([64, 100, 10_000]),
)
def test_a_history_is_its_fold_whatever_lies_together(
    steps: list[tuple[int, int, str]], max_events: int, days: int | None, most: int
) -> None:
    bounds = {"store": "memory", "max_events": max_events, "dedup_horizon": 100, "max_age_days": days}
    at_once, later = (MemoryStore(HistoryConfig.model_validate(bounds | extra)) for extra in ({}, WAITING))
    age = None if days is None else days * DAY
    clock = int(time.time()) - DAY * sum(step[1] for step in steps) - 3600
    messages: list[Entry] = []
    untouched = True
    for count, passing, then in steps:
        clock += passing * DAY
        start = len(messages)
        # Every hundredth comes five seconds late.
        ts = [clock + i - 5 * (i % 100 == 50) for i in range(count)]
        new = [Entry(start + i, "u", start + i, ts[i], 2, start + i, clock * 1000 + i) for i in range(count)]
        if then == "erase":
            new.append(Entry(start + count, "u", log_ms=clock * 1000 + count))
        messages += new
        for cut in range(0, len(new), most):
            for each in (at_once, later):
                apply(each, new[cut : cut + most])
        if then == "flush":
            later.flush()
        if then in ("version 1", "version 2", "laid out"):
            values = at_once.dump("u")
            values = laid_out("u", values) if then == "laid out" else as_before("u", values, int(then[-1]))
            for each in (at_once, later):
                each.restore("u", values)
            untouched = False
        expected = fold([Placed("id", 0, entry) for entry in messages], max_events, 100, age, time.time())
        assert differences(at_once, expected) == differences(later, expected) == []
        if untouched:
            written = later.dump("u")
            assert written == at_once.dump("u")
            keys = {key for key in written if key.startswith(b"h")}
            if head_key("u") in written:
                head = Head.unpack(written[head_key("u")], "head")
                assert keys == set(record_keys("u", value_pages(head)))
    again = MemoryStore(HistoryConfig.model_validate(bounds))
    apply(again, messages)
    assert laid_out("u", again.dump("u")) == laid_out("u", at_once.dump("u")) == laid_out("u", later.dump("u"))


@pytest.mark.parametrize(("version", "pages"), [(1, 47), (2, 2 + 3 + 2 + 1)])
def test_a_store_of_an_older_program_is_read_appended_to_and_erased(store: RawStore, version: int, pages: int) -> None:
    apply(store, events(0, 3_000))
    apply(store, events(3_000, 3_070, "v"))
    for user in ("u", "v"):
        store.restore(user, as_before(user, store.dump(user), version))
    assert len([key for key in store.dump("u") if key.startswith(b"h")]) == pages
    assert store.read("u").keys.tolist() == list(range(3_000))
    assert store.read("v", 5).keys.tolist() == list(range(3_065, 3_070))
    apply(store, events(3_070, 4_500))
    kept = [*range(3_000), *range(3_070, 4_500)]
    assert store.read("u").keys.tolist() == kept
    assert store.read("u", 1_000).keys.tolist() == kept[-1_000:]
    apply(store, [Entry(4_500, "u")])
    assert store.read("u").count == 0
    (left,) = store.dump("u").values()
    assert Tombstone.unpack(left, "tombstone").offset == 4_500


@pytest.mark.parametrize(("length", "most"), [(63, 1), (1_000, 7), (1_060, 3), (10_000, 16)])
def test_a_read_finds_few_values(length: int, most: int) -> None:
    store = MemoryStore(HistoryConfig(store="memory"))
    for start in range(0, length, 150):
        apply(store, events(start, min(length, start + 150)))
    asked: list[bytes] = []
    read = store._get_many

    def counting(keys: Sequence[bytes]) -> Sequence[bytes | None]:
        asked.extend(keys)
        return read(keys)

    store._get_many = counting  # type: ignore[method-assign]
    assert store.read("u").keys.tolist() == list(range(length))
    assert len(asked) <= 1 + most


@pytest.mark.parametrize("kept", [WAITING, {}])
def test_a_damaged_page_ends_nobody_s_appending_and_is_told_by_reads(kept: dict[str, Any]) -> None:
    store = MemoryStore(HistoryConfig(store="memory", cached_events=0, **kept))
    apply(store, [*events(0, 100), *events(100, 200, "v")])
    store.flush()
    key = page_key(b"h", "u", 0)
    value = store.dump("u")[key]
    store.restore("u", store.dump("u") | {key: bytes([value[0], value[1] ^ 1]) + value[2:]})
    apply(store, [*events(200, 1_500), *events(1_500, 3_000, "v")])
    store.flush()
    assert store.read("v").count == 1_600
    with pytest.raises(StoreDamagedError, match="page of user 'u': checksum"):
        store.read("u")
    store.restore("u", store.dump("u") | {key: value})
    assert store.read("u").keys.tolist() == [*range(100), *range(200, 1_500)]


def test_heads_of_other_programs_are_refused_untouched() -> None:
    tail = Tail(bytes(2 * RECORD.itemsize), bytes(16))
    value = Head(1, 2, 130, 1, 1, tail).pack()
    assert Head.unpack(value, "head") == Head(1, 2, 130, 1, 1, tail)
    # What a program does that knows version 1 only.
    with pytest.raises(UnsupportedFormatError, match="format version 3, this program knows 1"):
        unseal(value, "head")
    with pytest.raises(UnsupportedFormatError, match="format version 4, this program knows 3"):
        Head.unpack(seal(unseal(value, "head", 3), 4), "head")
    with pytest.raises(StoreDamagedError, match="expected 21 bytes of head, got 16"):
        Head.unpack(seal(struct.pack("<IIQ", 1, 2, 130), 2), "head")
    with pytest.raises(StoreDamagedError, match="42 bytes are not the last of 131 records"):
        Head.unpack(Head(1, 2, 131, 1, 1, tail).pack(), "head")

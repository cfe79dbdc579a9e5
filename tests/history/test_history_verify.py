"""The reference fold, by hand; and stores against it, however the log is cut, partitioned and bounded."""

from __future__ import annotations

from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hymirec.config import HistoryConfig
from hymirec.history import Entry, PartitionBatch, open_store
from hymirec.history.verify import Placed, differences, fold


def event(offset: int, key: int, ts: int, event_hash: int, log_ms: int = 0, user: str = "u") -> Entry:
    return Entry(offset, user, key, ts, 1, event_hash, log_ms)


def test_the_fold_by_hand() -> None:
    messages = [
        Placed("t", 0, event(0, 10, 5, 1)),
        Placed("t", 0, event(1, 11, 3, 2)),
        Placed("t", 0, event(2, 12, 9, 1)),
        Placed("t", 0, event(3, 13, 3, 3)),
    ]
    assert fold(messages, 10, 10) == {"u": [(3, 11, 1), (3, 13, 1), (5, 10, 1)]}
    assert fold(messages, 2, 10) == {"u": [(3, 13, 1), (5, 10, 1)]}
    assert fold([*messages, Placed("t", 0, Entry(4, "u"))], 10, 10) == {"u": []}


def test_what_the_log_took_before_an_erasure_stays_gone_from_any_partition() -> None:
    erase = Placed("t", 0, Entry(7, "u", log_ms=1000))
    assert fold([erase, Placed("t", 0, event(6, 1, 1, 1, 1001))], 10, 10) == {"u": []}
    assert fold([erase, Placed("t", 1, event(0, 1, 1, 1, 999))], 10, 10) == {"u": []}
    assert fold([erase, Placed("t", 1, event(0, 1, 1, 1, 1000))], 10, 10) == {"u": [(1, 1, 1)]}
    # Another topic of the same name counts its offsets anew.
    assert fold([erase, Placed("t2", 0, event(0, 1, 1, 1, 1001))], 10, 10) == {"u": [(1, 1, 1)]}


MESSAGES = st.lists(
    st.tuples(
        st.integers(0, 1),  # partition
        st.integers(0, 1),  # user
        st.integers(0, 30),  # ts
        st.integers(0, 25),  # event id
        st.integers(0, 12),  # 0: erasure
        st.integers(1, 5),  # messages of the same kind in a row
    ),
    max_size=40,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(MESSAGES, st.integers(1, 90), st.integers(1, 90), st.data())
def test_a_store_equals_the_fold_for_any_cut_partitions_and_bounds(
    tmp_path: Path, messages: list[tuple[int, ...]], max_events: int, horizon: int, data: st.DataObject
) -> None:
    store = open_store(HistoryConfig(store="memory", max_events=max_events, dedup_horizon=horizon))
    offsets = [0, 0]
    placed: list[Placed] = []
    for partition, user, ts, event_id, kind, repeat in messages:
        for r in range(repeat * 8):
            offset, clock = offsets[partition], len(placed)
            name = f"u{user}"
            if kind == 0:
                entry = Entry(offset, name, log_ms=1000 + clock - 3 * (ts % 2))
            else:
                entry = event(offset, clock, ts, event_id * 100 + r, 1000 + clock - 3 * (ts % 2), name)
            placed.append(Placed("t", partition, entry))
            offsets[partition] += 1
    position: list[int | None] = [None, None]
    done = 0
    while done < len(placed):
        # A batch is a run of messages of one partition.
        partition, stop = placed[done].partition, done + 1
        most = data.draw(st.integers(1, 200))
        while stop < len(placed) and stop - done < most and placed[stop].partition == partition:
            stop += 1
        entries = [message.entry for message in placed[done:stop]]
        store.apply(PartitionBatch("events", "t", partition, position[partition], entries[-1].offset + 1, entries))
        position[partition] = entries[-1].offset + 1
        done = stop
    assert differences(store, fold(placed, max_events, horizon)) == []

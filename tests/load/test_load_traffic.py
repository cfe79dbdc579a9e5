from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hymirec.errors import DataError
from hymirec.load import Traffic

ROWS = [(1, 10, 100), (2, 20, 103), (1, 30, 101), (3, 40, 104), (2, 50, 101), (1, 60, 110)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    user, item, ts = zip(*ROWS, strict=True)
    pq.write_table(pa.table({"user": user, "item": item, "ts": ts}), tmp_path / "interactions.parquet")
    return tmp_path / "interactions.parquet"


def test_the_past_comes_first_in_order_of_time_and_ties_keep_the_order_of_the_file(path: Path) -> None:
    traffic = Traffic.read(path, past=0.5)
    assert list(traffic.before()) == [("1", "10", 100), ("1", "30", 101), ("2", "50", 101)]
    visits = list(itertools.islice(traffic.visits(1.0), 7))
    whom = [("2", "20"), ("3", "40"), ("1", "60")]
    # When they are used up they begin again.
    assert [(visit.user, visit.item) for visit in visits] == [*whom, *whom, *whom[:1]]


def test_poisson_arrivals_have_the_rate_and_the_spread_of_a_poisson_process(path: Path) -> None:
    at = np.array([visit.at for visit in itertools.islice(Traffic.read(path, past=0).visits(50.0, seed=3), 20_000)])
    gaps = np.diff(at)
    assert gaps.min() >= 0
    assert gaps.mean() == pytest.approx(1 / 50, rel=0.03)
    assert gaps.std() == pytest.approx(1 / 50, rel=0.05)
    again = [visit.at for visit in itertools.islice(Traffic.read(path, past=0).visits(50.0, seed=3), 100)]
    assert again == at[:100].tolist()


def test_own_arrivals_are_those_of_the_data_to_scale(path: Path) -> None:
    visits = itertools.islice(Traffic.read(path, past=0).visits(2.0, own_times=True), 8)
    # Six visits at two a second take three seconds, and ten seconds of the data are three of the load.
    expected = [0.0, 0.3, 0.3, 0.9, 1.2, 3.0, 3.0, 3.3]
    assert [visit.at for visit in visits] == pytest.approx(expected)


def test_only_the_users_who_come_first_may_be_taken(path: Path) -> None:
    traffic = Traffic.read(path, past=0, most_users=2)
    assert {visit.user for visit in itertools.islice(traffic.visits(1.0), 20)} == {"1", "2"}


def test_what_cannot_be_replayed_is_refused(path: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="6 are past, so nobody would come"):
        Traffic.read(path, past=1.0)
    with pytest.raises(DataError, match="no Parquet file"):
        Traffic.read(tmp_path / "nowhere")
    pq.write_table(pa.table({"user": [1], "item": [None], "ts": [5]}), tmp_path / "holes.parquet")
    with pytest.raises(DataError, match="must not be empty"):
        Traffic.read(tmp_path / "holes.parquet")
    pq.write_table(pa.table({"user": [1, 2], "item": [1, 2], "ts": [5, 5]}), tmp_path / "one.parquet")
    with pytest.raises(DataError, match="take Poisson arrivals"):
        next(Traffic.read(tmp_path / "one.parquet", past=0).visits(1.0, own_times=True))

"""The data step and the generator: shards made by tasks are the shards made in one process."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hymirec.artifacts import list_files
from hymirec.catalog.loaders.synthetic import generate
from hymirec.catalog.parts import part_name
from hymirec.catalog.tables import load_tables
from hymirec.config import DataConfig, PipelineConfig, SyntheticConfig
from hymirec.errors import DataError, ValidationError
from ray_jobs import prepare
from ray_jobs.synthetic import generate_on_ray

# Ray warns about its own settings whenever its data context is made.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")
SYNTHETIC = SyntheticConfig(items=120, users=40, events_per_user=12, topics=6, shards=3, string_ids=True)


def pipeline(**data: object) -> PipelineConfig:
    return PipelineConfig(seed=3, data=DataConfig(**data))  # type: ignore[arg-type]


def test_tables_with_problems_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    pq.write_table(pa.table({"item": [1, 1], "title": ["a", "b"]}), source / "items.parquet")
    pq.write_table(pa.table({"user": [1], "item": [2], "ts": [-1]}), source / "interactions.parquet")
    with pytest.raises(ValidationError) as e:
        prepare.prepare_step(pipeline(kind="parquet", path=str(source)), out)
    assert len(e.value.problems) == 3
    assert not out.exists()


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_shards_of_tasks_are_those_of_one_process_and_a_rerun_keeps_them(tmp_path: Path) -> None:
    rows = generate_on_ray(SYNTHETIC, 3, tmp_path)
    expected = generate(SYNTHETIC, 3)
    tables = load_tables(DataConfig(kind="parquet", path=str(tmp_path)), 3)
    assert tables.items.equals(expected.items)
    assert tables.interactions.equals(expected.interactions)
    assert rows == {"items": 120, "interactions": expected.interactions.num_rows}

    files = {p: p.stat().st_ino for p in tmp_path.rglob("part-*.parquet")}
    lost = tmp_path / "items" / part_name(1)
    before = lost.read_bytes()
    lost.unlink()
    assert generate_on_ray(SYNTHETIC, 3, tmp_path) == rows
    assert lost.read_bytes() == before
    kept = {p for p, inode in files.items() if p.stat().st_ino == inode}
    assert {tmp_path / table / part_name(shard) for table in ("items", "interactions") for shard in (0, 2)} <= kept

    with pytest.raises(DataError, match="another config or seed"):
        generate_on_ray(SYNTHETIC, 4, tmp_path)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_the_data_step_is_the_same_with_and_without_tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = pipeline(kind="synthetic", synthetic=SYNTHETIC)
    alone = prepare.prepare_step(config, tmp_path / "alone")
    monkeypatch.setattr(prepare, "IN_PROCESS_ROWS", 0)
    assert prepare.prepare_step(config, tmp_path / "tasks") == alone
    assert list_files(tmp_path / "alone") == list_files(tmp_path / "tasks")
    assert not (tmp_path / "tasks" / "work" / "synthetic").exists()

"""Adding items on a real Ray writes the bytes that one process writes, also after a kill in the middle."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny_run import build_tiny_run, tiny_config

from hymirec.additions import Addition
from hymirec.additions import add_items as add_locally
from hymirec.artifacts import read_manifest
from hymirec.encoder import ContentEncoder
from hymirec.encoder.encode import encode_part
from ray_jobs import add_items as job
from ray_jobs.console import Screen

pytestmark = [
    pytest.mark.ray,
    pytest.mark.timeout(1800),
    pytest.mark.usefixtures("ray_cluster"),
    # Ray warns about its own settings whenever its data context is made.
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray"),
]


def test_the_job_goes_on_where_it_was_killed_and_writes_what_one_process_writes(tmp_path: Path) -> None:
    run_dir = build_tiny_run(tmp_path / "run")
    config = tiny_config().model_copy(update={"run_dir": str(run_dir)})
    config = config.model_copy(update={"data": config.data.model_copy(update={"part_rows": 32})})
    items = tmp_path / "new.parquet"
    pq.write_table(pa.table({"item": [f"new-{n}" for n in range(70)], "title": ["kudi tajo"] * 70}), items)
    addition = Addition.plan(config, str(items), None, tmp_path / "out")
    addition.cut()
    encoder = ContentEncoder.from_pretrained(run_dir / "encoder")
    middle = addition.items_dir / "part-00001.parquet"
    encode_part(encoder, middle, addition.embeddings_dir / middle.name, config.encoder.encode_batch)

    job.add_items(addition, Screen())
    alone = add_locally(config, str(items), None, tmp_path / "alone")
    assert read_manifest(addition.out) == read_manifest(alone.out)

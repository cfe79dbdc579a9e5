"""The encode step on Ray Data: all parts, only the missing parts again, errors that name the item."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from toy_catalog import prepare_toy

from hymirec.artifacts import list_files
from hymirec.catalog.vectors import read_vectors
from hymirec.config import ComputeConfig, EncoderConfig, PipelineConfig
from hymirec.encoder import ContentEncoder
from hymirec.errors import NonFiniteEmbeddingError
from ray_jobs.encode import encode_step

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]
CONFIG = PipelineConfig(
    encoder=EncoderConfig(hidden_size=16, layers=1, heads=2, vocab_size=300, encode_batch=8),
    compute=ComputeConfig(encode_actors=1, cpus_per_actor=0.5),
)


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    prepare_toy(tmp_path / "data")
    ContentEncoder.build(CONFIG.encoder, ["Title: red garden lantern"], seed=2).save_pretrained(tmp_path / "encoder")
    return tmp_path


def test_a_rerun_encodes_only_what_is_missing_and_ends_in_the_same_bytes(run_dir: Path) -> None:
    out, seen = run_dir / "embeddings", []
    two_actors = CONFIG.model_copy(update={"compute": ComputeConfig(encode_actors=2, cpus_per_actor=0.5)})
    info = encode_step(two_actors, run_dir, out, lambda done, total: seen.append((done, total)))
    assert info == {"width": 16, "without_text": 1}
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert read_vectors(out).shape == (40, 16)
    whole = list_files(out)
    assert sorted(whole) == [f"part-{number:05d}.parquet" for number in range(3)]
    times = {name: (out / name).stat().st_mtime_ns for name in whole}
    (out / "part-00001.parquet").unlink()
    (out / "part-00002.parquet").write_bytes(b"cut off in the middle")
    assert encode_step(CONFIG, run_dir, out) == info
    assert list_files(out) == whole
    again = {name: (out / name).stat().st_mtime_ns for name in whole}
    made_again = [name for name in sorted(whole) if again[name] != times[name]]
    assert made_again == [
        "part-00001.parquet",
        "part-00002.parquet",
    ]


def test_an_embedding_that_is_not_finite_ends_the_step_with_the_items_name(run_dir: Path) -> None:
    encoder = ContentEncoder.from_pretrained(run_dir / "encoder")
    with torch.no_grad():
        encoder.center[0] = float("nan")
    encoder.save_pretrained(run_dir / "encoder")
    with pytest.raises(NonFiniteEmbeddingError, match=r"embedding of item \d+ \(part-0000\d.parquet, row \d+"):
        encode_step(CONFIG, run_dir, run_dir / "embeddings")

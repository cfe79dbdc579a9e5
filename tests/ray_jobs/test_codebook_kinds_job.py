"""The kinds beside the cosine one, through real Ray Train: two workers write what one process writes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from codebook_workers import clustered

from hymirec.catalog.parts import part_name
from hymirec.catalog.vectors import read_vectors, write_vectors
from hymirec.codebook import IdentityReducer, fit_variant, open_codebook
from hymirec.config import CodebookConfig, ComputeConfig, PipelineConfig
from ray_jobs.codebook import codebook_step, codes_step

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]
ROWS = 900


@pytest.mark.parametrize("kind", ["euclidean", "none"])
def test_two_workers_write_the_bytes_of_one_process_and_code_all_items(kind: str, tmp_path: Path) -> None:
    rows = clustered(ROWS, 16)
    for number, start in enumerate(range(0, ROWS, 500)):
        index = np.arange(start, min(start + 500, ROWS), dtype=np.int32)
        write_vectors(tmp_path / "embeddings" / part_name(number), index, rows[index])
    codebook = CodebookConfig.model_validate({"kind": kind, "layers": 2, "centroids": 32, "iterations": 4})
    config = PipelineConfig(codebook=codebook, compute=ComputeConfig(workers=2, cpus_per_worker=1))
    codebook_step(config, tmp_path, tmp_path / "codebook", "3" * 64)
    codes_step(config, tmp_path, tmp_path / "codes")
    vectors = read_vectors(tmp_path / "embeddings")
    alone = fit_variant(vectors, np.arange(ROWS), config.codebook, config.seed, IdentityReducer())
    alone.save_pretrained(tmp_path / "alone")
    for path in (tmp_path / "alone").iterdir():
        assert path.read_bytes() == (tmp_path / "codebook" / path.name).read_bytes()
    items = open_codebook(tmp_path / "codebook").open_items(tmp_path / "codes")
    assert np.array_equal(items.codes_NL, alone.encode_items(vectors).codes_NL)

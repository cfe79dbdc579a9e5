"""Encoding a part: order, fallback, determinism, and the item that broke it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from hymirec.catalog.schemas import items_schema
from hymirec.catalog.vectors import read_vectors
from hymirec.config import EncoderConfig
from hymirec.encoder import ContentEncoder, encode_part
from hymirec.encoder.tokenizer import token_ids
from hymirec.errors import NonFiniteEmbeddingError

TEXTS = ["Title: a very long red lantern with a handle", "Title: mug", "", "Title: blue sign", "  ", "Title: mug"]


@pytest.fixture
def encoder() -> ContentEncoder:
    config = EncoderConfig(hidden_size=32, layers=1, heads=2, vocab_size=300, max_tokens=16)
    return ContentEncoder.build(config, TEXTS, seed=5)


@pytest.fixture
def part(tmp_path: Path) -> Path:
    rows = len(TEXTS)
    columns = {
        "index": list(range(rows)),
        "item": [f"sku-{i}" for i in range(rows)],
        "key": list(range(rows)),
        "title": TEXTS,
        "text": TEXTS,
        "popularity": [0] * rows,
    }
    path = tmp_path / "items" / "part-00000.parquet"
    path.parent.mkdir()
    pq.write_table(pa.table(columns, schema=items_schema(pa.string())), path)
    return path


@pytest.mark.parametrize("batch", [1, 4, 100])
def test_rows_keep_their_order_whatever_the_batch(
    encoder: ContentEncoder, part: Path, tmp_path: Path, batch: int
) -> None:
    stats = encode_part(encoder, part, tmp_path / "part-00000.parquet", batch)
    assert (stats.rows, stats.fallbacks) == (6, 2)
    written = read_vectors([tmp_path / "part-00000.parquet"])
    with torch.inference_mode():
        expected = torch.cat([encoder.encode([text]) for text in TEXTS]).numpy()
    np.testing.assert_allclose(written, expected, atol=2e-3)


def test_items_without_text_share_the_embedding_of_the_fallback(
    encoder: ContentEncoder, part: Path, tmp_path: Path
) -> None:
    encode_part(encoder, part, tmp_path / "out.parquet", 100)
    vectors = read_vectors([tmp_path / "out.parquet"])
    with torch.inference_mode():
        fallback = encoder.encode(["unknown item"])[0].numpy()
    np.testing.assert_allclose(vectors[2], fallback, atol=2e-3)
    np.testing.assert_array_equal(vectors[2], vectors[4])


def test_the_same_part_gives_the_same_bytes(encoder: ContentEncoder, part: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        encode_part(encoder, part, tmp_path / name, 4)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_an_embedding_that_is_not_finite_names_the_item_and_writes_nothing(
    encoder: ContentEncoder, part: Path, tmp_path: Path
) -> None:
    rows = [token_ids(encoder.tokenizer, [text], "<|item|>", 16)[0] for text in TEXTS]
    only_in_sign = set(rows[3]).difference(*(rows[:3] + rows[4:])).pop()
    with torch.no_grad():
        encoder.backbone.get_input_embeddings().weight[only_in_sign] = float("nan")
    expected = r"item 'sku-3' \(part-00000.parquet, row 3, text 'Title: blue sign'\)"
    with pytest.raises(NonFiniteEmbeddingError, match=expected):
        encode_part(encoder, part, tmp_path / "out" / "part-00000.parquet", 100)
    assert not (tmp_path / "out").exists()


def test_a_value_beyond_fp16_is_refused_like_infinity(encoder: ContentEncoder, part: Path, tmp_path: Path) -> None:
    encoder.center[0] = -70_000.0
    with pytest.raises(NonFiniteEmbeddingError, match="finite numbers within fp16"):
        encode_part(encoder, part, tmp_path / "out.parquet", 100)

"""Real vectors for benchmarks: titles of posts, encoded with MiniLM (mean of all tokens, unit length), kept in a cache.

The titles are a Parquet file with a column `title`, named by $HYMIREC_TITLES or looked for beside the repository. Run
this file once to fill the cache (about ten minutes on one core); benchmarks that need it do so themselves.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parents[2]
VARIABLE = "HYMIREC_TITLES"
BESIDE = ROOT.parent / "shared" / "data" / "titles" / "reddit-titles-1m.parquet"
CACHE = ROOT / "tests" / ".cache"
ROWS = 120_000
MAX_TOKENS = 64
BATCH = 64


def titles_file() -> Path:
    """The Parquet file of titles; SystemExit says how to name it when it is not there."""
    path = Path(os.environ.get(VARIABLE, BESIDE))
    if not path.is_file():
        raise SystemExit(f"{path} is not there; set {VARIABLE} to a Parquet file with a column `title`")
    return path


def title_vectors(rows: int = ROWS) -> NDArray[np.float16]:
    """Unit vectors of `rows` different titles, fp16 (rows, 384), in a random but fixed order."""
    target = CACHE / f"titles-{rows}.npy"
    if not target.is_file():
        CACHE.mkdir(parents=True, exist_ok=True)
        work = target.with_suffix(f".{os.getpid()}.npy")
        np.save(work, _encode(_sample(rows)))
        work.replace(target)
    vectors: NDArray[np.float16] = np.load(target)
    return vectors


def _sample(rows: int) -> list[str]:
    titles = pq.read_table(titles_file(), columns=["title"])["title"].drop_null().unique().to_pylist()
    if len(titles) < rows:
        raise SystemExit(f"expected at least {rows} different titles in {titles_file()}, got {len(titles)}")
    return [titles[i] for i in np.random.default_rng(0).permutation(len(titles))[:rows]]


def _encode(titles: list[str]) -> NDArray[np.float16]:
    """Titles of about equal length together, so that little is padding."""
    from transformers import AutoModel, AutoTokenizer

    from hymirec.pretrained import pretrained_dir

    directory = pretrained_dir("minilm")
    tokenizer, model = AutoTokenizer.from_pretrained(directory), AutoModel.from_pretrained(directory).eval()
    vectors = np.empty((len(titles), model.config.hidden_size), np.float16)
    order = np.argsort([len(title) for title in titles], kind="stable")
    for start in range(0, len(titles), BATCH):
        rows = order[start : start + BATCH]
        batch = tokenizer(
            [titles[i] for i in rows], padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt"
        )
        with torch.inference_mode():
            hidden = model(**batch).last_hidden_state
        mask = batch["attention_mask"][:, :, None].to(hidden)
        mean = (hidden * mask).sum(1) / mask.sum(1)
        vectors[rows] = torch.nn.functional.normalize(mean, dim=1).numpy().astype(np.float16)
        if start // BATCH % 100 == 0:
            sys.stderr.write(f"\r{start + len(rows)} of {len(titles)} titles")
    sys.stderr.write("\n")
    return vectors


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.stdout.write(f"{title_vectors().shape} in {CACHE}\n")

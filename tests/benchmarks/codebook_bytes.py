"""What a few bytes an item keep of real title vectors: cosine and recall@100 against faiss and wider layouts."""

from __future__ import annotations

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import faiss
import numpy as np
import torch
from bench_kit import Figure, main, value
from numpy.typing import NDArray
from titles import title_vectors

from hymirec.codebook import IdentityReducer, ResidualCodebook, fit_codebook, item_codes
from hymirec.config import CodebookConfig

ROWS, QUERIES, NEIGHBOURS = 100_000, 1000, 100
THREADS = 2
CENTROIDS, BEAM, ITERATIONS, REFITS = 4096, 4, 6, 2

Floats = NDArray[np.float32]


def figures() -> list[Figure]:
    """Every layout is fitted on the rows that it codes, as a catalogue is."""
    torch.set_num_threads(THREADS)
    faiss.omp_set_num_threads(THREADS)
    x = title_vectors()[:ROWS].astype(np.float32)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    true = neighbours(x, x)

    three = fitted(x, layers=3, beam=1, joint_refits=0, magnitudes="lloyd4")
    wide = quality(x, three.decode(*three.encode(x, 1, False)), true)
    six = stored(three, x, true)
    theirs = quality(x, torch.from_numpy(faiss_vectors(x)), true)
    twelve = stored(fitted(x, layers=6, beam=BEAM, joint_refits=REFITS, magnitudes="lloyd4"), x, true)
    most = stored(fitted(x, layers=12, beam=BEAM, joint_refits=REFITS, magnitudes="lloyd4"), x, true)
    return [
        value("bytes of 3 ids and magnitudes, not 3 x (int32 + fp32)", six[2], 0, 6, "bytes", at_least=False),
        value(f"cosine at {six[2]} bytes, not below the greedy one at 24", six[0], wide[0], 0.0, "cosine"),
        value(f"cosine at {twelve[2]} bytes, above faiss 12x8 beam 5", twelve[0], theirs[0], 0.03, "cosine"),
        value(f"recall@100 at {twelve[2]} bytes, above faiss 12x8 beam 5", twelve[1], theirs[1], 0.04, "recall"),
        value(f"recall@100 at {most[2]} bytes (3 x (int32 + fp32): {wide[1]:.3f})", most[1], 0, 0.8, "recall"),
    ]


def fitted(x: Floats, **options: object) -> ResidualCodebook:
    """A codebook of few passes, so that this ends within minutes."""
    config = CodebookConfig.model_validate({"centroids": CENTROIDS, "iterations": ITERATIONS, **options})
    started = time.monotonic()
    codebook = fit_codebook(x, np.arange(len(x)), config, 0, IdentityReducer())
    sys.stderr.write(f"fitted {options} in {time.monotonic() - started:.0f} s\n")
    return codebook


def stored(codebook: ResidualCodebook, x: Floats, true: NDArray[np.int64]) -> tuple[float, float, int]:
    """Mean cosine, recall and bytes an item of what is stored."""
    packed = item_codes(codebook, x)
    return *quality(x, codebook.decode(packed.codes_NL, packed.magnitudes_NL), true), packed.bytes_per_item


def faiss_vectors(x: Floats) -> Floats:
    """12 bytes an item: 12 codes of 8 bits, a beam of 5; fitted on every fourth row: it takes minutes."""
    quantizer = faiss.ResidualQuantizer(x.shape[1], 12, 8)
    quantizer.max_beam_size = 5
    quantizer.train(np.ascontiguousarray(x[::4]))
    decoded: Floats = quantizer.decode(quantizer.compute_codes(x))
    return decoded


def quality(x: Floats, decoded: torch.Tensor, true: NDArray[np.int64]) -> tuple[float, float]:
    """Mean cosine of rows and their decoded vectors, and recall@100 of the nearest decoded vectors of a query."""
    cosine = float(torch.cosine_similarity(torch.from_numpy(x), decoded).mean())
    unit = torch.nn.functional.normalize(decoded, dim=1).numpy()
    found = neighbours(x, unit)
    hits = sum(len(set(a) & set(b)) for a, b in zip(true.tolist(), found.tolist(), strict=True))
    return cosine, hits / true.size


def neighbours(x: Floats, table: Floats) -> NDArray[np.int64]:
    """The 100 rows of a table that are nearest to each of 1,000 rows, without itself."""
    queries = np.linspace(0, len(x) - 1, QUERIES).astype(np.int64)
    scores = x[queries] @ table.T
    scores[np.arange(QUERIES), queries] = -np.inf
    found: NDArray[np.int64] = np.argpartition(-scores, NEIGHBOURS, axis=1)[:, :NEIGHBOURS]
    return found


if __name__ == "__main__":
    main(figures)

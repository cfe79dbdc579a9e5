"""Decoding against torch: `embedding_bag` on an fp32 table, and the product that a projected codebook saves."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
from bench_kit import compare, main
from torch.nn import functional as F  # noqa: N812

from hymirec.codebook.decode import Int8Tables, decode, decode_items
from hymirec.codebook.magnitudes import fit_magnitudes
from hymirec.codebook.table import ItemCodes

LAYERS, CENTROIDS, WIDTH, HIDDEN, EVENTS, ITEMS = 3, 4096, 2048, 256, 20_000, 200_000
THREADS = 1
DECODE_GOAL, PROJECTED_GOAL = 5.0, 50.0


def figures() -> list[dict[str, object]]:
    """Random codes, unit centroids, 4-bit magnitudes; both sides on one thread, tables prepared beforehand."""
    torch.set_num_threads(THREADS)
    rng = np.random.default_rng(0)
    torch.manual_seed(0)
    full = F.normalize(torch.randn(LAYERS, CENTROIDS, WIDTH), dim=2)
    weight = torch.randn(HIDDEN, WIDTH) / WIDTH**0.5
    projected = full @ weight.T
    drawn = rng.normal(0.4, 0.05, (ITEMS, LAYERS)).astype(np.float32)
    items = ItemCodes.of(
        rng.integers(0, CENTROIDS, (ITEMS, LAYERS)), drawn, CENTROIDS, fit_magnitudes("lloyd4", drawn[:20_000])
    )
    index = rng.integers(0, ITEMS, EVENTS)
    codes, magnitudes = (torch.from_numpy(array) for array in items.rows(index))
    small = Int8Tables.of(full)
    exact, rounded = decode(codes, magnitudes, full), decode(codes, magnitudes, small)
    cosine = float(F.cosine_similarity(exact.double(), rounded.double()).min())
    sys.stdout.write(f"8-bit tables: least cosine to fp32 {cosine:.6f} over {EVENTS:,} events\n")
    bag = (codes.long() + CENTROIDS * torch.arange(LAYERS), full.view(-1, WIDTH))
    half = weight.bfloat16().T

    def peer() -> torch.Tensor:
        found: torch.Tensor = F.embedding_bag(*bag, per_sample_weights=magnitudes, mode="sum")
        return found

    def peer_projected() -> torch.Tensor:
        found: torch.Tensor = peer().bfloat16() @ half
        return found

    out, thin = torch.zeros(EVENTS, WIDTH), torch.zeros(EVENTS, HIDDEN)
    narrow = Int8Tables.of(projected)
    ours: dict[str, Callable[[], object]] = {
        "8-bit tables, buffer kept": lambda: decode(codes, magnitudes, small, out),
        "8-bit tables, packed rows, buffer kept": lambda: decode_items(items, index, small, out),
        "8-bit tables, new memory": lambda: decode(codes, magnitudes, small),
        "fp32 tables, buffer kept": lambda: decode(codes, magnitudes, full, out),
        "fp32 tables, new memory": lambda: decode(codes, magnitudes, full),
    }
    behind: dict[str, Callable[[], object]] = {
        "projected, fp32": lambda: decode(codes, magnitudes, projected, thin),
        "projected, fp32, packed rows": lambda: decode_items(items, index, projected, thin),
        "projected, 8-bit": lambda: decode(codes, magnitudes, narrow, thin),
    }
    shape = f"{EVENTS} events, {LAYERS} x {CENTROIDS} x {WIDTH}"
    rows = [compare(f"decode {name}: {shape}", run, peer, DECODE_GOAL) for name, run in ours.items()]
    rows += [
        compare(f"decode {name}: {shape} -> {HIDDEN}", run, peer_projected, PROJECTED_GOAL)
        for name, run in behind.items()
    ]
    return rows


if __name__ == "__main__":
    main(figures)

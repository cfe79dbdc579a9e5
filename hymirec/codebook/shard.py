"""The rows that one worker fits on: 8-bit directions, cut into the global slices of a pass.

One byte a component. What does not fit `memory_mb` goes to one local file a slice, and every pass streams it from
there: a fit then needs as much memory as its config says, whatever the catalogue. Which rows a worker holds, and in
which order, changes nothing in the result.

n rows of this worker  D width  P padded width  K centroids  g slice
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hymirec.codebook.exact import mix
from hymirec.codebook.kernels import Kernel, Table
from hymirec.codebook.project import project_rows
from hymirec.codebook.reduce import Reducer
from hymirec.codebook.rotation import Rotation

MEBIBYTE = 1 << 20
# Bytes of a slice that are in work at a time.
CHUNK_BYTES = 16 * MEBIBYTE


class Shard:
    """`rows_g` int8 (n_g, P), in memory or mapped files; `hash_g` the hashes of their global numbers."""

    def __init__(self, rows: list[Tensor], hashes: list[NDArray[np.uint64]], on_disk: bool = False) -> None:
        self.rows, self.hashes, self.on_disk = rows, hashes, on_disk

    def __len__(self) -> int:
        return sum(len(rows) for rows in self.rows)

    @property
    def width(self) -> int:
        """Padded width (P)."""
        return self.rows[0].shape[1]

    @property
    def device(self) -> torch.device:
        """Where the rows are."""
        return self.rows[0].device

    @property
    def slices(self) -> int:
        """Number of global slices; a worker's part of one may be empty."""
        return len(self.rows)

    def chunks(self, number: int) -> Iterator[Tensor]:
        """The rows of a slice, about 16 MiB at a time when they lie on disk."""
        rows = self.rows[number]
        if len(rows):
            yield from self._split(rows) if self.on_disk else [rows]

    def _split(self, rows: Tensor) -> tuple[Tensor, ...]:
        parts: tuple[Tensor, ...] = rows.split(max(1, CHUNK_BYTES // self.width))
        return parts

    def checksum(self) -> int:
        """Sum of all components; with the number of rows it tells one fit's rows from another's."""
        return sum(int(chunk.sum(dtype=torch.int64)) for g in range(self.slices) for chunk in self.chunks(g))

    def leave(self, table: Table, kernel: Kernel, length: float) -> None:
        """Replace every row by what its nearest centroid leaves, in place; rows of which nothing is left go."""
        price = torch.zeros(len(table), dtype=torch.int32, device=self.device)
        for number in range(self.slices):
            kept, hashes = 0, self.hashes[number]
            # Rows are 4 bytes a component while they are projected.
            for chunk, first in _with_offsets(self._split(self.rows[number])):
                left = project_rows(chunk, kernel.nearest(chunk, table, price), table.units_KP, length)
                alive = (left != 0).any(1)
                some = left if bool(alive.all()) else left[alive]
                self.rows[number][kept : kept + len(some)] = some
                hashes[kept : kept + len(some)] = hashes[first : first + len(chunk)][alive.cpu().numpy()]
                kept += len(some)
            self.rows[number], self.hashes[number] = self.rows[number][:kept], hashes[:kept]

    def draw(self, count: int, salt: int, reducer: Reducer) -> Tensor:
        """The `count` rows of all workers whose numbers hash lowest under a salt, int8 (<= count, P).

        The same rows in the same order on every worker, however rows are spread over them.
        """
        hashes = np.concatenate(self.hashes)
        ends = np.cumsum([len(rows) for rows in self.rows])

        def take(positions: NDArray[np.int64]) -> Tensor:
            taken = torch.empty(len(positions), self.width, dtype=torch.int8, device=self.device)
            number = np.searchsorted(ends, positions, side="right")
            for g in np.unique(number):
                mine = np.flatnonzero(number == g)
                inside = positions[mine] - (ends[g] - len(self.rows[g]))
                taken[torch.from_numpy(mine).to(self.device)] = _ordered(self.rows[g], inside)
            return taken

        return lowest(mix(hashes, salt), take, count, reducer, self.device)


def lowest(
    key_n: NDArray[np.uint64],
    take: Callable[[NDArray[np.int64]], Tensor],
    count: int,
    reducer: Reducer,
    device: torch.device,
) -> Tensor:
    """Rows of all workers with the `count` lowest keys, in the order of their keys; `take` gives rows by position.

    Only keys travel first (8 bytes each), then the rows that are asked for.
    """
    mine = np.argpartition(key_n, count - 1)[:count] if 0 < count < len(key_n) else np.arange(len(key_n))
    mine = mine[np.argsort(key_n[mine])]
    keys = reducer.gather(torch.from_numpy(key_n[mine].view(np.int64)).to(device)).cpu().numpy().view(np.uint64)
    keys.sort()
    if count <= 0 or not len(keys):
        return reducer.gather(take(mine[:0]))
    mine = mine[key_n[mine] <= keys[min(count, len(keys)) - 1]]
    found = reducer.gather(torch.from_numpy(key_n[mine].view(np.int64)).to(device)).cpu().numpy().view(np.uint64)
    rows = reducer.gather(take(mine))
    return rows[torch.from_numpy(np.argsort(found)[:count]).to(rows.device)]


def build_shard(
    batches: Iterable[tuple[Tensor, NDArray[np.uint64]]],
    rotation: Rotation,
    slices: int,
    memory_mb: int,
    device: torch.device,
) -> Shard:
    """Rotate rows (B, D) with the hashes (B,) of their numbers and sort them into slices.

    Zero rows take no part and are left out. Files lie in a temporary directory that has no name any more.
    """
    blocks: list[list[Tensor]] = [[] for _ in range(slices)]
    hashes: list[list[NDArray[np.uint64]]] = [[] for _ in range(slices)]
    held, spool = 0, None
    for rows, hash_n in batches:
        units = rotation.directions(rows.to(device))
        alive = (units != 0).any(1)
        if not bool(alive.all()):
            units, hash_n = units[alive], hash_n[alive.cpu().numpy()]
        number = (hash_n % np.uint64(slices)).astype(np.int64)
        order = np.argsort(number, kind="stable")
        bounds = np.searchsorted(number[order], np.arange(slices + 1))
        units, hash_n = _ordered(units, order), hash_n[order]
        for g in range(slices):
            if bounds[g] < bounds[g + 1]:
                blocks[g].append(units[bounds[g] : bounds[g + 1]])
                hashes[g].append(hash_n[bounds[g] : bounds[g + 1]])
        held += units.numel()
        # Joining the blocks of a slice takes as much again.
        if 2 * held > memory_mb * MEBIBYTE and spool is None:
            spool = _Spool(slices, rotation.padded)
        if spool is not None:
            spool.append(blocks)
    empty = torch.empty(0, rotation.padded, dtype=torch.int8, device=device)
    if spool is None:
        rows_g = []
        for some in blocks:
            rows_g.append(_joined(some) if some else empty)
            some.clear()
    else:
        rows_g = spool.rows()
    return Shard(
        rows_g, [np.concatenate(some) if some else np.empty(0, np.uint64) for some in hashes], spool is not None
    )


def _ordered(rows: Tensor, order: NDArray[np.int64]) -> Tensor:
    """Rows in another order; numpy copies whole rows, torch's indexing 8-bit components one by one."""
    if rows.device.type == "cpu":
        return torch.from_numpy(rows.numpy()[order])
    return rows[torch.from_numpy(order).to(rows.device)]


def _joined(blocks: list[Tensor]) -> Tensor:
    if blocks[0].device.type == "cpu":
        return torch.from_numpy(np.concatenate([block.numpy() for block in blocks]))
    return torch.cat(blocks)


class _Spool:
    """One file a slice, appended to, then mapped; gone when the process ends."""

    def __init__(self, slices: int, width: int) -> None:
        self._width = width
        with tempfile.TemporaryDirectory(prefix="hymirec-fit-") as directory:
            self._files = [(Path(directory) / f"{g}").open("w+b") for g in range(slices)]

    def append(self, blocks: list[list[Tensor]]) -> None:
        """Write what memory holds, and forget it."""
        for file, some in zip(self._files, blocks, strict=True):
            for block in some:
                file.write(block.cpu().numpy().data)
            some.clear()

    def rows(self) -> list[Tensor]:
        """All slices, mapped writable."""
        mapped = []
        for file in self._files:
            file.flush()
            size = file.tell()
            array = (
                np.memmap(file, np.int8, "r+", shape=(size // self._width, self._width))
                if size
                else np.empty((0, self._width), np.int8)
            )
            mapped.append(torch.from_numpy(array))
        return mapped


def _with_offsets(chunks: Iterable[Tensor]) -> Iterator[tuple[Tensor, int]]:
    first = 0
    for chunk in chunks:
        yield chunk, first
        first += len(chunk)

"""Codes -> vectors: sum_l a_l table[l, code_l] for many items in one pass.

A table row is read once and an output row written once. On the CPU the rows are shared among
`torch.get_num_threads()` threads by a Numba kernel that holds no lock of the interpreter; on a GPU torch does it.

- fp32 tables: products are added in the order of the layers and never fused, so the result is the plain formula's, bit
  for bit, whatever the batch and the number of threads.
- `Int8Tables`: one byte a component and one scale a table row. At D = 2048, L = 3, K = 4096 that is 25 MB instead of
  101, which a last-level cache holds. Off by at most sum_l |a_l| scale_l / 2 a component; the least cosine to the fp32
  result was 0.99994 on random unit centroids of that shape.

Memory that is new costs as much as decoding into it: give `out` where a buffer can be used again.

N catalogue  B rows  E events of a history  L layers  K centroids  X width of the table's rows (D, or H when projected)
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np
import torch
from numba import njit
from numpy.typing import NDArray
from torch import Tensor

from hymirec.codebook.packed import checked_index, prefetch
from hymirec.codebook.table import ItemCodes

# Less output than this (in numbers) is not worth a second thread.
THREAD_NUMBERS = 65_536
# Packed rows that are unpacked at a time: small enough to stay in a core's cache.
UNPACK_ROWS = 8192
# Table rows are asked for this many output rows ahead, no further than the processor goes on by itself.
AHEAD_ROWS = 2
AHEAD_BYTES = 1024
CODE_TYPES = (torch.uint16, torch.int32, torch.int64)


@dataclass(frozen=True)
class Int8Tables:
    """Tables in 8 bits: entry [l, k, x] is `scale_LK[l, k] * values_LKX[l, k, x]`."""

    values_LKX: Tensor
    scale_LK: Tensor

    @classmethod
    def of(cls, tables_LKX: Tensor) -> Int8Tables:
        """Round fp32 tables (L, K, X); the largest component of each row becomes 127 or -127.

        Raises ValueError when a component is not finite.
        """
        tables = tables_LKX.detach().float()
        largest = tables.abs().amax(dim=2)
        if not bool(torch.isfinite(largest).all()):
            raise ValueError("expected finite tables, got NaN or infinity; look at the weights that projected them")
        scale = torch.where(largest > 0, largest / 127, 1.0)
        values = torch.stack([(table / own[:, None]).round() for table, own in zip(tables, scale, strict=True)])
        return cls(values.to(torch.int8), scale)

    @property
    def shape(self) -> torch.Size:
        """(L, K, X)."""
        return self.values_LKX.shape

    def to(self, device: torch.device | str) -> Int8Tables:
        """The same on another device."""
        return Int8Tables(self.values_LKX.to(device), self.scale_LK.to(device))


Tables: TypeAlias = Tensor | Int8Tables


def decode(codes_BL: Tensor, magnitudes_BL: Tensor, tables: Tables, out: Tensor | None = None) -> Tensor:
    """sum_l magnitudes[b, l] * tables[l, codes[b, l]], fp32 (B, X), into `out` if given. Not differentiable.

    Codes are uint16, int32 or int64 (int64 on a GPU), magnitudes fp32, `tables` fp32 (L, K, X) or `Int8Tables`, all on
    one device; numpy arrays become tensors by `torch.from_numpy`. Raises ValueError for shapes, types or codes that do
    not fit.
    """
    layers, centroids, width = tables.shape
    if codes_BL.dtype not in CODE_TYPES or codes_BL.ndim != 2 or codes_BL.shape[1] != layers:
        raise ValueError(f"expected whole codes of shape (B, {layers}), got {codes_BL.dtype} {tuple(codes_BL.shape)}")
    if magnitudes_BL.shape != codes_BL.shape or magnitudes_BL.dtype != torch.float32:
        raise ValueError(
            f"expected fp32 magnitudes of shape {tuple(codes_BL.shape)}, got {magnitudes_BL.dtype} "
            f"{tuple(magnitudes_BL.shape)}"
        )
    out = _output(out, (len(codes_BL), width), codes_BL.device)
    if codes_BL.device.type != "cpu":
        return _decode_torch(codes_BL.long(), magnitudes_BL, tables, out)
    codes, magnitudes = codes_BL.detach().contiguous().numpy(), magnitudes_BL.detach().contiguous().numpy()
    _check_codes(codes, centroids)
    arrays, target = _arrays(tables), out.numpy()

    def part(start: int, stop: int) -> None:
        _decode(codes[start:stop], magnitudes[start:stop], *arrays, target[start:stop])

    _share(part, len(codes), width)
    return out


def decode_items(
    items: ItemCodes, index_B: NDArray[np.integer[Any]], tables: Tables, out: Tensor | None = None
) -> Tensor:
    """Vectors fp32 (B, X) of items, straight from their packed rows, on the CPU; see `decode`.

    Histories of several users are one concatenated index: events are decoded each for itself.
    Raises IndexError for an item that is not there.
    """
    layers, centroids, width = tables.shape
    if layers != items.layers or centroids != items.layout.centroids:
        raise ValueError(
            f"expected tables of {items.layers} x {items.layout.centroids} rows, got {layers} x {centroids}; use the "
            "codebook that made the codes"
        )
    index = checked_index(index_B, len(items))
    out = _output(out, (len(index), width), torch.device("cpu"))
    arrays, target = _arrays(tables), out.numpy()

    def part(start: int, stop: int) -> None:
        for first in range(start, stop, UNPACK_ROWS):
            last = min(first + UNPACK_ROWS, stop)
            codes, magnitudes = items.layout.unpack(items.packed_NR, index[first:last])
            _check_codes(codes, centroids)
            _decode(codes, magnitudes, *arrays, target[first:last])

    _share(part, len(index), width)
    return out


def decode_padded(
    items: ItemCodes, index_BE: NDArray[np.integer[Any]], mask_BE: NDArray[np.bool_], tables: Tables
) -> Tensor:
    """Histories of unequal length, (B, E, X) fp32: events where the mask is True, zeros elsewhere."""
    out = torch.zeros(*index_BE.shape, tables.shape[2])
    out[torch.from_numpy(mask_BE)] = decode_items(items, index_BE[mask_BE], tables)
    return out


def _output(out: Tensor | None, shape: tuple[int, int], device: torch.device) -> Tensor:
    if out is None and device.type == "cpu":
        # numpy asks for huge pages, which makes new memory several times cheaper.
        return torch.from_numpy(np.empty(shape, np.float32))
    if out is None:
        return torch.empty(shape, device=device)
    if out.shape != shape or out.dtype != torch.float32 or not out.is_contiguous() or out.device != device:
        raise ValueError(
            f"expected out to be contiguous fp32 of shape {shape} on {device}, got {out.dtype} {tuple(out.shape)} on "
            f"{out.device}"
        )
    return out.detach()


def _arrays(tables: Tables) -> tuple[NDArray[Any], NDArray[np.float32]]:
    """Table entries and scales (0, 0: none) for the kernel."""
    values, scale = (tables.values_LKX, tables.scale_LK) if isinstance(tables, Int8Tables) else (tables, None)
    if values.device.type != "cpu" or values.dtype not in (torch.float32, torch.int8):
        raise ValueError(f"expected fp32 tables on the device of the codes, got {values.dtype} on {values.device}")
    scales = np.empty((0, 0), np.float32) if scale is None else scale.detach().contiguous().numpy()
    return values.detach().contiguous().numpy(), scales


def _check_codes(codes_BL: NDArray[np.integer[Any]], centroids: int) -> None:
    if codes_BL.size and (int(codes_BL.max()) >= centroids or int(codes_BL.min()) < 0):
        raise ValueError(f"expected codes 0..{centroids - 1}, got {int(codes_BL.min())}..{int(codes_BL.max())}")


def _share(part: Callable[[int, int], None], rows: int, width: int) -> None:
    """Run a part of the rows on each thread; the first part on this one."""
    threads = max(1, min(torch.get_num_threads(), rows * width // THREAD_NUMBERS))
    cuts = [rows * thread // threads for thread in range(threads + 1)]
    if threads == 1:
        part(0, rows)
        return
    others = [_pool(os.getpid()).submit(part, cuts[i], cuts[i + 1]) for i in range(1, threads)]
    part(0, cuts[1])
    for other in others:
        other.result()


@lru_cache(maxsize=1)
def _pool(pid: int) -> ThreadPoolExecutor:
    """Threads of this process; a fork has none of its parent's."""
    return ThreadPoolExecutor(max(1, (os.cpu_count() or 1) - 1), thread_name_prefix=f"decode-{pid}")


def _decode_torch(codes_BL: Tensor, magnitudes_BL: Tensor, tables: Tables, out: Tensor) -> Tensor:
    out.zero_()
    for layer in range(codes_BL.shape[1]):
        code, magnitude = codes_BL[:, layer], magnitudes_BL[:, layer]
        if isinstance(tables, Int8Tables):
            magnitude = magnitude * tables.scale_LK[layer][code]
            out.addcmul_(tables.values_LKX[layer][code].float(), magnitude[:, None])
        else:
            out.addcmul_(tables[layer][code], magnitude[:, None])
    return out


@njit(cache=True, nogil=True)
def _decode(
    codes_BL: NDArray[np.integer[Any]],
    magnitudes_BL: NDArray[np.float32],
    values_LKX: NDArray[Any],
    scale_LK: NDArray[np.float32],
    out_BX: NDArray[np.float32],
) -> None:
    """Three layers at a time, the rest one by one, always added in order; the first pass sets, the others add."""
    layers, width = codes_BL.shape[1], out_BX.shape[1]
    weight = np.empty(layers, np.float32)
    base, stride = np.uintp(values_LKX.ctypes.data), np.uintp(values_LKX.strides[1])
    ahead = stride if stride < AHEAD_BYTES else np.uintp(AHEAD_BYTES)
    for row in range(len(codes_BL)):
        if row + AHEAD_ROWS < len(codes_BL):
            for layer in range(layers):
                entry = np.uintp(layer * values_LKX.shape[1]) + np.uintp(codes_BL[row + AHEAD_ROWS, layer])
                start = base + entry * stride
                for line in range(np.uintp(0), ahead, np.uintp(64)):
                    prefetch(start + line)  # type: ignore[call-arg]
        code, out = codes_BL[row], out_BX[row]
        for layer in range(layers):
            weight[layer] = magnitudes_BL[row, layer]
            if scale_LK.shape[0] > 0:
                weight[layer] *= scale_LK[layer, code[layer]]
        done = 0
        while done < layers:
            a0, r0 = weight[done], values_LKX[done, code[done]]
            if done + 3 > layers:
                if done == 0:
                    for x in range(width):
                        out[x] = a0 * np.float32(r0[x])
                else:
                    for x in range(width):
                        out[x] += a0 * np.float32(r0[x])
                done += 1
                continue
            a1, r1 = weight[done + 1], values_LKX[done + 1, code[done + 1]]
            a2, r2 = weight[done + 2], values_LKX[done + 2, code[done + 2]]
            if done == 0:
                for x in range(width):
                    out[x] = a0 * np.float32(r0[x]) + a1 * np.float32(r1[x]) + a2 * np.float32(r2[x])
            else:
                for x in range(width):
                    out[x] = out[x] + a0 * np.float32(r0[x]) + a1 * np.float32(r1[x]) + a2 * np.float32(r2[x])
            done += 3

"""The packed row of an item: L ids, then L magnitudes, in as few bits as they need.

    bit   0                 L x I                      L x (I + M)      8 x R
          | id 0 | id 1 | ..| magnitude 0 | magnitude 1 | ..| zeros     |

I = ceil(log2 K) bits an id, M bits a magnitude (`magnitudes.py`), R = ceil(L (I + M) / 8) bytes. Bit b of a row is bit
b % 8 (least significant first) of its byte b // 8, and a field's bits stand in that order too: a row read as one
little-endian number holds field f at `number >> start_f`. L = 3, K = 4096, lloyd4: 6 bytes; L = 6: 12 bytes.

Kernels for the CPU are Numba's and hold no lock of the interpreter; `unpack_rows` does the same with torch, for rows
on a GPU. All of them are exact and give the same numbers.

N rows  L layers  K centroids  R bytes a row  V levels  B rows asked for
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray
from torch import Tensor

from hymirec.codebook.magnitudes import MagnitudeCodec, magnitude_codec

MAX_LAYERS = 16
MAX_CENTROIDS = 65_536
# Items lie anywhere in the table: a row is asked for this many rows before it is read.
AHEAD_ROWS = 16
# Bytes that a field of at most 32 bits touches.
FIELD_BYTES = 5


@dataclass(frozen=True, eq=False)
class CodeLayout:
    """What the bytes of a row mean. Two layouts are equal when their `as_dict` are."""

    layers: int
    centroids: int
    magnitudes: MagnitudeCodec

    def __post_init__(self) -> None:
        if not (1 <= self.layers <= MAX_LAYERS and 1 <= self.centroids <= MAX_CENTROIDS):
            raise ValueError(
                f"expected 1..{MAX_LAYERS} layers and 1..{MAX_CENTROIDS:,} centroids, got {self.layers} and "
                f"{self.centroids}"
            )
        levels = self.magnitudes.levels_LV
        if levels is not None and len(levels) != self.layers:
            raise ValueError(f"expected levels of {self.layers} layers, got {len(levels)}")

    @property
    def id_bits(self) -> int:
        """Bits of one id (I); 0 for a single centroid."""
        return (self.centroids - 1).bit_length()

    @property
    def row_bytes(self) -> int:
        """Bytes of one item (R)."""
        return -(-self.layers * (self.id_bits + self.magnitudes.bits) // 8)

    def as_dict(self) -> dict[str, Any]:
        """JSON values that `from_dict` reads; levels are base64 of their little-endian fp32 bytes."""
        levels = self.magnitudes.levels_LV
        return {
            "format": 1,
            "layers": self.layers,
            "centroids": self.centroids,
            "magnitudes": self.magnitudes.kind,
            **({} if levels is None else {"levels": base64.b64encode(levels.astype("<f4").tobytes()).decode()}),
        }

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> CodeLayout:
        """Raises ValueError, KeyError or TypeError when the value is no layout of this format."""
        if value["format"] != 1:
            raise ValueError(f"expected layout format 1, got {value['format']!r}")
        levels = None
        if "levels" in value:
            flat = np.frombuffer(base64.b64decode(value["levels"], validate=True), "<f4").astype(np.float32)
            levels = flat.reshape(int(value["layers"]), -1)
        return cls(int(value["layers"]), int(value["centroids"]), magnitude_codec(value["magnitudes"], levels))

    def pack(self, codes_NL: NDArray[np.integer[Any]], magnitudes_NL: NDArray[np.floating[Any]]) -> NDArray[np.uint8]:
        """Rows (N, R). Raises ValueError for a code that is not below K, ModelError as the codec does."""
        codes = np.asarray(codes_NL)
        if codes.ndim != 2 or codes.shape[1] != self.layers or codes.shape != np.shape(magnitudes_NL):
            raise ValueError(
                f"expected codes and magnitudes of shape (N, {self.layers}), got {codes.shape} and "
                f"{np.shape(magnitudes_NL)}"
            )
        if codes.size and (int(codes.min()) < 0 or int(codes.max()) >= self.centroids):
            raise ValueError(f"expected codes 0..{self.centroids - 1}, got {int(codes.min())}..{int(codes.max())}")
        packed = np.zeros((len(codes), self.row_bytes), np.uint8)
        stored = self.magnitudes.quantise(magnitudes_NL).astype(np.uint32)
        _pack(np.ascontiguousarray(codes, np.uint16), stored, self.id_bits, self.magnitudes.bits, packed)
        return packed

    def unpack(
        self, packed_NR: NDArray[np.uint8], index_B: NDArray[np.integer[Any]] | None = None
    ) -> tuple[NDArray[np.uint16], NDArray[np.float32]]:
        """Codes uint16 (B, L) and magnitudes fp32 (B, L) of rows of (N, R); without an index, of all.

        Raises IndexError for a row that is not there, ValueError for rows of another width.
        """
        if packed_NR.ndim != 2 or packed_NR.shape[1] != self.row_bytes:
            raise ValueError(f"expected rows of {self.row_bytes} bytes, got an array of shape {packed_NR.shape}")
        index = checked_index(index_B, len(packed_NR))
        codes = np.empty((len(index), self.layers), np.uint16)
        bits = np.empty((len(index), self.layers), np.uint32)
        _unpack(packed_NR, index, self.id_bits, self.magnitudes.bits, self.table_bits, codes, bits)
        return codes, bits.view(np.float32)

    @cached_property
    def table_bits(self) -> NDArray[np.uint32]:
        """Stored magnitude -> the bits of its fp32 value, (L or 1, 2^M); empty where these are the same."""
        table = self.magnitudes.table
        return np.empty((1, 0), np.uint32) if table is None else np.ascontiguousarray(table).view(np.uint32)


def checked_index(index_B: NDArray[np.integer[Any]] | None, rows: int) -> NDArray[np.int64]:
    """An index of rows 0..rows-1 as int64; None is all of them. Raises IndexError."""
    if index_B is None:
        return np.arange(rows)
    index = np.ascontiguousarray(index_B, np.int64)
    if index.size and (int(index.min()) < 0 or int(index.max()) >= rows):
        raise IndexError(f"expected rows 0..{rows - 1}, got {int(index.min())}..{int(index.max())}")
    return index


def unpack_rows(rows_BR: Tensor, layout: CodeLayout, table: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Packed rows uint8 (B, R) on any device -> codes int64 (B, L) and magnitudes fp32 (B, L), without a host copy.

    `table` is `layout.magnitudes.table` on that device, where it is kept between calls.
    """
    device, layers, bits = rows_BR.device, layout.layers, layout.magnitudes.bits
    codes = _fields(rows_BR, 0, layout.id_bits, layers)
    stored = _fields(rows_BR, layers * layout.id_bits, bits, layers)
    values = layout.magnitudes.table
    if values is None:
        return codes, stored.where(stored < 2**31, stored - 2**32).to(torch.int32).view(torch.float32)
    if table is None:
        table = torch.from_numpy(values).to(device)
    layer = torch.arange(layers, device=device) % len(values)
    return codes, table[layer, stored]


def _fields(rows_BR: Tensor, start: int, width: int, count: int) -> Tensor:
    """`count` fields of `width` bits from bit `start` on, int64 (B, count)."""
    if width == 0:
        return rows_BR.new_zeros(len(rows_BR), count, dtype=torch.int64)
    device = rows_BR.device
    first = start + width * torch.arange(count, device=device)
    byte = first[:, None] // 8 + torch.arange(FIELD_BYTES, device=device)
    padded = torch.nn.functional.pad(rows_BR, (0, FIELD_BYTES))
    parts = padded[:, byte].to(torch.int64) << (8 * torch.arange(FIELD_BYTES, device=device))
    fields: Tensor = (parts.sum(dim=2) >> (first % 8)) & (2**width - 1)
    return fields


@intrinsic  # type: ignore[untyped-decorator]
def prefetch(typing_context: Any, address: Any) -> Any:
    """Ask for the cache line at an address; a hint that changes no result."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = builder.inttoptr(arguments[0], ir.IntType(8).as_pointer())
        word = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [pointer.type, word, word, word])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8")
        # Read, to be kept in all levels, data.
        builder.call(function, [pointer, word(0), word(3), word(1)])
        return context.get_dummy_value()

    return types.void(types.uintp), generate


@njit(cache=True, nogil=True)
def _pack(
    codes_NL: NDArray[np.uint16], stored_NL: NDArray[np.uint32], id_bits: int, bits: int, packed_NR: NDArray[np.uint8]
) -> None:
    layers = codes_NL.shape[1]
    for row in range(len(codes_NL)):
        held, filled, byte = np.uint64(0), 0, 0
        for field in range(2 * layers):
            if field < layers:
                value, width = np.uint64(codes_NL[row, field]), id_bits
            else:
                value, width = np.uint64(stored_NL[row, field - layers]), bits
            held |= value << np.uint64(filled)
            filled += width
            while filled >= 8:
                packed_NR[row, byte] = np.uint8(held & np.uint64(255))
                held >>= np.uint64(8)
                filled -= 8
                byte += 1
        if filled > 0:
            packed_NR[row, byte] = np.uint8(held & np.uint64(255))


@njit(cache=True, nogil=True)
def _unpack(
    packed_NR: NDArray[np.uint8],
    index_B: NDArray[np.int64],
    id_bits: int,
    bits: int,
    table_LV: NDArray[np.uint32],
    codes_BL: NDArray[np.uint16],
    value_bits_BL: NDArray[np.uint32],
) -> None:
    """`value_bits_BL` are the bits of the fp32 magnitudes. A row of at most 8 bytes is read as one number."""
    layers, row_bytes = codes_BL.shape[1], packed_NR.shape[1]
    wide_id, wide = np.uint64(id_bits), np.uint64(bits)
    id_mask = (np.uint64(1) << wide_id) - np.uint64(1)
    mask = (np.uint64(1) << wide) - np.uint64(1)
    own_levels = table_LV.shape[0] > 1
    plain = table_LV.shape[1] == 0
    base = np.uintp(packed_NR.ctypes.data)
    for place in range(len(index_B)):
        row = index_B[place]
        if place + AHEAD_ROWS < len(index_B):
            prefetch(base + np.uintp(index_B[place + AHEAD_ROWS] * row_bytes))  # type: ignore[call-arg]
        held, filled, byte = np.uint64(0), 0, 0
        if row_bytes <= 8:
            for byte in range(row_bytes):
                held |= np.uint64(packed_NR[row, byte]) << np.uint64(8 * byte)
            filled = 64 + layers * (id_bits + bits)
        for layer in range(layers):
            while filled < id_bits:
                held |= np.uint64(packed_NR[row, byte]) << np.uint64(filled)
                filled += 8
                byte += 1
            codes_BL[place, layer] = np.uint16(held & id_mask)
            held >>= wide_id
            filled -= id_bits
        for layer in range(layers):
            while filled < bits:
                held |= np.uint64(packed_NR[row, byte]) << np.uint64(filled)
                filled += 8
                byte += 1
            stored = held & mask
            value = np.uint32(stored) if plain else table_LV[layer if own_levels else 0, np.int64(stored)]
            value_bits_BL[place, layer] = value
            held >>= wide
            filled -= bits

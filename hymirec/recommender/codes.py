"""The items' codes beside a model's weights: rows of a batch are unpacked when they are asked for.

Packed rows stay packed, where the model is. On the CPU they are the table itself, a file mapped into memory in a
bundle, read by a Numba kernel. On a GPU they are a copy of it (6 bytes an item at L = 3 with 4-bit magnitudes), read
with torch, so that a batch costs no copy between host and device.

N catalogue  L layers  R bytes a row
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from hymirec.codebook.packed import CodeLayout, unpack_rows
from hymirec.codebook.quantizer import ItemTable
from hymirec.codebook.table import ItemCodes


class CodeTable(nn.Module):
    """Not part of a checkpoint: its buffers follow the model from device to device and are written nowhere."""

    rows_NX: Tensor
    values: Tensor

    def __init__(self, items: ItemTable | None = None) -> None:
        """`ItemCodes` are kept packed; any other table of items as int32 codes and fp32 magnitudes."""
        super().__init__()
        self._layout: CodeLayout | None = None
        rows, values = torch.empty(0), torch.empty(0)
        if isinstance(items, ItemCodes):
            self._layout = items.layout
            table = items.layout.magnitudes.table
            rows = torch.from_numpy(items.packed_NR)
            values = torch.empty(0) if table is None else torch.from_numpy(table)
        elif items is not None:
            rows = torch.from_numpy(items.codes_NL.astype(np.int32))
            values = torch.from_numpy(items.magnitudes_NL.astype(np.float32))
        self.register_buffer("rows_NX", rows, persistent=False)
        self.register_buffer("values", values, persistent=False)

    def __len__(self) -> int:
        return len(self.rows_NX)

    def forward(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Codes int64 (..., L) and magnitudes fp32 (..., L) of items; an index is one of 0..N-1."""
        if self._layout is None:
            return self.rows_NX[index].long(), self.values[index]
        flat = index.reshape(-1)
        if self.rows_NX.device.type == "cpu":
            unpacked = self._layout.unpack(self.rows_NX.numpy(), flat.numpy())
            codes, magnitudes = torch.from_numpy(unpacked[0].astype(np.int64)), torch.from_numpy(unpacked[1])
        else:
            codes, magnitudes = unpack_rows(self.rows_NX[flat], self._layout, self.values)
        shape = (*index.shape, self._layout.layers)
        return codes.view(shape), magnitudes.view(shape)

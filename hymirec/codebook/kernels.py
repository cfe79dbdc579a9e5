"""Which centroid is nearest: one question, several kernels, the same bits from each of them.

Rows and centroids are 8-bit directions (`rotation.py`), so a score is an integer whatever computes it:

- `int8-vnni`   CPU with AVX-512 VNNI: 8-bit products, price and argmax fused (`vnni.py`); 5 times an fp32 product
- `float32`     any CPU: an ordinary fp32 matrix product of the same integers, exact because their sums stay below 2^24
                (width up to 20,000); the fallback, and the reference
- `int8-cuda`   GPU: 8-bit matrix product into 32 bits

`choose` takes the fastest that runs here, after it has given the reference's answer on a few rows. A reader finds the
choice in the report of a fit.

B rows  P padded width  K centroids  G lanes (16)
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hymirec.codebook import screen, vnni
from hymirec.codebook.exact import CHUNK_SCORES, exact_products
from hymirec.codebook.rotation import SCALE
from hymirec.errors import ModelError
from hymirec.simd import LANES, has_vnni

ABSENT = vnni.ABSENT
# Largest width for which SCALE^2 P, the length of a product, stays below 2^24.
MAX_FLOAT_WIDTH = int(2**24 / SCALE**2) // 32 * 32
# Rows between two flushes of 32-bit sums.
FLUSH_ROWS = 2**31 // 128
# Fewer rows than this are not worth a thread.
THREAD_ROWS = 512
THREAD_COLUMNS = 64

KernelName = Literal["auto", "int8", "float32"]


@dataclass(frozen=True)
class Table:
    """Centroids as a kernel wants them. `units_KP` are their 8-bit directions."""

    units_KP: Tensor
    packed: Any

    def __len__(self) -> int:
        return len(self.units_KP)


@dataclass(frozen=True)
class Screen:
    """A table, and what chooses the centroids of it that a row is compared with: the table of their first components
    and a rule (`screen.py`).
    """

    whole: Table
    head: Table
    rule: screen.Rule


class Sums(Protocol):
    """Sums of 8-bit rows, a centroid each."""

    def add(self, rows_BP: Tensor, code_B: Tensor) -> None:
        """Add every row to the sum of its centroid."""

    def totals(self) -> Tensor:
        """int64 (K, P)."""


class Kernel(Protocol):
    """Nearest centroids of 8-bit directions. Tensors are on the kernel's device; results are exact integers."""

    name: str

    def table(self, units_KP: Tensor) -> Table:
        """Prepare centroids, int8 (K, P)."""

    def nearest(self, rows_BP: Tensor, table: Table, price_K: Tensor) -> Tensor:
        """Number of the centroid with the largest x.c - price, int32 (B,); ties go to the lower number.

        `price_K` is int32, within +-2^29.
        """

    def nearest_screened(self, rows_BP: Tensor, screened: Screen, price_K: Tensor) -> tuple[Tensor, Tensor]:
        """`nearest` among the centroids that an eighth of the products leaves, with the same bits from every kernel.

        Also the number of rows that took all products, int64 ().
        """

    def lanes(self, rows_BP: Tensor, table: Table) -> tuple[Tensor, Tensor]:
        """The best centroid of each lane (centroids k with k % 16 = lane): scores x.c and numbers, int32 (B, 16).

        A lane without centroids has score ABSENT and any number. 16 candidates a row at the price of one.
        """

    def sums(self, count: int, width: int) -> Sums:
        """Empty sums of rows for `count` centroids."""


class _ColumnSums:
    """32-bit sums, flushed into 64 bits before they can overflow."""

    def __init__(self, count: int, width: int) -> None:
        self._sums, self._added = np.zeros((count, width), np.int32), 0
        self._flushed: NDArray[np.int64] | None = None

    def add(self, rows_BP: Tensor, code_B: Tensor) -> None:
        """Threads take columns, not rows: one table of sums serves all of them."""
        for rows, code in zip(rows_BP.split(FLUSH_ROWS), code_B.split(FLUSH_ROWS), strict=True):
            if self._added + len(rows) > FLUSH_ROWS:
                self._flush()
            self._added += len(rows)
            self._add(rows.numpy(), code.numpy())

    def _add(self, rows: NDArray[np.int8], code: NDArray[np.int32]) -> None:
        sums = self._sums
        on_threads(rows.shape[1], lambda part: vnni.add_rows(rows[:, part], code, sums[:, part]), THREAD_COLUMNS)

    def totals(self) -> Tensor:
        """All that was added."""
        if self._flushed is None:
            return torch.from_numpy(self._sums.astype(np.int64))
        return torch.from_numpy(self._flushed + self._sums)

    def _flush(self) -> None:
        self._flushed = self._sums + (self._flushed if self._flushed is not None else np.int64(0))
        self._sums[:] = 0
        self._added = 0


class _IndexedSums:
    """64-bit sums on the device of the rows."""

    def __init__(self, count: int, width: int) -> None:
        self._shape, self._sums = (count, width), torch.zeros(count, width, dtype=torch.int64)

    def add(self, rows_BP: Tensor, code_B: Tensor) -> None:
        """In chunks: rows become 8 times as large."""
        self._sums = self._sums.to(rows_BP.device)
        for rows, codes in zip(rows_BP.split(4096), code_B.long().split(4096), strict=True):
            self._sums.index_add_(0, codes, rows.long())

    def totals(self) -> Tensor:
        """All that was added."""
        return self._sums


class VnniKernel:
    """AVX-512 VNNI; one call uses as many threads as torch does."""

    name = "int8-vnni"

    def table(self, units_KP: Tensor) -> Table:
        """Panels of 32 centroids."""
        return Table(units_KP, vnni.pack_table(units_KP.contiguous().numpy()))

    def nearest(self, rows_BP: Tensor, table: Table, price_K: Tensor) -> Tensor:
        """Fused price and argmax."""
        price = _panel_prices(table, price_K.numpy())
        code = np.empty(len(rows_BP), np.int32)
        rows = rows_BP.numpy()
        on_threads(len(rows), lambda part: vnni.nearest(rows[part], table.packed, price, code[part]))
        return torch.from_numpy(code)

    def nearest_screened(self, rows_BP: Tensor, screened: Screen, price_K: Tensor) -> tuple[Tensor, Tensor]:
        """The remaining products are taken centroid by centroid."""
        rule, whole = screened.rule, screened.whole
        head_price = rule.head_price(price_K)
        end = (price_K - head_price + 128 * rule.rest_K).numpy()
        code, rows = np.empty(len(rows_BP), np.int32), rows_BP.numpy()
        arguments = (
            screened.head.packed,
            _panel_prices(screened.head, head_price.numpy()),
            whole.units_KP.contiguous().numpy(),
            end,
            whole.packed,
            _panel_prices(whole, price_K.numpy()),
            rule.mean_P.numpy(),
            rule.square + rule.mean_square,
            rule.deviations,
            rule.limit,
        )
        took_all = on_threads(len(rows), lambda part: screen.nearest(rows[part], *arguments, code[part]))
        return torch.from_numpy(code), torch.tensor(sum(took_all))

    def lanes(self, rows_BP: Tensor, table: Table) -> tuple[Tensor, Tensor]:
        """The lanes are those of the vector registers."""
        price = _panel_prices(table, np.zeros(len(table), np.int32))
        score, code = (np.empty((len(rows_BP), LANES), np.int32) for _ in range(2))
        rows = rows_BP.numpy()
        on_threads(len(rows), lambda part: vnni.lanes(rows[part], table.packed, price, score[part], code[part]))
        return torch.from_numpy(score), torch.from_numpy(code)

    def sums(self, count: int, width: int) -> Sums:
        """Every thread adds up its own columns."""
        return _ColumnSums(count, width)


class TorchKernel:
    """Matrix products by torch: fp32 on a CPU, 8 bits on a GPU."""

    def __init__(self, device: torch.device) -> None:
        self.name = "int8-cuda" if device.type == "cuda" else "float32"

    def table(self, units_KP: Tensor) -> Table:
        """Columns, padded to the multiple of 8 that the GPU's product needs."""
        if self.name == "float32":
            if units_KP.shape[1] > MAX_FLOAT_WIDTH:
                raise ModelError(
                    f"expected at most {MAX_FLOAT_WIDTH} dimensions for the float32 kernel, got {units_KP.shape[1]}; "
                    "fit and encode on a CPU with AVX-512 VNNI or on a GPU"
                )
            return Table(units_KP, units_KP.float().T.contiguous())
        padded = torch.nn.functional.pad(units_KP, (0, 0, 0, -len(units_KP) % 8))
        return Table(units_KP, padded.contiguous().T)

    def nearest(self, rows_BP: Tensor, table: Table, price_K: Tensor) -> Tensor:
        """Chunk by chunk: 64 MiB of scores at a time."""
        codes = []
        for rows in rows_BP.split(_chunk(table)):
            scores = self._scores(rows, table)
            # Prices are subtracted as integers: the difference may not fit fp32. A product below 2^24 does.
            codes.append((scores.to(torch.int32) - price_K).max(1)[1].to(torch.int32))
        return torch.cat(codes) if codes else rows_BP.new_zeros(0, dtype=torch.int32)

    def nearest_screened(self, rows_BP: Tensor, screened: Screen, price_K: Tensor) -> tuple[Tensor, Tensor]:
        """All products, and the rule applied to them: this spares nothing."""
        rule, codes = screened.rule, []
        head_price = rule.head_price(price_K)
        took_all = torch.zeros((), dtype=torch.int64, device=rows_BP.device)
        for rows in rows_BP.split(_chunk(screened.whole)):
            head = self._scores(rows[:, : rule.first].contiguous(), screened.head).to(torch.int32) - head_price
            left_out = head < head.amax(1, keepdim=True) - rule.margin(rows)[:, None]
            too_many = len(price_K) - left_out.sum(1) > rule.limit
            scores = self._scores(rows, screened.whole).to(torch.int32) - price_K
            scores.masked_fill_(left_out & ~too_many[:, None], torch.iinfo(torch.int32).min)
            codes.append(scores.max(1)[1].to(torch.int32))
            took_all += too_many.sum()
        return torch.cat(codes) if codes else rows_BP.new_zeros(0, dtype=torch.int32), took_all

    def lanes(self, rows_BP: Tensor, table: Table) -> tuple[Tensor, Tensor]:
        """The first best of every 16th centroid."""
        count = len(table)
        if not len(rows_BP):
            empty = rows_BP.new_zeros(0, LANES, dtype=torch.int32)
            return empty, empty
        found = []
        for rows in rows_BP.split(_chunk(table)):
            scores = torch.nn.functional.pad(
                self._scores(rows, table).to(torch.int32), (0, -count % LANES), value=ABSENT
            )
            best, which = scores.view(len(rows), -1, LANES).max(1)
            found.append((best, (which * LANES + torch.arange(LANES, device=which.device)).to(torch.int32)))
        return torch.cat([best for best, _ in found]), torch.cat([which for _, which in found])

    def sums(self, count: int, width: int) -> Sums:
        """By index_add."""
        return _IndexedSums(count, width)

    def _scores(self, rows_BP: Tensor, table: Table) -> Tensor:
        if self.name == "float32":
            with exact_products():
                product: Tensor = rows_BP.float() @ table.packed
                return product
        # The product needs more than 16 rows.
        rows = torch.nn.functional.pad(rows_BP, (0, 0, 0, max(0, 32 - len(rows_BP))))
        scores: Tensor = torch._int_mm(rows, table.packed)[: len(rows_BP), : len(table)]
        return scores


def screened(kernel: Kernel, table: Table) -> Screen:
    """A table of a kernel, ready for `nearest_screened`."""
    rule = screen.Rule.of(table.units_KP)
    return Screen(table, kernel.table(table.units_KP[:, : rule.first].contiguous()), rule)


def choose(name: KernelName, device: torch.device) -> Kernel:
    """The kernel for a device: `auto` takes the fastest that gives the reference's answer here.

    Raises ModelError when `int8` is asked for and this processor has none, or when it computes wrongly.
    """
    reference = TorchKernel(torch.device("cpu"))
    if name == "float32":
        return reference
    fast: Kernel | None = TorchKernel(device) if device.type == "cuda" else VnniKernel() if has_vnni() else None
    if fast is not None and _right(fast.name, device.type):
        return fast
    if name == "int8":
        raise ModelError(
            "codebook.kernel=int8 needs AVX-512 VNNI or a CUDA device that multiplies 8-bit integers exactly, and "
            "here is neither; set codebook.kernel=auto"
        )
    return reference


@cache
def _right(name: str, device_type: str) -> bool:
    """Whether a kernel agrees with the fp32 product on a few extreme and a few ordinary rows."""
    device = torch.device(device_type)
    kernel: Kernel = VnniKernel() if name == VnniKernel.name else TorchKernel(device)
    values = (np.arange(96 * 64, dtype=np.int64) * 2654435761 % 255 - 127).astype(np.int8).reshape(96, 64)
    values[:2] = [[127], [-127]]
    rows, price = torch.from_numpy(values), torch.arange(40, dtype=torch.int32) * 997
    reference = TorchKernel(torch.device("cpu"))
    expected = reference.lanes(rows, reference.table(rows[:40]))
    nearest = reference.nearest(rows, reference.table(rows[:40]), price)
    table = kernel.table(rows[:40].to(device))
    found = kernel.lanes(rows.to(device), table)
    return all(torch.equal(a.cpu(), b) for a, b in zip(found, expected, strict=True)) and torch.equal(
        kernel.nearest(rows.to(device), table, price.to(device)).cpu(), nearest
    )


def _chunk(table: Table) -> int:
    return max(32, CHUNK_SCORES // len(table))


def _panel_prices(table: Table, price: NDArray[np.int32]) -> NDArray[np.int32]:
    """Prices of whole panels; what is not there costs too much to be chosen."""
    whole = np.full(len(table.packed) * vnni.PANEL, -ABSENT, np.int32)
    whole[: len(price)] = price
    return whole


def on_threads(total: int, work: Callable[[slice], Any], least: int = THREAD_ROWS) -> list[Any]:
    """`work` on slices of 0..total, one a torch thread (kernels release the interpreter's lock)."""
    threads = max(1, min(torch.get_num_threads(), total // least))
    parts = [slice(total * t // threads, total * (t + 1) // threads) for t in range(threads)]
    if threads == 1:
        return [work(parts[0])]
    return list(_pool(torch.get_num_threads()).map(work, parts))


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="codebook")

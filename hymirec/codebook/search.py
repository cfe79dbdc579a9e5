"""Codes of rows: which centroid in each layer, and how much of it. Greedy, or a beam of partial code sequences.

Rows and centroids are rotated once. Per layer, an 8-bit kernel (`kernels.py`) names 16 candidates of every residual,
the best of each lane; those whose score is within the kernel's noise of the best are scored again in fp64 from the
fp32 rows (`steps.py`), and the best is taken. The nearest centroid is missed only where it and another one of its own
lane are within that noise: 1 to 4 rows of 1,000, at a loss of 1e-6 to 3e-6 of cosine a layer on average.
Everything but the kernel's products runs compiled on the CPU, so the codes are the same bits for every kernel, batch
and number of threads. With a CUDA kernel the 8-bit rows go to the device and the candidates come back (128 bytes a row
and layer); that path was written for the kernels' interface and has not been run on a GPU.

N, B rows  D width  P padded width  L layers  K centroids  W beam  G lanes (16)
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from hymirec.codebook import beam as beams
from hymirec.codebook import steps
from hymirec.codebook.kernels import Kernel, on_threads
from hymirec.codebook.rotation import Rotation, quantised
from hymirec.errors import NonFiniteEmbeddingError

# Rows a thread and step.
CHUNK_ROWS = 4096
# Fewer rows with beams than this are not worth a thread.
THREAD_ROWS = 64
# What is left of a row counts as nothing below this share of its norm: it is fp32 rounding.
NOTHING_LEFT = 1e-6
# Two 8-bit scores nearer than this many lengths may be out of order: 6 standard deviations of the rounding of a row and
# two centroids.
DOUBT = 3.5
# Narrower rows are padded to this width: the noise of a score falls with the square root of the width.
LEAST_WIDTH = 128
# Rows whose largest component lies outside 2^-RANGE .. 2^RANGE are scaled by a power of two, and their magnitudes back.
RANGE = 40


class Search:
    """A codebook made ready for coding with one kernel. `device` is where the kernel's products run."""

    def __init__(self, centroids_LKD: Tensor, kernel: Kernel, device: torch.device | None = None) -> None:
        layers, count, width = centroids_LKD.shape
        self.kernel = kernel
        self.shape = (layers, count, width)
        self._device = device or torch.device("cpu")
        self._rotation = Rotation(max(width, LEAST_WIDTH))
        rotated = self._rotation.forward(centroids_LKD.detach().cpu().reshape(-1, width))
        units = quantised(rotated, self._rotation.length).view(layers, count, -1)
        self._centroids = rotated.view(layers, count, -1).numpy()
        self._tables = [kernel.table(layer.to(self._device)) for layer in units]

    def code(self, x_ND: Tensor, beam: int = 1, refit: bool = False, first: int = 0) -> tuple[Tensor, Tensor]:
        """Codes int32 (N, L) and magnitudes fp32 (N, L), in units of the rows, on the CPU.

        `beam` code sequences (1..16) are kept by what they leave of a row, 1 is greedy: the largest product in each
        layer. `refit` gives the magnitudes by least squares on the chosen centroids (and, in a beam, on those chosen
        so far); they never leave more of a row than the greedy ones do. Ties go to the lower code. A zero row, and a
        row of which nothing is left, has code 0 and magnitude 0. Raises NonFiniteEmbeddingError naming the row,
        counted from `first`; ValueError for a beam out of range.
        """
        if not 1 <= beam <= beams.MAX_BEAM:
            raise ValueError(f"expected a beam of 1..{beams.MAX_BEAM}, got {beam}")
        codes = torch.zeros(len(x_ND), self.shape[0], dtype=torch.int32)
        magnitudes = torch.zeros(len(x_ND), self.shape[0])
        step = max(64, CHUNK_ROWS * torch.get_num_threads() // beam)
        for start in range(0, len(x_ND), step):
            rows = slice(start, min(start + step, len(x_ND)))
            chunk, exponent = in_range(x_ND[rows], first + start)
            y_BP = self._rotation.forward(chunk).numpy()
            if beam == 1:
                self._greedy(y_BP, refit, codes[rows].numpy(), magnitudes[rows].numpy())
            else:
                self._beam(y_BP, beam, refit, codes[rows].numpy(), magnitudes[rows].numpy())
            if exponent is not None:
                magnitudes[rows] = torch.ldexp(magnitudes[rows], exponent[:, None])
        return codes, magnitudes

    def _greedy(self, y_BP: steps.Floats, refit: bool, codes_BL: steps.Codes, magnitudes_BL: steps.Floats) -> None:
        whole = y_BP.copy() if refit else y_BP
        square = self._squares(y_BP)
        least = square * NOTHING_LEFT**2
        used = np.zeros(codes_BL.shape, np.bool_)
        for layer in range(self.shape[0]):
            used[:, layer] = square > least
            self._take(layer, y_BP, square, least, codes_BL[:, layer], magnitudes_BL[:, layer])
        if refit:
            on_threads(
                len(y_BP),
                lambda part: steps.refit(
                    whole[part], used[part], square[part], self._centroids, codes_BL[part], magnitudes_BL[part]
                ),
            )

    def _take(
        self,
        layer: int,
        y_BP: steps.Floats,
        square_B: steps.Doubles,
        least_B: steps.Doubles,
        code_B: steps.Codes,
        magnitude_B: steps.Floats,
    ) -> None:
        score, which = self._candidates(y_BP, square_B, layer)
        margin = int(DOUBT * self._rotation.length)

        def take(part: slice) -> None:
            rows = (y_BP[part], square_B[part], least_B[part], score[part], which[part])
            steps.take_best(*rows, margin, self._centroids[layer], code_B[part], magnitude_B[part])

        on_threads(len(y_BP), take)

    def _beam(
        self, y_BP: steps.Floats, beam: int, refit: bool, codes_BL: steps.Codes, magnitudes_BL: steps.Floats
    ) -> None:
        now = beams.Beams.start(y_BP, self._squares(y_BP), self.shape[0])
        least = now.left_BW[:, 0] * NOTHING_LEFT**2
        for layer in range(self.shape[0]):
            now = self._extend(layer, y_BP, least, beam, refit, now)
        codes_BL[:], magnitudes_BL[:] = now.codes_BWL[:, 0], now.magnitudes_BWL[:, 0]

    def _extend(
        self, layer: int, y_BP: steps.Floats, least_B: steps.Doubles, beam: int, refit: bool, now: beams.Beams
    ) -> beams.Beams:
        rows, width, padded = now.rest_BWP.shape
        score, which = (
            found.reshape(rows, width, -1)
            for found in self._candidates(now.rest_BWP.reshape(-1, padded), now.left_BW.reshape(-1), layer)
        )
        following = now.following(beam, score.shape[2])
        length = self._rotation.length
        how: tuple[Any, ...] = (1 / length**2, DOUBT / length, layer, self._centroids, refit)

        def extend(part: slice) -> None:
            given = (y_BP[part], least_B[part], score[part], which[part])
            beams.extend_beams(*given, *how, *now.part(part), *following.part(part))

        on_threads(rows, extend, THREAD_ROWS)
        return following

    def _squares(self, y_BP: steps.Floats) -> steps.Doubles:
        square = np.empty(len(y_BP), np.float64)
        on_threads(len(y_BP), lambda part: steps.squares(y_BP[part], square[part]))
        return square

    def _candidates(self, y_BP: steps.Floats, square_B: steps.Doubles, layer: int) -> tuple[steps.Codes, steps.Codes]:
        """Score and number (B, 16) of the best centroid of every lane, for residuals and their squared lengths."""
        units = np.empty(y_BP.shape, np.int8)
        length = self._rotation.length
        on_threads(len(y_BP), lambda part: steps.directions(y_BP[part], square_B[part], length, units[part]))
        score, which = self.kernel.lanes(torch.from_numpy(units).to(self._device), self._tables[layer])
        return score.cpu().numpy(), which.cpu().numpy()


def in_range(x_BD: Tensor, first: int = 0) -> tuple[Tensor, Tensor | None]:
    """Finite rows in fp32 on the CPU, those far from 1 scaled by 2^-exponent, and the exponents (B,) if any is not 0.

    Raises NonFiniteEmbeddingError naming the row, counted from `first`.
    """
    x_BD = x_BD.detach().cpu().float()
    peak = x_BD.abs().amax(1) if x_BD.numel() else x_BD.new_zeros(len(x_BD))
    finite = torch.isfinite(peak)
    if not bool(finite.all()):
        row = first + int((~finite).nonzero()[0])
        raise NonFiniteEmbeddingError(
            f"the embedding of row {row} holds NaN or infinity; look at that item's text and at the "
            "weights that encoded it"
        )
    far = (peak > 0) & ((peak > 2.0**RANGE) | (peak < 2.0**-RANGE))
    if not bool(far.any()):
        return x_BD, None
    exponent = torch.where(far, torch.frexp(peak)[1], 0)
    # In fp64: 2^149 is beyond fp32.
    return torch.ldexp(x_BD.double(), -exponent[:, None]).float(), exponent

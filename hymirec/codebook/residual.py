"""Cosine residual codebook: an embedding becomes one code and one magnitude a layer, and a few table rows again.

Layer l picks the centroid with the largest cosine to the residual and removes the residual's projection on it (not the
centroid itself). So a residual is orthogonal to its centroid, |e|^2 = sum a_l^2 + |rest|^2, and the norm never grows.
Source: HyMiRec, arXiv 2510.13738, codebook section.

N rows  D width  L layers  K centroids  H projected width
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hymirec.codebook.exact import norms, tree_sum
from hymirec.codebook.files import CONFIG_FILE, WEIGHTS_FILE, load_centroids, save_centroids
from hymirec.codebook.kernels import Kernel, choose
from hymirec.codebook.magnitudes import MagnitudeCodec, magnitude_codec
from hymirec.codebook.quantizer import ItemTable
from hymirec.codebook.search import Search
from hymirec.codebook.table import ItemCodes
from hymirec.errors import ArtifactDamagedError, ZeroCentroidError

MODEL_TYPE = "hymirec_codebook"


def project_out(residual_BD: Tensor, centroid_BD: Tensor) -> tuple[Tensor, Tensor]:
    """Remove from each residual its projection on its centroid.

    Returns the new residual (B, D) and the signed magnitude (B,), in units of the embedding's norm, both in the
    residual's dtype. A row's result does not depend on the other rows.
    Source: HyMiRec, arXiv 2510.13738, codebook section; a zero centroid raises ZeroCentroidError.
    """
    residual, centroid = residual_BD.double(), centroid_BD.double()
    square = tree_sum(centroid * centroid)
    if bool((square == 0).any()):
        row = int((square == 0).nonzero()[0])
        raise ZeroCentroidError(
            f"the centroid of row {row} has length zero: a projection on it is not defined; fit the codebook again"
        )
    share = tree_sum(residual * centroid) / square
    left = residual - share[:, None] * centroid
    dtype = residual_BD.dtype
    return left.to(dtype), (share * square.sqrt()).to(dtype)


class ResidualCodebook(nn.Module):
    """`centroids_LKD`: unit rows, fp32. The code of a row is a function of the row and the codebook alone."""

    kind = "cosine"
    centroids_LKD: Tensor

    def __init__(
        self,
        centroids_LKD: Tensor | NDArray[np.floating[Any]],
        info: dict[str, Any] | None = None,
        magnitudes: MagnitudeCodec | None = None,
    ) -> None:
        """Rows that are not of unit length are normalised. `info` is kept in config.json.

        `magnitudes` is how item codes store magnitudes; without it, the floats that `info["magnitudes"]` names.
        Raises ValueError for a wrong shape and ZeroCentroidError for a row that is zero or not finite.
        """
        super().__init__()
        centroids = torch.as_tensor(centroids_LKD).detach().float().contiguous()
        if centroids.ndim != 3 or 0 in centroids.shape:
            raise ValueError(f"expected centroids of shape (layers, centroids, width), got {tuple(centroids.shape)}")
        flat = centroids.view(-1, centroids.shape[2])
        norm = norms(flat)
        bad = ~(torch.isfinite(norm) & (norm > 0))
        if bool(bad.any()):
            layer, centroid = divmod(int(bad.nonzero()[0]), centroids.shape[1])
            raise ZeroCentroidError(
                f"centroid {centroid} of layer {layer} is zero or not finite and has no direction; fit the "
                "codebook again"
            )
        if bool(((norm - 1).abs() > 1e-5).any()):
            centroids = (flat.double() / norm[:, None]).float().view_as(centroids)
        self.register_buffer("centroids_LKD", centroids)
        self.info = dict(info or {})
        # What depends on the machine that fitted (kernel, seconds); never saved.
        self.facts: dict[str, Any] = {}
        self.magnitudes = self._codec(magnitudes)
        self._search: tuple[Tensor, int, Search] | None = None

    @property
    def layers(self) -> int:
        """Number of residual layers (L)."""
        return self.centroids_LKD.shape[0]

    @property
    def centroids(self) -> int:
        """Number of centroids a layer (K)."""
        return self.centroids_LKD.shape[1]

    @property
    def width(self) -> int:
        """Number of dimensions (D)."""
        return self.centroids_LKD.shape[2]

    def _codec(self, magnitudes: MagnitudeCodec | None) -> MagnitudeCodec:
        if magnitudes is None:
            return magnitude_codec(self.info.get("magnitudes", "float16"))
        levels = magnitudes.levels_LV
        if levels is not None and len(levels) != self.layers:
            raise ValueError(f"expected magnitude levels of {self.layers} layers, got {len(levels)}")
        self.info["magnitudes"] = magnitudes.kind
        return magnitudes

    def encode(
        self, x_ND: Tensor | NDArray[np.floating[Any]], beam: int | None = None, refit: bool | None = None
    ) -> tuple[Tensor, Tensor]:
        """Codes int32 (N, L) and magnitudes fp32 (N, L), in units of the rows' norms; ties go to the lower code.

        `beam` is how many code sequences are kept (1..16; 1 is greedy) and `refit` asks for least-squares magnitudes on
        the chosen centroids; without them, what `info` says. A zero row, and a row of which nothing is left, has code 0
        and magnitude 0. Raises NonFiniteEmbeddingError naming the row; see `Search.code`.
        """
        x_ND = torch.as_tensor(x_ND)
        self._check_width(x_ND)
        codes, magnitudes = self.search().code(
            x_ND,
            int(self.info.get("beam", 1)) if beam is None else beam,
            bool(self.info.get("refit", False)) if refit is None else refit,
        )
        return codes.to(self.centroids_LKD.device), magnitudes.to(self.centroids_LKD.device)

    def search(self, kernel: Kernel | None = None) -> Search:
        """The centroids made ready for coding, kept for later calls; with `kernel`, else with the fastest one here."""
        centroids = self.centroids_LKD
        if kernel is None and self._search is not None:
            of, version, search = self._search
            if of is centroids and version == centroids._version:
                return search
        if kernel is not None:
            return Search(centroids, kernel, centroids.device)
        search = Search(centroids, choose("auto", centroids.device), centroids.device)
        self._search = (centroids, centroids._version, search)
        return search

    def decode(self, codes_NL: Tensor | NDArray[Any], magnitudes_NL: Tensor | NDArray[Any]) -> Tensor:
        """sum_l a_l c_l, fp32 (N, D): linear in the magnitudes. Codes may be of any integer type."""
        codes = _tensor(codes_NL).to(self.centroids_LKD.device, torch.int64)
        magnitudes = _tensor(magnitudes_NL).to(self.centroids_LKD)
        if codes.ndim != 2 or codes.shape != magnitudes.shape or codes.shape[1] != self.layers:
            raise ValueError(
                f"expected codes and magnitudes of shape (N, {self.layers}), got {tuple(codes.shape)} and "
                f"{tuple(magnitudes.shape)}"
            )
        decoded = self.centroids_LKD.new_zeros(len(codes), self.width)
        for layer in range(self.layers):
            decoded += magnitudes[:, layer, None] * self.centroids_LKD[layer][codes[:, layer]]
        return decoded

    def project(self, weight_HD: Tensor) -> Tensor:
        """The codebook behind a linear layer, (L, K, H), so that K rows are projected and not every event.

        Differentiable in the weight: decode(codes, a) @ W.T = sum_l a_l project(W)[l, code_l].
        """
        return self.centroids_LKD.to(weight_HD) @ weight_HD.T

    def encode_items(self, vectors_ND: Tensor | NDArray[np.floating[Any]]) -> ItemTable:
        """Vectors (N, D) as they are stored; see `item_codes`."""
        from hymirec.codebook.encode import item_codes

        return item_codes(self, vectors_ND)

    def code_part(self, source: Path, target: Path) -> int:
        """Code a part of embeddings; see `encode.code_part`."""
        from hymirec.codebook.encode import code_part

        return code_part(self, source, target)

    def open_items(self, codes_dir: Path) -> ItemTable:
        """All parts that `code_part` wrote to a directory; see `ItemCodes.open`."""
        return ItemCodes.open(codes_dir)

    def lookup(self, items: ItemTable) -> Tensor:
        """The centroids, fp32 (L, K, D), whatever the items."""
        return self.centroids_LKD

    def save_pretrained(self, directory: Path | str) -> None:
        """Write config.json and codebook.safetensors; equal codebooks give equal bytes."""
        tensors = {"centroids": self.centroids_LKD}
        if self.magnitudes.levels_LV is not None:
            tensors["levels"] = torch.from_numpy(self.magnitudes.levels_LV.copy())
        save_centroids(Path(directory), MODEL_TYPE, self.info, tensors)

    @classmethod
    def from_pretrained(cls, directory: Path | str) -> ResidualCodebook:
        """Load what `save_pretrained` wrote.

        Raises ArtifactMissingError, or ArtifactDamagedError when the two files do not fit each other.
        """
        path = Path(directory)
        tensors, info = load_centroids(path, MODEL_TYPE)
        levels = tensors["levels"].numpy() if "levels" in tensors else None
        try:
            named = "magnitudes" in info or levels is not None
            codec = magnitude_codec(info.get("magnitudes", "float16"), levels) if named else None
        except ValueError as e:
            raise ArtifactDamagedError(
                f"{path}: the magnitudes of {CONFIG_FILE} and the levels of {WEIGHTS_FILE} do not fit ({e}); delete "
                "the directory and run the codebook step again"
            ) from e
        return cls(tensors["centroids"], info, codec)

    def _check_width(self, x_ND: Tensor) -> None:
        if x_ND.ndim != 2 or x_ND.shape[1] != self.width:
            raise ValueError(f"expected rows of shape (N, {self.width}), got {tuple(x_ND.shape)}")


def _tensor(values: Tensor | NDArray[Any]) -> Tensor:
    """torch has few operations on uint16: numpy's become int64."""
    if isinstance(values, np.ndarray):
        return torch.from_numpy(values.astype(np.int64 if values.dtype.kind in "ui" else np.float32))
    return values

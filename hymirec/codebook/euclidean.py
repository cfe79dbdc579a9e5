"""Plain residual k-means: the nearest centroid by Euclidean distance is subtracted, layer by layer. For comparison.

There are no magnitudes, so an item is L packed codes and nothing else, and loads are not balanced.
The fit keeps to integers, as the cosine one does: a layer's residuals are rounded to a grid on which the longest of
all workers' rows just fits fp32's exact integers, so scores, sums and centroids are the same bits for any number of
workers. One very long row makes the grid coarse for all others; embeddings are of about one length.
Source: classic residual vector quantization (Juang and Gray, 1982); k-means by Lloyd's iteration.

n rows of this worker  N rows  D width  L layers  K centroids
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hymirec.catalog.parts import read_table, to_numpy
from hymirec.catalog.schemas import INDEX
from hymirec.catalog.vectors import read_vectors
from hymirec.codebook.encode import write_codes_part
from hymirec.codebook.exact import chunk_rows, exact_products, mix, norms, unit_length
from hymirec.codebook.files import load_centroids, save_centroids
from hymirec.codebook.magnitudes import UnitMagnitudes
from hymirec.codebook.quantizer import ItemTable
from hymirec.codebook.reduce import Reducer
from hymirec.codebook.state import Usage
from hymirec.codebook.table import ItemCodes
from hymirec.config import CodebookConfig
from hymirec.errors import ArtifactDamagedError, ModelError, NonFiniteEmbeddingError

MODEL_TYPE = "hymirec_euclidean_codebook"


class EuclideanCodebook:
    """`centroids_LKD`: fp32, of any length, in the unit of the vectors. `info` is kept in config.json."""

    kind = "euclidean"

    def __init__(self, centroids_LKD: Tensor, info: dict[str, Any] | None = None) -> None:
        if centroids_LKD.ndim != 3 or 0 in centroids_LKD.shape:
            raise ValueError(
                f"expected centroids of shape (layers, centroids, width), got {tuple(centroids_LKD.shape)}"
            )
        self.centroids_LKD = centroids_LKD.detach().float().cpu().contiguous()
        self.info = dict(info or {})

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

    def encode(self, vectors_ND: NDArray[np.floating[Any]] | Tensor) -> Tensor:
        """Codes int64 (N, L) of vectors (N, D): in each layer the centroid nearest to what is left, in fp64.

        Raises ValueError for another width and NonFiniteEmbeddingError naming the row.
        """
        rows = torch.as_tensor(vectors_ND).float().cpu()
        if rows.ndim != 2 or rows.shape[1] != self.width:
            raise ValueError(f"expected rows of shape (N, {self.width}), got {tuple(rows.shape)}")
        finite = torch.isfinite(rows).all(1)
        if not bool(finite.all()):
            raise NonFiniteEmbeddingError(
                f"the embedding of row {int((~finite).nonzero()[0])} holds NaN or infinity; look at that item's text "
                "and at the weights that encoded it"
            )
        tables = [(table.double().T, (table.double() ** 2).sum(1) / 2) for table in self.centroids_LKD]
        parts = []
        for start in range(0, len(rows), chunk_rows(self.centroids)):
            residual = rows[start : start + chunk_rows(self.centroids)]
            codes = []
            for layer, (table_DK, half_K) in enumerate(tables):
                codes.append((residual.double() @ table_DK - half_K).argmax(1))
                residual = residual - self.centroids_LKD[layer][codes[-1]]
            parts.append(torch.stack(codes, 1))
        return torch.cat(parts) if parts else torch.empty(0, self.layers, dtype=torch.int64)

    def encode_items(self, vectors_ND: NDArray[np.floating[Any]] | Tensor) -> ItemCodes:
        """Vectors (N, D) as they are stored, with no bits for magnitudes; see `encode`."""
        codes = self.encode(vectors_ND).numpy()
        return ItemCodes.of(codes, np.ones(codes.shape, np.float32), self.centroids, UnitMagnitudes())

    def code_part(self, source: Path, target: Path) -> int:
        """Code `source` (embeddings part) into `target` (codes part), atomically; returns its number of rows."""
        index = to_numpy(read_table(source, [INDEX])[INDEX])
        first = int(index[0]) if len(index) else 0
        write_codes_part(target, index, self.encode_items(read_vectors([source], first, first + len(index))))
        return len(index)

    def open_items(self, codes_dir: Path) -> ItemCodes:
        """Read all parts; see `ItemCodes.open`.

        Raises ArtifactDamagedError also when the codes are of another shape of codebook.
        """
        items = ItemCodes.open(codes_dir)
        found = (items.layers, items.layout.centroids, items.layout.magnitudes.kind)
        if found != (self.layers, self.centroids, "none"):
            raise ArtifactDamagedError(
                f"{codes_dir}: expected codes of {self.layers} layers of {self.centroids} centroids and no magnitudes, "
                f"got {found}; delete it and run the codes step again"
            )
        return items

    def lookup(self, items: ItemTable) -> Tensor:
        """The centroids, fp32 (L, K, D), whatever the items."""
        return self.centroids_LKD

    def save_pretrained(self, directory: Path | str) -> None:
        """Write config.json and codebook.safetensors; equal codebooks give equal bytes."""
        save_centroids(Path(directory), MODEL_TYPE, self.info, {"centroids": self.centroids_LKD})

    @classmethod
    def from_pretrained(cls, directory: Path | str) -> EuclideanCodebook:
        """Load what `save_pretrained` wrote.

        Raises ArtifactMissingError, or ArtifactDamagedError when the two files do not fit each other.
        """
        tensors, info = load_centroids(Path(directory), MODEL_TYPE)
        return cls(tensors["centroids"], info)


def fit_euclidean(
    rows_nD: NDArray[np.floating[Any]] | Tensor,
    row_ids: NDArray[np.int64],
    config: CodebookConfig,
    seed: int,
    reducer: Reducer,
) -> EuclideanCodebook:
    """Fit on this worker's rows (n, D) with their global numbers (n,), which must differ over all workers.

    Of the config, `layers`, `centroids` (capped at the number of rows) and `iterations` count. Every worker returns
    the same codebook; `info["usage"]` holds the usage of each layer's last pass.
    Raises NonFiniteEmbeddingError naming a row's number, on all workers alike; ModelError when there are no rows.
    """
    residual = torch.as_tensor(rows_nD).float()
    if residual.ndim != 2 or row_ids.shape != (len(residual),):
        raise ValueError(f"expected rows (n, D) and row_ids (n,), got {tuple(residual.shape)} and {row_ids.shape}")
    total = int(reducer.sum_(torch.tensor([len(residual)], device=residual.device)))
    if total == 0:
        raise ModelError("expected at least one row to fit a codebook on, got none; encode the items first")
    bad = ~torch.isfinite(residual).all(1)
    found = reducer.gather(torch.from_numpy(row_ids[bad.cpu().numpy()][:1].astype(np.int64)).to(residual.device))
    if len(found):
        raise NonFiniteEmbeddingError(
            f"the embedding of the item with index {int(found.min())} holds NaN or infinity; look at that item's "
            "text and at the weights that encoded it, then run the embeddings step again"
        )
    hash_n = mix(row_ids.astype(np.uint64), seed)
    count, layers, usage = min(config.centroids, total), [], []
    for layer in range(config.layers):
        scale = _scale(residual, reducer)
        grid = _Grid((residual.double() * scale).round().to(torch.int16), hash_n, reducer)
        centroids_KD = grid.seeds(count, 1 + layer * (config.iterations + 1))
        for iteration in range(config.iterations):
            centroids_KD, counts = grid.iterate(centroids_KD, 2 + iteration + layer * (config.iterations + 1))
        layers.append((centroids_KD.double() / scale).float())
        usage.append(asdict(Usage.of(counts)))
        residual = residual - layers[-1][grid.nearest(centroids_KD)]
    info = {"iterations": config.iterations, "usage": usage}
    return EuclideanCodebook(torch.stack(layers), info)


def _scale(rows_nD: Tensor, reducer: Reducer) -> float:
    """Grid steps in one unit of length, so that the longest row of all workers is `unit_length` steps long."""
    longest = (
        norms(rows_nD).amax()[None] if len(rows_nD) else torch.zeros(0, dtype=torch.float64, device=rows_nD.device)
    )
    found = float(reducer.gather(longest).max())
    return unit_length(rows_nD.shape[1]) / found if found > 0 else 1.0


class _Grid:
    """This worker's residuals of one layer, int16 (n, D), and Lloyd's iteration on them in whole numbers."""

    def __init__(self, rows_nD: Tensor, hash_n: NDArray[np.uint64], reducer: Reducer) -> None:
        self._rows, self._hash, self._reducer = rows_nD, hash_n, reducer

    def nearest(self, centroids_KD: Tensor) -> Tensor:
        """The centroid nearest to each row, (n,): largest x.c - |c|^2 / 2, which fp32 holds exactly."""
        table_DK = centroids_KD.float().T.contiguous()
        half_K = (centroids_KD.long() ** 2).sum(1).div(2, rounding_mode="floor").float()
        codes = [torch.empty(0, dtype=torch.int64, device=self._rows.device)]
        with exact_products():
            for rows in self._rows.split(chunk_rows(len(centroids_KD))):
                codes.append(torch.addmm(half_K, rows.float(), table_DK, beta=-1).max(1)[1])
        return torch.cat(codes)

    def iterate(self, centroids_KD: Tensor, salt: int) -> tuple[Tensor, Tensor]:
        """New centroids (K, D), the rounded means, and counts (K,); an empty one starts again from a drawn row."""
        count = len(centroids_KD)
        code = self.nearest(centroids_KD)
        sums = torch.zeros(centroids_KD.shape, dtype=torch.float64, device=code.device)
        for rows, codes in zip(self._rows.split(4096), code.split(4096), strict=True):
            sums.index_add_(0, codes, rows.double())
        counts = self._reducer.sum_(torch.bincount(code, minlength=count))
        means = self._reducer.sum_(sums.long()).double() / counts.clamp(min=1)[:, None]
        moved = means.round().to(torch.int16)
        empty = counts == 0
        if bool(empty.any()):
            moved[empty] = self._draw(int(empty.sum()), salt)
        return moved, counts

    def seeds(self, count: int, salt: int) -> Tensor:
        """`count` rows to start from, different ones as far as two draws for each hold them."""
        drawn = self._draw(2 * count, salt)
        host = drawn.cpu().numpy()
        first = dict.fromkeys(row.tobytes() for row in host)
        unique = np.frombuffer(b"".join(first), np.int16).reshape(-1, drawn.shape[1])
        chosen = torch.from_numpy(unique.copy()).to(drawn.device)
        return chosen[torch.arange(count, device=drawn.device) % len(chosen)]

    def _draw(self, count: int, salt: int) -> Tensor:
        """The rows of all workers whose numbers hash lowest under a salt; again from the first where they are few."""
        key = mix(self._hash, salt)
        mine = np.argsort(key, kind="stable")[:count]
        keys = self._reducer.gather(torch.from_numpy(key[mine].view(np.int64)).to(self._rows.device))
        rows = self._reducer.gather(self._rows[torch.from_numpy(mine).to(self._rows.device)])
        order = np.argsort(keys.cpu().numpy().view(np.uint64))[np.arange(count) % len(keys)]
        return rows[torch.from_numpy(order).to(rows.device)]

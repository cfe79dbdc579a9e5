"""The codebook itself: project, encode, decode, save.

Source: HyMiRec (arXiv 2510.13738), codebook section. N rows  L layers  K centroids  D width  H projected width
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from hymirec.artifacts import read_json, write_json
from hymirec.codebook.exact import assign, quantise
from hymirec.errors import ArtifactMissingError, ZeroCentroidError

WEIGHTS = "codebook.safetensors"


def project_out(residual_ND: Tensor, centroid_ND: Tensor) -> tuple[Tensor, Tensor]:
    """Remove from each residual its projection on its centroid.

    Returns the new residual (N, D, fp32) and the signed magnitude (N,), in units of the vector's norm: the length of
    the projection along the centroid's direction. Computed in fp64, row by row.
    Raises ZeroCentroidError for a centroid of length zero.
    """
    wide, c = residual_ND.to(torch.float64), centroid_ND.to(torch.float64)
    norm_N = (c * c).sum(dim=1).sqrt()
    if bool((norm_N == 0).any()):
        raise ZeroCentroidError(
            f"{int((norm_N == 0).sum())} rows are to be projected on a centroid of length zero; fit the codebook again"
        )
    direction = c / norm_N[:, None]
    magnitude_N = (wide * direction).sum(dim=1)
    return (wide - magnitude_N[:, None] * direction).to(torch.float32), magnitude_N.to(torch.float32)


class ResidualCodebook:
    """L layers of K unit centroids (L, K, D)."""

    def __init__(self, centroids_LKD: Tensor) -> None:
        self.centroids_LKD = centroids_LKD.to(torch.float32)
        self._integers_LKD = torch.stack([quantise(layer) for layer in self.centroids_LKD])

    @property
    def layers(self) -> int:
        """L."""
        return self.centroids_LKD.shape[0]

    @property
    def centroids(self) -> int:
        """K."""
        return self.centroids_LKD.shape[1]

    @property
    def width(self) -> int:
        """D."""
        return self.centroids_LKD.shape[2]

    def encode(self, x_ND: Tensor) -> tuple[Tensor, Tensor]:
        """Codes (N, L, int32) and magnitudes (N, L, fp32), greedy by layer; a zero vector has zeros for both.

        A row's result does not depend on the other rows.
        """
        residual = x_ND.to(torch.float32)
        codes, magnitudes = [], []
        for layer in range(self.layers):
            code_N = assign(quantise(residual), self._integers_LKD[layer])
            residual, magnitude_N = project_out(residual, self.centroids_LKD[layer][code_N])
            codes.append(code_N)
            magnitudes.append(magnitude_N)
        return torch.stack(codes, dim=1).to(torch.int32), torch.stack(magnitudes, dim=1)

    def decode(self, codes_NL: Tensor, magnitudes_NL: Tensor) -> Tensor:
        """Vectors (N, D): the sum of each layer's centroid times its magnitude."""
        layer_L = torch.arange(self.layers, device=codes_NL.device)
        picked_NLD = self.centroids_LKD[layer_L, codes_NL.long()]
        return (magnitudes_NL.to(torch.float32)[..., None] * picked_NLD).sum(dim=1)

    def project(self, weight_HD: Tensor) -> Tensor:
        """The codebook seen through a linear layer, (L, K, H): decoding it equals decoding and then projecting."""
        return self.centroids_LKD.to(weight_HD.dtype) @ weight_HD.T

    def save_pretrained(self, directory: Path) -> None:
        """Write `config.json` and `codebook.safetensors`."""
        directory.mkdir(parents=True, exist_ok=True)
        save_file({"centroids": self.centroids_LKD.contiguous()}, directory / WEIGHTS)
        write_json(
            directory / "config.json",
            {
                "model_type": "hymirec_residual_codebook",
                "layers": self.layers,
                "centroids": self.centroids,
                "width": self.width,
            },
        )

    @classmethod
    def from_pretrained(cls, directory: str | Path) -> ResidualCodebook:
        """Read what `save_pretrained` wrote. Raises ArtifactMissingError."""
        path = Path(directory)
        read_json(path / "config.json")
        if not (path / WEIGHTS).is_file():
            raise ArtifactMissingError(f"{path / WEIGHTS} is not there; run the codebook step")
        return cls(load_file(path / WEIGHTS)["centroids"])

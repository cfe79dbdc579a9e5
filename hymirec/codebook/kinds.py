"""The kinds of codebook: the one place that knows all of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from hymirec.artifacts import read_json
from hymirec.codebook import euclidean, raw, residual
from hymirec.codebook.files import CONFIG_FILE
from hymirec.codebook.quantizer import ItemQuantizer
from hymirec.codebook.reduce import Reducer
from hymirec.config import CodebookConfig
from hymirec.errors import ArtifactDamagedError, ConfigError

_KINDS: dict[str, Callable[[Path], ItemQuantizer]] = {
    residual.MODEL_TYPE: residual.ResidualCodebook.from_pretrained,
    euclidean.MODEL_TYPE: euclidean.EuclideanCodebook.from_pretrained,
    raw.MODEL_TYPE: raw.RawVectors.from_pretrained,
}


def open_codebook(directory: Path | str) -> ItemQuantizer:
    """Load a codebook of any kind: `model_type` in its config.json says which.

    Raises ArtifactMissingError or ArtifactDamagedError with the name of the file.
    """
    path = Path(directory)
    config = read_json(path / CONFIG_FILE)
    kind = config.get("model_type") if isinstance(config, dict) else None
    if kind not in _KINDS:
        raise ArtifactDamagedError(
            f"{path / CONFIG_FILE}: expected one of {', '.join(_KINDS)} as model_type, got {kind!r}; delete the "
            "directory and run the codebook step again"
        )
    return _KINDS[kind](path)


def fit_variant(
    rows_nD: NDArray[np.floating] | Tensor,
    row_ids: NDArray[np.int64],
    config: CodebookConfig,
    seed: int,
    reducer: Reducer,
) -> ItemQuantizer:
    """Fit one of the kinds that are there for comparison, from this worker's rows (n, D); see `fit_codebook`.

    They have no state to resume from: a fit that was killed begins again, and ends in the same bytes.
    Raises ConfigError for `cosine`, which is `fit_codebook`'s.
    """
    if config.kind == "euclidean":
        return euclidean.fit_euclidean(rows_nD, row_ids, config, seed, reducer)
    if config.kind == "none":
        return raw.RawVectors(rows_nD.shape[1])
    raise ConfigError(f"expected codebook.kind euclidean or none, got {config.kind!r}; call fit_codebook")

"""How codebooks of centroids lie on disk: config.json and codebook.safetensors, which must fit each other."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from hymirec.artifacts import read_json, write_atomic
from hymirec.errors import ArtifactDamagedError, ArtifactMissingError

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "codebook.safetensors"
FORMAT = 1
SHAPE = ("layers", "centroids", "width")


def write_config(directory: Path, model_type: str, values: Mapping[str, Any]) -> None:
    """Write config.json; equal values give equal bytes."""
    config = {"model_type": model_type, "format": FORMAT, **values}
    write_atomic(directory / CONFIG_FILE, (json.dumps(config, indent=2, sort_keys=True) + "\n").encode())


def save_centroids(directory: Path, model_type: str, info: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write `tensors`, of which `centroids` is (L, K, D), and then config.json with their shape and `info`."""
    whole = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    write_atomic(directory / WEIGHTS_FILE, save(whole, metadata={"format": "pt"}))
    write_config(directory, model_type, dict(zip(SHAPE, whole["centroids"].shape, strict=True)) | dict(info))


def load_centroids(directory: Path, model_type: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and `info` that `save_centroids` wrote.

    Raises ArtifactMissingError, or ArtifactDamagedError when the two files do not fit each other.
    """
    config = read_json(directory / CONFIG_FILE)
    weights = directory / WEIGHTS_FILE
    try:
        tensors: dict[str, Tensor] = load_file(weights)
        shape = tuple(tensors["centroids"].shape)
    except FileNotFoundError as e:
        raise ArtifactMissingError(f"{weights} is not there; run the codebook step again") from e
    except (SafetensorError, KeyError, OSError) as e:
        raise ArtifactDamagedError(
            f"{weights} holds no codebook ({e}); delete the directory and run the codebook step again"
        ) from e
    told = tuple(config.get(name) for name in SHAPE)
    if config.get("model_type") != model_type or config.get("format") != FORMAT or told != shape:
        raise ArtifactDamagedError(
            f"{directory}: {CONFIG_FILE} describes {config.get('model_type')!r} format {config.get('format')!r} of "
            f"shape {told}, {WEIGHTS_FILE} holds {shape}; delete the directory and run the codebook step again"
        )
    known = {"model_type", "format", *SHAPE}
    return tensors, {key: value for key, value in config.items() if key not in known}

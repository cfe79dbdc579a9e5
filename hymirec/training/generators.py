"""Random numbers of a training run: seeded for a point of it, kept in a checkpoint."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor


def seed_all(seed: int, epoch: int, rank: int) -> None:
    """Seed torch and numpy from the three numbers that a point of a run is known by."""
    derived = np.random.SeedSequence([seed, epoch, rank]).generate_state(2)
    torch.manual_seed(int(derived[0]))
    np.random.seed(int(derived[1]))


def save_random(directory: Path, rank: int) -> None:
    """Write where this rank's generators stand: torch's (also the GPU's, if it uses one) and numpy's global one."""
    numpy = np.random.get_state(legacy=False)
    tensors = {
        "torch": torch.get_rng_state(),
        "numpy": torch.from_numpy(numpy["state"]["key"].astype(np.int64)),
        "numpy_position": torch.tensor(numpy["state"]["pos"]),
        "numpy_normals": torch.tensor(numpy["has_gauss"]),
        "numpy_normal": torch.tensor(numpy["gauss"], dtype=torch.float64),
    }
    if torch.cuda.is_initialized():
        tensors["cuda"] = torch.cuda.get_rng_state()
    save_file(tensors, _file(directory, rank))


def load_random(directory: Path, rank: int) -> None:
    """Continue this rank's generators from `save_random`."""
    tensors: dict[str, Tensor] = load_file(_file(directory, rank))
    torch.set_rng_state(tensors["torch"])
    state = {"key": tensors["numpy"].numpy().astype(np.uint32), "pos": int(tensors["numpy_position"])}
    np.random.set_state(
        {
            "bit_generator": "MT19937",
            "state": state,
            "has_gauss": int(tensors["numpy_normals"]),
            "gauss": float(tensors["numpy_normal"]),
        }
    )
    if "cuda" in tensors:
        torch.cuda.set_rng_state(tensors["cuda"])


def _file(directory: Path, rank: int) -> Path:
    return directory / f"random-{rank}.safetensors"

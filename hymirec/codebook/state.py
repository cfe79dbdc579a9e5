"""Where a fit stands, small enough to be written after every pass: 5 bytes a component of each centroid so far.

A saved state is two files, the JSON one last with the hash of the other: half a state is never believed.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

from hymirec.artifacts import hash_file, read_json, write_atomic, write_json
from hymirec.errors import ArtifactDamagedError

TENSORS_FILE = "fit.safetensors"
STATE_FILE = "fit.json"
LOAD_POINTS = 33


@dataclass(frozen=True)
class Usage:
    """How evenly centroids are used. `max_over_mean` is 1 when all are used alike; `dead` ones are never used.

    `gini` is 0 when all are used alike and nears 1 when one takes all rows. `load` is the load of centroids over the
    mean load, heaviest first, at (at most) 33 evenly spaced ranks from the first to the last.
    """

    max_over_mean: float
    cv: float
    perplexity: float
    dead: int
    gini: float = 0.0
    load: tuple[float, ...] = ()

    @classmethod
    def of(cls, counts_K: Tensor) -> Usage:
        """From rows a centroid; perplexity is exp of the entropy, K when all are used alike."""
        counts = counts_K.double().cpu()
        total = float(counts.sum())
        if not total:
            return cls(0.0, 0.0, 1.0, len(counts))
        mean = total / len(counts)
        share = counts[counts > 0] / total
        ordered = counts.sort(descending=True)[0]
        rank = torch.arange(len(counts), 0, -1, dtype=torch.float64)
        shown = torch.linspace(0, len(counts) - 1, min(LOAD_POINTS, len(counts)), dtype=torch.float64).round().long()
        return cls(
            round(float(counts.max()) / mean, 6),
            round(float(counts.std(correction=0)) / mean, 6),
            round(float(torch.exp(-(share * share.log()).sum())), 3),
            int((counts == 0).sum()),
            round((2.0 * float((rank * ordered).sum()) / total - len(counts) - 1) / len(counts), 6),
            tuple(round(load / mean, 4) for load in ordered[shown].tolist()),
        )

    @classmethod
    def parse(cls, values: dict[str, Any]) -> Usage:
        """What `asdict` gave, after a journey through JSON."""
        return cls(**{**values, "load": tuple(values.get("load", ()))})


@dataclass(frozen=True)
class FitState:
    """`iteration` passes of layer `layer` are done; a fit goes on from any of its states to the same result.

    `finished_LKP` and `units_KP` are rotated directions, int8; `centroids_LKD` the finished layers themselves, fp32;
    prices are fp64 (K,); all on the CPU. `step` is the price step of this layer, `owner` names the fit that the state
    belongs to.
    """

    owner: str
    layer: int
    iteration: int
    step: float
    finished_LKP: Tensor
    centroids_LKD: Tensor
    units_KP: Tensor
    price_K: Tensor
    usage: tuple[Usage, ...]

    def save(self, directory: Path) -> None:
        """Write fit.safetensors, then fit.json."""
        names = ("finished_LKP", "centroids_LKD", "units_KP", "price_K")
        write_atomic(directory / TENSORS_FILE, save({name: getattr(self, name).contiguous() for name in names}))
        numbers = {"owner": self.owner, "layer": self.layer, "iteration": self.iteration, "step": self.step}
        numbers |= {"usage": [asdict(usage) for usage in self.usage], "sha256": hash_file(directory / TENSORS_FILE)}
        write_json(directory / STATE_FILE, numbers)

    @classmethod
    def load(cls, directory: Path) -> FitState:
        """Read what `save` wrote.

        Raises ArtifactMissingError, or ArtifactDamagedError when the two files do not belong together.
        """
        numbers = read_json(directory / STATE_FILE)
        try:
            if hash_file(directory / TENSORS_FILE) != numbers["sha256"]:
                raise ArtifactDamagedError(f"{directory / TENSORS_FILE} is damaged; start the fit without this state")
            tensors = load((directory / TENSORS_FILE).read_bytes())
            return cls(
                numbers["owner"],
                numbers["layer"],
                numbers["iteration"],
                numbers["step"],
                **tensors,
                usage=tuple(Usage.parse(usage) for usage in numbers["usage"]),
            )
        except (KeyError, TypeError, OSError) as e:
            raise ArtifactDamagedError(f"{directory} holds no state of a fit ({e!r}); start the fit without it") from e

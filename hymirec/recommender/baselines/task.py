"""Trained baselines as a training task, and back from the directory that it writes."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, load_model, save_file, save_model
from torch import nn

from hymirec.artifacts import read_json, write_json
from hymirec.catalog.prepared import Catalog
from hymirec.config import BaselineConfig, EncoderConfig, PipelineConfig, parse
from hymirec.errors import ArtifactDamagedError, ArtifactMissingError, ConfigError, ModelError
from hymirec.recommender.baselines.registry import ID_MODELS, TEXT_MODELS, TRAINED, Inputs, title
from hymirec.recommender.baselines.sequential import SequentialBaseline
from hymirec.recommender.contract import Reach
from hymirec.recommender.cooccurrence import cooccurrence_vectors
from hymirec.recommender.negatives import negatives_a_step
from hymirec.recommender.task import RecommenderTask
from hymirec.recommender.trend import open_trend

CONFIG, WEIGHTS, VECTORS = "config.json", "model.safetensors", "item_vectors.safetensors"


class BaselineTask(RecommenderTask):
    """Trains `config.baseline` on the training events."""

    name = "baseline"

    def __init__(self, config: PipelineConfig, run_dir: Path) -> None:
        settings = config.baseline
        if settings is None or settings.kind not in TRAINED:
            kind = settings.kind if settings else None
            raise ConfigError(f"baseline.kind={kind} is not trained; expected one of {', '.join(TRAINED)}")
        super().__init__(config, run_dir, Reach(settings.length), settings.optim, settings.negatives)
        self._settings = settings
        self._start = (
            torch.from_numpy(cooccurrence_vectors(self._sequences, self._catalog.size, settings.width, settings.window))
            if settings.cooccurrence and settings.kind in ID_MODELS
            else None
        )

    def build(self) -> nn.Module:
        """A seeded model."""
        config = self._config
        torch.manual_seed(config.seed)
        inputs = Inputs(self._settings, config.encoder, self._catalog, config.seed, self._start)
        return TRAINED[self._settings.kind](inputs)

    def export(self, model: nn.Module, directory: Path) -> None:
        """Write config.json, model.safetensors, item_vectors.safetensors, trend.json and README.md."""
        assert isinstance(model, SequentialBaseline)
        settings, size = self._settings, self._catalog.size
        directory.mkdir(parents=True, exist_ok=True)
        about = {"baseline": settings.model_dump(mode="json"), "items": size, "seed": self._config.seed}
        if settings.kind in TEXT_MODELS:
            about["encoder"] = self._config.encoder.model_dump(mode="json")
        write_json(directory / CONFIG, about)
        save_model(model, str(directory / WEIGHTS))
        with torch.no_grad():
            vectors_NW = model.eval().item_vectors().float().cpu().contiguous()
        save_file({"item_vectors": vectors_NW}, directory / VECTORS)
        self.export_trend(model, settings.trend, directory)
        (directory / "README.md").write_text(_card(settings, size, len(self._sequences)))


def open_baseline(directory: Path, catalog: Catalog) -> SequentialBaseline:
    """The model that a task exported, in eval mode; `catalog` is the one that it was trained on.

    Raises ArtifactMissingError, ArtifactDamagedError, or ModelError for a catalogue of another size.
    """
    for name in (CONFIG, WEIGHTS, VECTORS):
        if not (directory / name).is_file():
            raise ArtifactMissingError(f"{directory / name} is not there; run the baseline step")
    about = read_json(directory / CONFIG)
    if about["items"] != catalog.size:
        raise ModelError(
            f"{directory} was trained on {about['items']} items, the catalogue has {catalog.size}; use data and "
            "baseline of one run"
        )
    settings = parse(BaselineConfig, about["baseline"], str(directory / CONFIG))
    encoder = parse(EncoderConfig, about.get("encoder", {}), str(directory / CONFIG))
    model = TRAINED[settings.kind](Inputs(settings, encoder, catalog, about["seed"]))
    try:
        load_model(model, str(directory / WEIGHTS))
    except RuntimeError as e:
        raise ArtifactDamagedError(f"{directory / WEIGHTS} has other weights than its config.json says: {e}") from e
    model.attach_item_vectors(load_file(directory / VECTORS)["item_vectors"])
    model.trend, _ = open_trend(directory)
    return model.eval()


def _card(settings: BaselineConfig, items: int, users: int) -> str:
    """Markdown; a function of the configuration and the data's size only, so that equal runs write equal bytes."""
    negatives = negatives_a_step(settings.negatives, items)
    candidates = f"{negatives} uniform negatives a step" if negatives else "the whole catalogue"
    return (
        f"# {title(settings)}\n\n"
        f"A system to compare with: width {settings.width}, {settings.layers} layers, dropout {settings.dropout:g}, "
        f"the last {settings.length} items.\n\n"
        f"Trained on the training events of {users:,} users and {items:,} items: the next item after every item, by "
        f"cosine, against {candidates}.\n\n"
        "    from hymirec.recommender.baselines.task import open_baseline\n"
        '    model = open_baseline(DIRECTORY, Catalog.open(RUN / "data"))\n'
    )

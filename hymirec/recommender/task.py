"""Stage 2 as a training task, for the hybrid recommender and for every trained baseline."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from hymirec.catalog.prepared import Catalog, Sequences
from hymirec.catalog.vectors import read_vectors
from hymirec.codebook import open_codebook
from hymirec.config import OptimConfig, PipelineConfig, TrendConfig
from hymirec.errors import DataError
from hymirec.recommender.batches import chunk_count, epoch_batches, training_batch
from hymirec.recommender.card import model_card
from hymirec.recommender.contract import Reach, Recommender
from hymirec.recommender.cooccurrence import cooccurrence_vectors, text_projection
from hymirec.recommender.hybrid import HybridConfig, HybridModel
from hymirec.recommender.llm import llm_architecture, load_llm_weights
from hymirec.recommender.negatives import negatives_a_step, sample_negatives
from hymirec.recommender.neighbours import save_neighbours
from hymirec.recommender.neighbours_fit import fit_neighbours
from hymirec.recommender.ranking import ndcg
from hymirec.recommender.requests import split_ranks, users_with_targets
from hymirec.recommender.trend import open_trend, save_trend
from hymirec.recommender.trend_fit import fit_trend

# Validation after each epoch looks at no more users than this; the evaluation step looks at all.
VALIDATED_USERS = 10_000


class RecommenderTask(ABC):
    """Batches, steps and validation of a model that reads histories and answers with interests.

    Validated by NDCG@10: full ranking, the history masked as in the evaluation.
    """

    name: str
    metric = "ndcg@10"

    def __init__(
        self, config: PipelineConfig, run_dir: Path, reach: Reach, optim: OptimConfig, negatives: int | None
    ) -> None:
        self._config, self._reach, self._optim = config, reach, optim
        self._catalog = Catalog.open(run_dir / "data")
        self._negatives = negatives_a_step(negatives, self._catalog.size)
        self._sequences = Sequences.open(run_dir / "data")
        if not chunk_count(self._sequences, reach.recent):
            raise DataError(
                "no user has two training events, so there is no next item to learn; lower "
                "data.min_user_interactions or bring more interactions"
            )

    def _share(self, world: int) -> int:
        optim = self._optim
        return max(1, optim.batch_size // (world * optim.accumulation))

    def steps(self, world: int) -> int:
        """Micro-batches an epoch on each rank."""
        return -(-chunk_count(self._sequences, self._reach.recent) // (self._share(world) * world))

    def batches(self, epoch: int, rank: int, world: int) -> Iterator[dict[str, Tensor]]:
        """See `TrainTask.batches`."""
        share, seed = self._share(world), self._config.seed
        rng = np.random.default_rng([seed, 1, epoch])
        chunks = epoch_batches(self._sequences, self._reach.recent, share, world, rank, rng)
        each = -(-self._negatives // share)
        for step, chunk in enumerate(chunks):
            own = np.random.default_rng([seed, 2, epoch, step, rank])
            negatives = sample_negatives(own, self._catalog.size, each * len(chunk.user)) if each else None
            yield training_batch(self._sequences, chunk, self._reach, negatives, own)

    def validate(self, model: nn.Module, rank: int, world: int) -> dict[str, tuple[float, int]]:
        """NDCG@10 of the validation targets over all users (or a fixed sample of them), and the interests' overlap."""
        users = users_with_targets(self._sequences, "validation")
        if len(users) > VALIDATED_USERS:
            rng = np.random.default_rng([self._config.seed, 3])
            users = np.sort(rng.choice(users, VALIDATED_USERS, replace=False))
        mine = users[rank::world]
        batch, masked = self._config.evaluation.batch_users, self._config.evaluation.mask_history
        gain, found, cosine = 0.0, 0.0, 0.0
        for _, ranks, interests in split_ranks(answering(model), self._sequences, "validation", mine, batch, masked):
            for own in ranks:
                gain += ndcg(own)
                found += float((own < 10).mean())
            cosine += _mean_overlap(interests) * len(ranks)
        count = len(mine)
        return {self.metric: (gain, count), "recall@10": (found, count), "overlap": (cosine, count)}

    def export_trend(self, model: nn.Module, config: TrendConfig, directory: Path) -> None:
        """Choose what popularity of now adds to the finished model's scores, and write it."""
        fitted = fit_trend(answering(model), self._sequences, config, self._config.evaluation)
        save_trend(directory, fitted.report(), fitted.trend, self._sequences, self._catalog.size)

    @abstractmethod
    def build(self) -> nn.Module:
        """See `TrainTask.build`."""

    @abstractmethod
    def export(self, model: nn.Module, directory: Path) -> None:
        """See `TrainTask.export`."""


class HybridTask(RecommenderTask):
    """Trains the hybrid recommender on the training events."""

    name = "recommender"

    def __init__(self, config: PipelineConfig, run_dir: Path) -> None:
        settings = config.recommender
        super().__init__(config, run_dir, Reach.of(settings), settings.optim, settings.negatives)
        self._settings = settings
        self._content_ND = torch.from_numpy(read_vectors(run_dir / "embeddings"))
        codebook = open_codebook(run_dir / "codebook")
        self._codes = codebook.open_items(run_dir / "codes")
        self._lookup_LKD = codebook.lookup(self._codes)
        self._start: np.ndarray | None = None

    def build(self) -> nn.Module:
        """A seeded model with its tables attached; item vectors start from co-occurrence if the config says so."""
        torch.manual_seed(self._config.seed)
        config = HybridConfig(
            items=self._catalog.size,
            content_width=self._content_ND.shape[1],
            recommender=self._settings.model_dump(mode="json"),
            llm=llm_architecture(self._settings.llm),
        )
        model = HybridModel(config)
        model.reset_parameters(load_llm_weights(model.llm, self._settings.llm))
        model.attach_content(self._content_ND)
        model.attach_codes(self._codes, self._lookup_LKD)
        if self._settings.item.cooccurrence:
            self._start_from_cooccurrence(model)
        return model

    def _start_from_cooccurrence(self, model: HybridModel) -> None:
        item = self._settings.item
        if self._start is None:
            self._start = cooccurrence_vectors(self._sequences, self._catalog.size, item.width, item.window)
        assert model.items.residual is not None
        with torch.no_grad():
            model.items.residual.copy_(torch.from_numpy(self._start))
            if model.items.projection is not None:
                content = model.items.content_ND.numpy()
                model.items.projection.copy_(torch.from_numpy(text_projection(content, self._start)))

    def export(self, model: nn.Module, directory: Path) -> None:
        """Write config.json, model.safetensors, README.md; for serving item_vectors.*, trend.* and neighbours.*."""
        assert isinstance(model, HybridModel)
        directory.mkdir(parents=True, exist_ok=True)
        model.save_pretrained(directory)
        model.save_serving(directory)
        self.export_trend(model, self._settings.trend, directory)
        self._export_neighbours(model, directory)
        (directory / "README.md").write_text(model_card(model, self._catalog.size, len(self._sequences)))

    def _export_neighbours(self, model: HybridModel, directory: Path) -> None:
        """Choose what neighbours of the history's items add beside the trend, and write it."""
        model.trend, _ = open_trend(directory)
        found, about = fit_neighbours(model, self._sequences, self._settings.neighbours, self._config.evaluation)
        save_neighbours(directory, about, found)


def answering(model: nn.Module) -> Recommender:
    """The module as a recommender; every task of this file builds one."""
    return cast(Recommender, model)


def _mean_overlap(interests_BSW: Tensor) -> float:
    """Mean cosine between two interests of a user; 1 for a single interest."""
    count = interests_BSW.shape[1]
    if count == 1:
        return 1.0
    gram = interests_BSW @ interests_BSW.transpose(1, 2)
    return float((gram.sum(dim=(1, 2)) - gram.diagonal(dim1=1, dim2=2).sum(1)).mean() / (count * (count - 1)))

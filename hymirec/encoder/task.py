"""Stage 1 as a training task."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from hymirec.catalog.prepared import Catalog, Sequences
from hymirec.config import PipelineConfig
from hymirec.encoder.modeling import ContentEncoder
from hymirec.encoder.objective import Stage1Model

VALIDATED_USERS = 1_000
VALIDATED_ITEMS = 20_000
TOKENIZER_TEXTS = 200_000


class Stage1Task:
    """Fine-tunes the content encoder on recent training sequences; validated by NDCG@10 of the next item."""

    name = "encoder"
    metric = "ndcg@10"

    def __init__(self, config: PipelineConfig, run_dir: Path) -> None:
        self._config = config.encoder
        self._seed = config.seed
        self._catalog = Catalog.open(run_dir / "data")
        self._sequences = Sequences.open(run_dir / "data")
        self._texts: list[str] = []
        for part in range(len(self._catalog.part_paths)):
            self._texts.extend(self._catalog.texts(part))
        self._users = np.flatnonzero(self._sequences.n_train >= 2)
        self._tokenizer_encoder: ContentEncoder | None = None

    def build(self) -> nn.Module:
        """A seeded model; the tokenizer of `tiny` is trained on the catalogue's texts."""
        encoder = ContentEncoder.build(self._config, self._texts[:TOKENIZER_TEXTS], self._seed)
        self._tokenizer_encoder = encoder
        torch.manual_seed(self._seed + 1)
        config = self._config
        return Stage1Model(encoder, config.user_layers, config.sequence_length, config.scale).eval()

    def steps(self, world: int) -> int:
        """Whole batches only; at least one."""
        return max(1, len(self._users) // self._share(world) // world)

    def _share(self, world: int) -> int:
        optim = self._config.optim
        return max(1, optim.batch_size // (world * optim.accumulation))

    def batches(self, epoch: int, rank: int, world: int) -> Iterator[dict[str, Tensor]]:
        """See `TrainTask.batches`."""
        share = self._share(world)
        order = np.random.default_rng([self._seed, 1, epoch]).permutation(self._users)
        for step in range(self.steps(world)):
            start = (step * world + rank) * share
            users = np.resize(order[start : start + share], share) if start < len(order) else order[:share]
            rng = np.random.default_rng([self._seed, 2, epoch, step, rank])
            yield self._batch(users, rng)

    def _batch(self, users: NDArray[np.int64], rng: np.random.Generator) -> dict[str, Tensor]:
        items_BT = np.stack([self._recent(int(u)) for u in users])
        negatives = rng.integers(0, self._catalog.size, self._config.negatives)
        distinct = np.unique(np.concatenate([items_BT[items_BT >= 0], negatives]))
        slots = np.where(items_BT >= 0, np.searchsorted(distinct, items_BT), -1)
        return self._tokens(distinct) | {"slots": torch.from_numpy(slots)}

    def _recent(self, user: int) -> NDArray[np.int64]:
        """The last `sequence_length` training items, -1 on the left."""
        start = int(self._sequences.offsets[user])
        stop = start + int(self._sequences.n_train[user])
        items = self._sequences.items[max(start, stop - self._config.sequence_length) : stop]
        padded = np.full(self._config.sequence_length, -1, np.int64)
        if len(items):
            padded[-len(items) :] = items
        return padded

    def _tokens(self, items: NDArray[np.int64]) -> dict[str, Tensor]:
        if self._tokenizer_encoder is None:
            self.build()
        assert self._tokenizer_encoder is not None
        return self._tokenizer_encoder.tokenize([self._texts[int(i)] for i in items])

    def validate(self, model: nn.Module, rank: int, world: int) -> dict[str, tuple[float, int]]:
        """NDCG@10 of the validation target on a fixed sample of users, among all items or a fixed sample of them."""
        assert isinstance(model, Stage1Model)
        rng = np.random.default_rng([self._seed, 3])
        sequences = self._sequences
        known = np.flatnonzero((sequences.n_train >= 1) & (sequences.n_val > sequences.n_train))
        sample = np.sort(rng.choice(known, min(VALIDATED_USERS, len(known)), replace=False))
        targets = np.array([sequences.targets(int(u), "validation")[0][0] for u in sample], np.int64)
        items = np.unique(
            np.concatenate([targets, rng.permutation(self._catalog.size)[: max(0, VALIDATED_ITEMS - len(targets))]])
        )
        vectors = self._encode(model, items)
        mine = np.arange(rank, len(sample), world)
        total = 0.0
        for user, target in zip(sample[mine], targets[mine], strict=True):
            history = self._recent(int(user))
            state = self._user_state(model, history, items, vectors)
            scores = vectors @ state
            scores[torch.from_numpy(np.flatnonzero(np.isin(items, history) & (items != target)))] = -torch.inf
            spot = int(np.searchsorted(items, target))
            rank_of_target = int((scores > scores[spot]).sum()) + int((scores[:spot] == scores[spot]).sum())
            total += 1 / np.log2(rank_of_target + 2) if rank_of_target < 10 else 0.0
        return {self.metric: (total, len(mine))}

    def _encode(self, model: Stage1Model, items: NDArray[np.int64]) -> Tensor:
        device = model.log_scale.device
        size = self._config.encode_batch
        parts = []
        for start in range(0, len(items), size):
            tokens = self._tokens(items[start : start + size])
            parts.append(F.normalize(model.encoder(**{key: v.to(device) for key, v in tokens.items()}), dim=-1).float())
        return torch.cat(parts)

    def _user_state(
        self, model: Stage1Model, history: NDArray[np.int64], items: NDArray[np.int64], vectors: Tensor
    ) -> Tensor:
        spots = np.searchsorted(items, history).clip(max=len(items) - 1)
        known = (history >= 0) & (items[spots] == history)
        valid = torch.from_numpy(known)[None].to(vectors.device)
        states = model.user(vectors[torch.from_numpy(spots)][None] * valid[..., None], valid)
        return F.normalize(states[0, -1], dim=-1)

    def export(self, model: nn.Module, directory: Path) -> None:
        """Write the content encoder; the user tower was a means to train it."""
        assert isinstance(model, Stage1Model)
        model.encoder.save_pretrained(directory)
        config = self._config
        (directory / "README.md").write_text(
            f"# Content encoder\n\nPreset `{config.preset}`, width {model.encoder.width}, at most {config.max_tokens} "
            f"tokens a text; the embedding is the last hidden state at `{config.special_token}`.\n\n"
            f"Fine-tuned on {len(self._users):,} users' most recent {config.sequence_length} training items "
            f"(next-item contrastive, {config.optim.epochs} epochs at most) and a catalogue of "
            f"{self._catalog.size:,} items.\n\n"
            "    from hymirec.encoder import ContentEncoder\n"
            '    ContentEncoder.from_pretrained(DIRECTORY).encode(["Title: red lantern"])\n'
        )

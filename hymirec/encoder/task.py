"""Stage 1 as a training task.

B users of a micro-batch  T positions  U distinct items  D width
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hymirec.artifacts import write_atomic
from hymirec.catalog.parts import one_array, read_table
from hymirec.catalog.prepared import Catalog, Sequences
from hymirec.catalog.schemas import TEXT
from hymirec.config import EncoderConfig, PipelineConfig
from hymirec.encoder.modeling import ContentEncoder
from hymirec.encoder.objective import Stage1Model, grouped
from hymirec.encoder.presets import build_tokenizer
from hymirec.encoder.tokenizer import token_ids
from hymirec.errors import DataError

VALIDATED_USERS = 1_000
VALIDATED_ITEMS = 20_000
VALIDATED_AT_ONCE = 100
TOKENIZER_TEXTS = 200_000
CENTER_TEXTS = 4_096
# Token ids of this many items are kept after their first use; beyond, texts are tokenised again.
CACHED_ITEMS = 200_000
CUTOFF = 10


class Stage1Task:
    """Fine-tunes the content encoder on recent training sequences; validated by NDCG@10 of the next item.

    Unlike other tasks' batches, the item tensors of a batch have one row a distinct item, not a sequence.
    """

    name = "encoder"
    metric = "ndcg@10"

    def __init__(self, config: PipelineConfig, run_dir: Path) -> None:
        self._config: EncoderConfig = config.encoder
        self._use_gpu = config.compute.use_gpu
        self._seed = config.seed
        self._catalog = Catalog.open(run_dir / "data")
        self._sequences = Sequences.open(run_dir / "data")
        column = pa.chunked_array(
            [chunk for path in self._catalog.part_paths for chunk in read_table(path, [TEXT])[TEXT].chunks], pa.string()
        )
        self._texts = one_array(column)
        self._users = np.flatnonzero(self._sequences.n_train >= 2)
        self._ids: dict[int, list[int]] = {}
        self._made_tokenizer: Any = None

    @property
    def _tokenizer(self) -> Any:
        if self._made_tokenizer is None:
            self._made_tokenizer = build_tokenizer(self._config, self._spread(TOKENIZER_TEXTS))
        return self._made_tokenizer

    def _spread(self, count: int) -> list[str]:
        """At most `count` texts, evenly over the catalogue."""
        size = self._catalog.size
        return self._read_texts(np.arange(min(count, size), dtype=np.int64) * size // max(1, min(count, size)))

    def _read_texts(self, items: NDArray[np.int64]) -> list[str]:
        texts: list[str] = self._texts.take(pa.array(items)).to_pylist()
        return texts

    def build(self) -> nn.Module:
        """A seeded model; the tokenizer of `tiny` is trained on the catalogue's texts."""
        config = self._config
        encoder = ContentEncoder.build(config, (), self._seed, self._tokenizer)
        if config.gradient_checkpointing:
            encoder.recompute_activations()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self._seed + 1)
            return Stage1Model(encoder, config.user_layers, config.sequence_length, config.scale).eval()

    def _share(self, world: int) -> int:
        optim = self._config.optim
        return max(1, optim.batch_size // (world * optim.accumulation))

    def steps(self, world: int) -> int:
        """Micro-batches an epoch: whole ones only, at least one.

        Raises DataError when no user has two training items.
        """
        if not len(self._users):
            raise DataError(
                "stage 1 learns from users with at least two training items, and there is none; lower "
                "data.min_user_interactions or set encoder.optim.epochs=0"
            )
        return max(1, len(self._users) // (self._share(world) * world))

    def batches(self, epoch: int, rank: int, world: int) -> Iterator[dict[str, Tensor]]:
        """See `TrainTask.batches`."""
        share, steps = self._share(world), self.steps(world)
        order = np.random.default_rng([self._seed, 1, epoch]).permutation(self._users)
        order = np.resize(order, max(len(order), share * world))
        for step in range(steps):
            start = (step * world + rank) * share
            rng = np.random.default_rng([self._seed, 2, epoch, step, rank])
            yield self._batch(order[start : start + share], rng)

    def _batch(self, users: NDArray[np.int64], rng: np.random.Generator) -> dict[str, Tensor]:
        items_BT = np.stack([self._recent(int(u)) for u in users])
        negatives = rng.integers(0, self._catalog.size, self._config.negatives)
        distinct = np.unique(np.concatenate([items_BT[items_BT >= 0], negatives]))
        tokens, order = self._tokens(distinct)
        place = np.argsort(order)
        slots_BT = np.where(items_BT >= 0, place[np.searchsorted(distinct, items_BT).clip(max=len(place) - 1)], -1)
        return tokens | {"slots": torch.from_numpy(slots_BT)}

    def _recent(self, user: int) -> NDArray[np.int64]:
        """The last `sequence_length` training items (T,), -1 on the left."""
        start = int(self._sequences.offsets[user])
        stop = start + int(self._sequences.n_train[user])
        items = self._sequences.items[max(start, stop - self._config.sequence_length) : stop]
        padded = np.full(self._config.sequence_length, -1, np.int64)
        padded[len(padded) - len(items) :] = items
        return padded

    def _tokens(self, items: NDArray[np.int64]) -> tuple[dict[str, Tensor], NDArray[np.int64]]:
        """Grouped tokens of items, and their order: row r of the groups is items[order[r]]."""
        missing = np.array([i for i in items.tolist() if i not in self._ids], np.int64)
        made = token_ids(
            self._tokenizer, self._read_texts(missing), self._config.special_token, self._config.max_tokens
        )
        fresh = dict(zip(missing.tolist(), made, strict=True))
        rows = [self._ids[i] if i in self._ids else fresh[i] for i in items.tolist()]
        if len(self._ids) + len(fresh) <= CACHED_ITEMS:
            self._ids.update(fresh)
        order = np.argsort([len(row) for row in rows], kind="stable")
        return grouped([rows[int(row)] for row in order], int(self._tokenizer.pad_token_id)), order

    def validate(self, model: nn.Module, rank: int, world: int) -> dict[str, tuple[float, int]]:
        """NDCG@10 of the validation target, training history masked, on a fixed sample of users.

        Ranked are all items of the catalogue, or a fixed sample of them when they are many; ties by item index.
        """
        assert isinstance(model, Stage1Model)
        users, targets, candidates = self._validation_sample()
        mine = np.arange(rank, len(users), world)
        histories = [self._recent(int(u)) for u in users[mine]]
        items = np.unique(np.concatenate([candidates, *histories]))
        items = items[items >= 0]
        vectors_UD = self._encode(model, items)
        ranked_N = torch.from_numpy(np.searchsorted(items, candidates)).to(vectors_UD.device)
        candidates_ND = vectors_UD[ranked_N]
        total = 0.0
        for start in range(0, len(mine), VALIDATED_AT_ONCE):
            chunk = mine[start : start + VALIDATED_AT_ONCE]
            history_BT = np.stack(histories[start : start + VALIDATED_AT_ONCE])
            slots_BT = np.where(history_BT >= 0, np.searchsorted(items, history_BT).clip(max=len(items) - 1), -1)
            state_BD = model.states(vectors_UD, torch.from_numpy(slots_BT).to(vectors_UD.device))[:, -1]
            scores_BN = (state_BD @ candidates_ND.T).float().cpu().numpy()
            for row, user in enumerate(chunk):
                total += self._gain(scores_BN[row], candidates, int(users[user]), int(targets[user]))
        return {self.metric: (total, len(mine))}

    def _validation_sample(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Users, the target of each, and the items that are ranked (ascending, all targets among them)."""
        rng = np.random.default_rng([self._seed, 3])
        sequences = self._sequences
        known = np.flatnonzero((sequences.n_train >= 1) & (sequences.n_val > sequences.n_train))
        users = np.sort(rng.choice(known, min(VALIDATED_USERS, len(known)), replace=False))
        targets = np.array([sequences.targets(int(u), "validation")[0][0] for u in users], np.int64)
        others = rng.permutation(self._catalog.size)[:VALIDATED_ITEMS]
        return users, targets, np.unique(np.concatenate([targets, others]))

    def _gain(self, scores_N: NDArray[np.float32], candidates: NDArray[np.int64], user: int, target: int) -> float:
        """NDCG@10 of one target: 1 / log2(rank + 1), 0 beyond 10."""
        seen = self._sequences.history(user, "validation")[0]
        spot = int(np.searchsorted(candidates, target))
        scores_N[np.isin(candidates, seen) & (candidates != target)] = -np.inf
        before = int((scores_N > scores_N[spot]).sum()) + int((scores_N[:spot] == scores_N[spot]).sum())
        return 1.0 / math.log2(before + 2) if before < CUTOFF else 0.0

    def _encode(self, model: Stage1Model, items: NDArray[np.int64]) -> Tensor:
        """Unit vectors (U, D) of items, in their order, on the model's device."""
        device = model.log_scale.device
        parts = []
        for start in range(0, len(items), self._config.encode_batch):
            tokens, order = self._tokens(items[start : start + self._config.encode_batch])
            encoded = model.items({key: value.to(device) for key, value in tokens.items()})
            parts.append(encoded[torch.from_numpy(np.argsort(order)).to(device)])
        return torch.cat(parts)

    def export(self, model: nn.Module, directory: Path) -> None:
        """Write the content encoder with its center; the user tower was a means to train it."""
        assert isinstance(model, Stage1Model)
        encoder = model.encoder.eval()
        if self._config.center:
            encoder.to("cuda" if self._use_gpu else "cpu")
            encoder.centered(self._spread(CENTER_TEXTS), self._config.encode_batch)
        encoder.cpu().save_pretrained(directory)
        write_atomic(directory / "README.md", self._card(encoder).encode())

    def _card(self, encoder: ContentEncoder) -> str:
        config = self._config
        backbone = config.model or config.preset
        center = "less the mean embedding of the catalogue (`center`)" if config.center else "as it leaves the model"
        trained = (
            f"Fine-tuned end to end on the most recent {config.sequence_length} training items of {len(self._users):,} "
            f"users (next-item contrastive, at most {config.optim.epochs} epochs, the best by validation NDCG@10)"
            if config.optim.epochs
            else "Not fine-tuned"
        )
        return (
            "---\nlibrary_name: hymirec\ntags: [recommendation, item-embedding]\n---\n\n# Content encoder\n\n"
            f"`{backbone}`, {sum(p.numel() for p in encoder.parameters()):,} parameters. A text of at most "
            f"{config.max_tokens} tokens becomes {encoder.width} numbers: the last hidden state at "
            f"`{config.special_token}`, {center}.\n\n"
            f"{trained}; catalogue of {self._catalog.size:,} items. Metrics of every epoch: `training.json`.\n\n"
            "```python\nfrom hymirec.encoder import ContentEncoder\n\n"
            'ContentEncoder.from_pretrained("encoder").encode(["Title: RED LANTERN"])\n```\n'
        )

"""Stage 1 on a planted catalogue: it learns, it is deterministic, it exports what it validated."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from toy_catalog import KINDS, TOPICS, prepare_toy

from hymirec.catalog.prepared import Catalog, Sequences
from hymirec.config import ComputeConfig, EncoderConfig, OptimConfig, PipelineConfig
from hymirec.encoder import ContentEncoder
from hymirec.encoder.objective import GROUPS, Stage1Model
from hymirec.encoder.task import Stage1Task
from hymirec.errors import DataError
from hymirec.training import LocalReporter, fit
from hymirec.training.loop import load_weights


def config(epochs: int = 4, batch_size: int = 12, **encoder: object) -> PipelineConfig:
    optim = OptimConfig(epochs=epochs, batch_size=batch_size, lr=5e-3)
    sizes = {"hidden_size": 32, "layers": 1, "heads": 2, "vocab_size": 320, "max_tokens": 12, "negatives": 16}
    made = EncoderConfig(sequence_length=6, optim=optim, **(sizes | encoder))  # type: ignore[arg-type]
    return PipelineConfig(encoder=made, compute=ComputeConfig(engine="torch"))


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("run")
    prepare_toy(run / "data")
    return run


def trained(run_dir: Path, made: PipelineConfig, out: Path) -> list[dict[str, float]]:
    task = Stage1Task(made, run_dir)
    result = fit(task, made.encoder.optim, made.compute, made.seed, LocalReporter(out / "checkpoints"))
    model = task.build()
    load_weights(model, result.state)
    task.export(model, out / "encoder")
    return result.history


def test_the_loss_falls_and_items_of_one_topic_come_together(run_dir: Path, tmp_path: Path) -> None:
    history = trained(run_dir, config(), tmp_path)
    assert history[-1]["train_loss"] < history[1]["train_loss"] - 0.5
    assert history[-1]["ndcg@10"] > 0.35 > history[0]["ndcg@10"]
    encoder = ContentEncoder.from_pretrained(tmp_path / "encoder")
    with torch.inference_mode():
        unit = torch.nn.functional.normalize(encoder.encode([f"Title: {k} {t}" for t in TOPICS for k in KINDS]), dim=1)
    cosine = (unit @ unit.T).numpy()
    topic = np.arange(len(unit)) // len(KINDS)
    same = (topic[:, None] == topic[None]) & ~np.eye(len(unit), dtype=bool)
    assert cosine[same].mean() > cosine[topic[:, None] != topic[None]].mean() + 0.5


def test_two_runs_write_the_same_bytes(run_dir: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        trained(run_dir, config(epochs=1), tmp_path / name)
    a, b = (tmp_path / name / "encoder" for name in ("a", "b"))
    names = sorted(path.name for path in a.iterdir())
    assert {"README.md", "config.json", "model.safetensors", "tokenizer.json"} <= set(names)
    assert all((a / name).read_bytes() == (b / name).read_bytes() for name in names)


def test_without_epochs_the_built_encoder_is_exported(run_dir: Path, tmp_path: Path) -> None:
    history = trained(run_dir, config(epochs=0, center=False), tmp_path)
    assert len(history) == 1
    built = Stage1Task(config(), run_dir).build()
    exported = ContentEncoder.from_pretrained(tmp_path / "encoder")
    assert torch.equal(exported.encode(["Title: red mug"]), built.encoder.encode(["Title: red mug"]))
    assert "Not fine-tuned" in (tmp_path / "encoder" / "README.md").read_text()


def test_ranks_share_an_epoch_without_overlap(run_dir: Path) -> None:
    task = Stage1Task(config(batch_size=20), run_dir)
    assert (task.steps(1), task.steps(2)) == (3, 3)
    alone = [batch["slots"] for batch in task.batches(0, 0, 1)]
    pairs = [[batch["slots"] for batch in task.batches(0, rank, 2)] for rank in (0, 1)]
    assert [len(slots) for slots in alone] == [20, 20, 20]
    assert [len(slots) for slots in pairs[0]] == [10, 10, 10]
    again = [batch["slots"] for batch in task.batches(0, 0, 1)]
    assert all(torch.equal(x, y) for x, y in zip(alone, again, strict=True))
    assert not torch.equal(alone[0], next(iter(task.batches(1, 0, 1)))["slots"])


def test_a_batch_points_at_the_tokens_of_the_users_own_training_items(run_dir: Path) -> None:
    task = Stage1Task(config(batch_size=60), run_dir)
    catalog, sequences = Catalog.open(run_dir / "data"), Sequences.open(run_dir / "data")
    texts = [text for part in range(len(catalog.part_paths)) for text in catalog.texts(part)]
    (batch,) = task.batches(0, 0, 1)
    model = task.build()
    rows = [
        model.encoder.tokenizer.decode(ids[: int(mask.sum()) - 1]).strip()
        for g in range(GROUPS)
        for ids, mask in zip(batch[f"input_ids.{g}"], batch[f"attention_mask.{g}"], strict=True)
    ]
    read = sorted([rows[slot] for slot in user if slot >= 0] for user in batch["slots"].tolist())
    expected = sorted(
        [(texts[i] or "unknown item").lower() for i in sequences.history(u, "validation")[0][-6:]]
        for u in range(len(sequences))
    )
    assert read == expected


def test_fewer_users_than_a_batch_still_make_one_step_on_every_rank(tmp_path: Path) -> None:
    prepare_toy(tmp_path / "data", users=3)
    task = Stage1Task(config(batch_size=64), tmp_path)
    assert task.steps(2) == 1
    assert [len(list(task.batches(0, rank, 2))) for rank in (0, 1)] == [1, 1]


def test_validation_does_not_depend_on_the_number_of_workers(run_dir: Path) -> None:
    task = Stage1Task(config(), run_dir)
    model = task.build()
    assert isinstance(model, Stage1Model)
    with torch.no_grad():
        total, count = task.validate(model, 0, 1)["ndcg@10"]
        parts = [task.validate(model, rank, 3)["ndcg@10"] for rank in range(3)]
    assert count == 60 == sum(part[1] for part in parts)
    assert sum(part[0] for part in parts) == pytest.approx(total)


def test_nobody_to_learn_from_is_an_error_that_says_what_to_change(run_dir: Path) -> None:
    task = Stage1Task(config(), run_dir)
    task._users = task._users[:0]
    with pytest.raises(DataError, match=r"encoder.optim.epochs=0"):
        task.steps(1)

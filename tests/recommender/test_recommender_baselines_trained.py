"""GRU4Rec, SASRec and HSTU: they learn a walk, answer as they were trained, and come back from disk as they were.

The toy set's users walk through the items of a topic in order: after item i comes item i + TOPICS in four of five.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from reporters import Quiet
from torch import Tensor
from torch.nn import functional as F  # noqa: N812
from toy_run import ITEMS, TOPICS, toy_config, toy_tables

from hymirec.artifacts import write_json
from hymirec.catalog.prepare import prepare
from hymirec.catalog.prepared import Catalog, Sequences
from hymirec.config import PipelineConfig
from hymirec.errors import ArtifactDamagedError, ArtifactMissingError, ConfigError, ModelError
from hymirec.evaluation import evaluate_baseline, evaluate_model
from hymirec.recommender.baselines import Popularity
from hymirec.recommender.baselines.attention import silu_attention
from hymirec.recommender.baselines.hstu import time_buckets
from hymirec.recommender.baselines.registry import title
from hymirec.recommender.baselines.sequential import Chunks, SequentialBaseline
from hymirec.recommender.baselines.task import BaselineTask, open_baseline
from hymirec.recommender.batches import Chunk, request_batch, training_batch
from hymirec.recommender.cooccurrence import cooccurrence_vectors
from hymirec.recommender.requests import users_with_targets
from hymirec.training.loop import fit, load_weights

KINDS = ("gru4rec", "sasrec", "hstu")
LENGTH = 12
# Losses of the first five steps without dropout (CPU, one thread, seed 17).
GOLDEN: dict[str, list[float]] = {
    "gru4rec": [6.4855, 5.3923, 4.776, 3.6346, 3.5761],
    "sasrec": [7.222, 5.5667, 4.4924, 3.71, 3.4179],
    "hstu": [14.0398, 12.5159, 10.927, 8.5403, 7.119],
}


def rival(kind: str, *assignments: str) -> PipelineConfig:
    """The toy configuration with a small baseline."""
    settings = f"{{kind: {kind}, width: 32, layers: 2, length: {LENGTH}, dropout: 0.1}}"
    optim = "baseline.optim={epochs: 12, batch_size: 16, lr: 1.0e-2, patience: 12}"
    return toy_config(f"baseline={settings}", optim, "evaluation.bootstrap=0", *assignments)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run")
    prepare(toy_tables(), toy_config().data, out / "data")
    return out


@pytest.fixture(scope="module")
def sequences(run_dir: Path) -> Sequences:
    return Sequences.open(run_dir / "data")


def fresh(config: PipelineConfig, run_dir: Path) -> SequentialBaseline:
    model = BaselineTask(config, run_dir).build()
    assert isinstance(model, SequentialBaseline)
    return model.eval()


@pytest.fixture(scope="module")
def trained(run_dir: Path) -> Callable[[str], SequentialBaseline]:
    """Models by kind, each trained once."""

    @cache
    def of(kind: str) -> SequentialBaseline:
        config = rival(kind)
        assert config.baseline is not None
        task = BaselineTask(config, run_dir)
        result = fit(task, config.baseline.optim, config.compute, config.seed, Quiet())
        model = fresh(config, run_dir)
        load_weights(model, result.state)
        return model

    return of


def chunks(model: SequentialBaseline, batch: dict[str, Tensor]) -> Chunks:
    """What the user model reads of a training batch."""
    vectors = F.embedding(batch["items"], model.item_vectors())
    return Chunks(vectors, batch["items"], batch["ts"], batch["mask"], batch["request"][:, 1:])


def some_batch(model: SequentialBaseline, sequences: Sequences) -> dict[str, Tensor]:
    """Training histories of unlike lengths, five items at least, from their beginning."""
    user = np.flatnonzero(sequences.n_train >= 6)[:12]
    length = np.minimum(sequences.n_train[user].astype(np.int64) - 1, LENGTH)
    assert len(set(length.tolist())) > 1
    chunk = Chunk(user, np.zeros_like(length), length)
    return training_batch(sequences, chunk, model.reach, None, np.random.default_rng(0))


@pytest.mark.parametrize("kind", KINDS)
def test_the_next_item_of_the_walk_is_ranked_first(
    kind: str, trained: Callable[[str], SequentialBaseline], run_dir: Path, sequences: Sequences
) -> None:
    model, config = trained(kind), rival(kind)
    users = users_with_targets(sequences, "test")
    batch = request_batch(sequences, users, "test", model.reach)
    with torch.no_grad():
        first = (model.answer(batch)[:, 0] @ model.item_vectors().T).argmax(dim=1).numpy()
    last = np.array([sequences.history(int(user), "test")[0][-1] for user in users])
    assert (first == (last + TOPICS) % ITEMS).mean() > 0.6
    popular, catalog = Popularity(), Catalog.open(run_dir / "data")
    popular.fit(sequences, catalog)
    ours = evaluate_model(model, sequences, "test", config.evaluation).means
    theirs = evaluate_baseline(popular, sequences, catalog, "test", config.evaluation).means
    assert ours["N@10"] > theirs["N@10"] + 0.3


@pytest.mark.parametrize("kind", KINDS)
def test_a_state_does_not_depend_on_what_came_later(
    kind: str, trained: Callable[[str], SequentialBaseline], sequences: Sequences
) -> None:
    model = trained(kind)
    batch = some_batch(model, sequences)
    with torch.no_grad():
        before = model.states(chunks(model, batch))
        changed = batch | {"items": batch["items"].clone(), "ts": batch["ts"].clone()}
        changed["items"][:, 3] = (changed["items"][:, 3] + 5) % ITEMS
        changed["ts"][:, 3] += 1_000
        after = model.states(chunks(model, changed))
    assert torch.equal(before[:, :3], after[:, :3])
    assert not torch.allclose(before[:, 3], after[:, 3], atol=1e-2)


@pytest.mark.parametrize("kind", KINDS)
def test_answers_do_not_depend_on_padding_and_batch(
    kind: str, trained: Callable[[str], SequentialBaseline], sequences: Sequences
) -> None:
    model = trained(kind)
    users = users_with_targets(sequences, "test")[:8]
    with torch.no_grad():
        together = model.answer(request_batch(sequences, users, "test", model.reach))
        alone = [model.answer(request_batch(sequences, users[i : i + 1], "test", model.reach)) for i in range(8)]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_an_answer_is_the_training_state_of_the_same_prefix(
    kind: str, trained: Callable[[str], SequentialBaseline], sequences: Sequences
) -> None:
    model = trained(kind)
    batch = some_batch(model, sequences)
    prefix = 4
    asked = {name: batch[name][:, :prefix] for name in ("items", "ts", "mask")}
    with torch.no_grad():
        states = F.normalize(model.states(chunks(model, batch))[:, prefix - 1], dim=-1)
        answers = model.answer(asked | {"now": batch["request"][:, prefix]})
    torch.testing.assert_close(answers[:, 0], states, atol=1e-5, rtol=0)


def test_hstu_reads_the_time_of_the_request_and_without_time_no_time_at_all(
    run_dir: Path, sequences: Sequences
) -> None:
    for time in (True, False):
        model = fresh(rival("hstu", f"baseline.time={str(time).lower()}"), run_dir)
        batch = request_batch(sequences, np.arange(4), "test", model.reach)
        later = batch | {"now": batch["now"] + 30 * 86_400}
        older = batch | {"ts": batch["ts"] - 86_400 * torch.arange(batch["ts"].shape[1]).flip(0)}
        with torch.no_grad():
            now, then, aged = (model.answer(b) for b in (batch, later, older))
        assert torch.equal(now, then) is not time
        assert torch.equal(now, aged) is not time


def test_time_buckets_are_the_papers() -> None:
    ts = torch.zeros(1, 6, dtype=torch.int64)
    request = torch.tensor([[0, 1, 2, 60, 86_400, 2**31]])
    blank = torch.empty(1, 6, 1)
    found = time_buckets(Chunks(blank, ts, ts, ts == 0, request))[0, :, 0]
    assert found.tolist() == np.floor(np.log(np.maximum(1, request[0].numpy())) / 0.301).astype(int).tolist()


@pytest.mark.parametrize("timed", [True, False])
def test_the_attention_and_its_gradients_are_those_of_plain_indexing(
    timed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Two sequences a chunk, so that sums go over chunks.
    monkeypatch.setattr("hymirec.recommender.baselines.attention.CHUNK_SCORES", 2 * 3 * 7 * 7)
    torch.manual_seed(0)
    batch, heads, items, width = 5, 3, 7, 4
    parts = [torch.randn(batch, heads, items, width, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    distance = torch.randn(items + 2, dtype=torch.float64, requires_grad=True)
    age = torch.randn(11, dtype=torch.float64, requires_grad=True) if timed else None
    bucket = torch.randint(0, 11, (batch, items, items), dtype=torch.int32) if timed else None
    leaves = [*parts, distance, *([age] if age is not None else [])]
    weight = torch.randn(batch, heads, items, width, dtype=torch.float64)

    def gradients(out: Tensor) -> list[Tensor]:
        return list(torch.autograd.grad((out * weight).sum(), leaves))

    query, key, value = parts
    place = torch.arange(items)
    score = query @ key.transpose(2, 3) + distance[(place[:, None] - place).clamp(min=0)]
    if age is not None and bucket is not None:
        score = score + age[bucket.long()][:, None]
    plain = (F.silu(score) * torch.ones(items, items).tril()) @ value
    ours = silu_attention(query, key, value, distance, age, bucket)
    torch.testing.assert_close(ours, plain)
    for a, b in zip(gradients(ours), gradients(plain), strict=True):
        # Sums by bucket are in single precision.
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("change", [(), ("baseline.negatives=64",)])
def test_every_parameter_is_trained(kind: str, change: tuple[str, ...], run_dir: Path) -> None:
    config = rival(kind, *change)
    task = BaselineTask(config, run_dir)
    model = task.build().train()
    for batch in task.batches(0, 0, 1):
        model(batch)["loss"].backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []


@pytest.mark.parametrize("kind", KINDS)
def test_an_exported_model_ranks_as_before(
    kind: str, trained: Callable[[str], SequentialBaseline], run_dir: Path, sequences: Sequences, tmp_path: Path
) -> None:
    model, config = trained(kind), rival(kind)
    BaselineTask(config, run_dir).export(model, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        "README.md",
        "config.json",
        "item_vectors.safetensors",
        "model.safetensors",
        "trend.json",
    }
    opened = open_baseline(tmp_path, Catalog.open(run_dir / "data"))
    ranks = [evaluate_model(m, sequences, "test", config.evaluation).ranks.rank_T for m in (model, opened)]
    assert np.array_equal(*ranks)


def test_a_directory_that_cannot_be_opened_is_named(run_dir: Path, tmp_path: Path) -> None:
    catalog = Catalog.open(run_dir / "data")
    with pytest.raises(ArtifactMissingError, match="run the baseline step"):
        open_baseline(tmp_path, catalog)
    task = BaselineTask(rival("sasrec"), run_dir)
    task.export(task.build(), tmp_path)
    about = {"baseline": {"kind": "sasrec", "width": 32, "layers": 3, "length": LENGTH}, "items": ITEMS, "seed": 17}
    write_json(tmp_path / "config.json", about)
    with pytest.raises(ArtifactDamagedError, match="other weights"):
        open_baseline(tmp_path, catalog)
    write_json(tmp_path / "config.json", about | {"items": 5})
    with pytest.raises(ModelError, match="trained on 5 items"):
        open_baseline(tmp_path, catalog)


def test_ids_start_from_cooccurrence(run_dir: Path, sequences: Sequences) -> None:
    model = fresh(rival("sasrec", "baseline.cooccurrence=true", "baseline.window=4"), run_dir)
    wanted = torch.from_numpy(cooccurrence_vectors(sequences, ITEMS, 32, 4))
    torch.testing.assert_close(model.item_vectors().detach(), wanted, atol=1e-6, rtol=0)


def test_a_user_without_history_is_answered(run_dir: Path, sequences: Sequences) -> None:
    for kind in KINDS:
        model = fresh(rival(kind), run_dir)
        full = request_batch(sequences, np.arange(2), "test", model.reach)
        mixed = full | {"mask": full["mask"] & torch.tensor([[True], [False]])}
        empty = {name: full[name][:1, :0] for name in ("items", "ts", "mask")} | {"now": full["now"][:1]}
        with torch.no_grad():
            mean = F.normalize(model.item_vectors().mean(dim=0), dim=0)
            torch.testing.assert_close(model.answer(empty)[0, 0], mean)
            torch.testing.assert_close(model.answer(mixed)[1, 0], mean)


def test_a_closed_form_is_no_training_task(run_dir: Path) -> None:
    with pytest.raises(ConfigError, match="kind=itemknn is not trained"):
        BaselineTask(rival("itemknn"), run_dir)


def test_titles_tell_variants_apart() -> None:
    def named(*assignments: str) -> str:
        settings = rival("hstu", *assignments).baseline
        assert settings is not None
        return title(settings)

    assert named() == "HSTU"
    assert named("baseline.time=false", "baseline.cooccurrence=true") == "HSTU, no time, co-occurrence start"


@pytest.mark.parametrize("kind", KINDS)
def test_the_first_losses_are_the_golden_ones(kind: str, run_dir: Path) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        found = first_losses(rival(kind, "baseline.dropout=0"), run_dir, 5)
    finally:
        torch.set_num_threads(threads)
    assert found == pytest.approx(GOLDEN[kind], rel=1e-3)


def first_losses(config: PipelineConfig, run_dir: Path, steps: int) -> list[float]:
    """Losses of the first steps of training."""
    task = BaselineTask(config, run_dir)
    model = task.build().train()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    losses: list[Any] = []
    for epoch in range(steps):
        for batch in task.batches(epoch, 0, 1):
            loss = model(batch)["loss"]
            losses.append(loss.item())
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    return losses[:steps]

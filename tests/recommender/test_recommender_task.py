"""Stage 2 as a whole: it learns, repeats itself to the byte, and reads nothing it must not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from reporters import Interrupted, Quiet
from toy_run import ITEMS, toy_config, toy_run

from hymirec.config import PipelineConfig
from hymirec.errors import DataError
from hymirec.recommender.hybrid import HybridModel
from hymirec.recommender.task import HybridTask
from hymirec.training import LocalReporter
from hymirec.training.loop import FitResult, fit, load_weights

# Losses of the first training steps on one thread, without dropout.
GOLDEN: list[float] = [6.8347, 7.0568, 7.2927, 8.3402, 7.4527]


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run")
    toy_run(out, toy_config())
    return out


def trained(config: PipelineConfig, run_dir: Path) -> tuple[HybridTask, FitResult]:
    task = HybridTask(config, run_dir)
    return task, fit(task, config.recommender.optim, config.compute, config.seed, Quiet())


def exported(config: PipelineConfig, run_dir: Path, out: Path) -> dict[str, bytes]:
    task, result = trained(config, run_dir)
    model = task.build()
    load_weights(model, result.state)
    task.export(model.eval(), out)
    return {path.name: path.read_bytes() for path in sorted(out.iterdir())}


def test_the_first_losses_are_the_golden_ones(run_dir: Path) -> None:
    off = ("recommender.llm.dropout=0", "recommender.light.dropout=0")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        task = HybridTask(toy_config(*off), run_dir)
        model = task.build().train()
        optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
        losses: list[float] = []
        for epoch in range(len(GOLDEN)):
            for batch in task.batches(epoch, 0, 1):
                loss = model(batch)["loss"]
                losses.append(float(loss.detach()))
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
    finally:
        torch.set_num_threads(threads)
    assert losses[: len(GOLDEN)] == pytest.approx(GOLDEN, rel=1e-3)


def test_training_that_died_within_an_epoch_ends_with_the_same_weights(run_dir: Path, tmp_path: Path) -> None:
    config = toy_config("recommender.optim.epochs=2", "recommender.optim.batch_size=16", "compute.checkpoint_steps=2")
    _, whole = trained(config, run_dir)
    for after in (1, 2):
        task, directory = HybridTask(config, run_dir), tmp_path / str(after)
        settings = (config.recommender.optim, config.compute, config.seed)
        with pytest.raises(KeyboardInterrupt):
            fit(task, *settings, Interrupted(directory, after))
        resumed = fit(task, *settings, LocalReporter(directory))
        assert resumed.history == whole.history
        assert all(torch.equal(resumed.state[name], whole.state[name]) for name in whole.state)


def test_training_lowers_the_loss_and_equal_runs_write_equal_bytes(run_dir: Path, tmp_path: Path) -> None:
    config = toy_config("recommender.optim.epochs=3", "recommender.item.cooccurrence=false")
    _, result = trained(config, run_dir)
    history = result.history
    assert history[-1]["train_next"] < history[1]["train_next"]
    assert history[result.best_epoch + 1]["ndcg@10"] > history[0]["ndcg@10"]
    first = exported(config, run_dir, tmp_path / "a")
    assert set(first) == {
        "README.md",
        "config.json",
        "item_vectors.safetensors",
        "model.safetensors",
        "neighbours.json",
        "neighbours.safetensors",
        "trend.json",
        "trend.safetensors",
    }
    assert first == exported(config, run_dir, tmp_path / "b")


def test_the_whole_catalogue_as_sampled_negatives_is_the_full_softmax(run_dir: Path) -> None:
    task = HybridTask(toy_config("recommender.mask_false_negatives=1"), run_dir)
    model = task.build().eval()
    batch = next(iter(task.batches(0, 0, 1)))

    def gradients(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        model.zero_grad()
        model(batch)["loss"].backward()
        return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

    everything = torch.arange(ITEMS).flip(0).reshape(len(batch["mask"]), -1)
    full, sampled = gradients(batch), gradients(batch | {"negatives": everything})
    for name, gradient in full.items():
        torch.testing.assert_close(sampled[name], gradient, atol=1e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize(("items", "setting", "drawn"), [(16_384, None, 0), (16_385, None, 4_096), (16_385, 0, 0)])
def test_a_wide_catalogue_is_sampled_unless_told_otherwise(
    items: int, setting: int | None, drawn: int, tmp_path: Path
) -> None:
    config = toy_config(
        "recommender.item.cooccurrence=false", f"recommender.negatives={'null' if setting is None else setting}"
    )
    toy_run(tmp_path, config, part_rows=20_000, unsold=items - ITEMS)
    task = HybridTask(config, tmp_path)
    batch = next(iter(task.batches(0, 0, 1)))
    assert (batch["negatives"].numel() if "negatives" in batch else 0) == drawn
    task.build()(batch)["loss"].backward()


def test_the_start_from_cooccurrence_beats_a_random_one_untrained(run_dir: Path) -> None:
    scores = {}
    for start in ("true", "false"):
        task = HybridTask(toy_config(f"recommender.item.cooccurrence={start}"), run_dir)
        total, count = task.validate(task.build().eval(), 0, 1)["ndcg@10"]
        scores[start] = total / count
    assert scores["true"] > scores["false"] + 0.05


@pytest.mark.parametrize(
    "change",
    [
        ("recommender.negatives=32",),
        ("recommender.item.ids=false", "recommender.item.cooccurrence=false"),
        ("recommender.dmil.interests=4", "recommender.dmil.matching=max"),
        ("recommender.dmil.next_item_weight=0", "recommender.dmil.weight=1", "recommender.dmil.shield_trunk=false"),
        ("recommender.llm.gradient_checkpointing=true", "recommender.light.layers=2"),
    ],
)
def test_every_switch_trains_each_of_its_parameters(run_dir: Path, change: tuple[str, ...]) -> None:
    task = HybridTask(toy_config(*change), run_dir)
    model = task.build().train()
    # The last batch reaches back beyond the recent items, so that the light tower has something to read.
    batches = [b for b in task.batches(0, 0, 1) if b["long_mask"].any()]
    for batch in batches[:2]:
        out = model(batch)
        assert torch.isfinite(out["loss"])
        out["loss"].backward()
        with torch.no_grad():
            # Heads start at zero and pass no gradient to their queries before their first step.
            for p in model.parameters():
                if p.grad is not None:
                    p -= 0.01 * p.grad
    without = [name for name, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert without == []


def test_two_ranks_validate_what_one_does(run_dir: Path) -> None:
    task = HybridTask(toy_config(), run_dir)
    model = task.build().eval()
    alone = task.validate(model, 0, 1)
    parts = [task.validate(model, rank, 2) for rank in range(2)]
    for name, (total, count) in alone.items():
        assert count == sum(part[name][1] for part in parts)
        assert total == pytest.approx(sum(part[name][0] for part in parts), abs=1e-4)


def test_ranks_take_equally_many_steps(run_dir: Path) -> None:
    task = HybridTask(toy_config(), run_dir)
    for world in (1, 2, 3):
        for rank in range(world):
            assert len(list(task.batches(0, rank, world))) == task.steps(world)


def test_no_user_with_two_training_events_is_said(tmp_path: Path) -> None:
    config = toy_config()
    toy_run(tmp_path, config)
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / "data" / "sequences.parquet"
    table = pq.read_table(path)
    column = table.column_names.index("n_train")
    pq.write_table(table.set_column(column, table.field("n_train"), pa.array([1] * table.num_rows, pa.int32())), path)
    with pytest.raises(DataError, match="two training events"):
        HybridTask(config, tmp_path)


def test_the_card_says_what_the_model_is(run_dir: Path, tmp_path: Path) -> None:
    task = HybridTask(toy_config(), run_dir)
    model = task.build()
    assert isinstance(model, HybridModel)
    task.export(model.eval(), tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert f"{ITEMS} items" in card
    assert "2 interests" in card

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from reporters import Interrupted
from toy_task import Noisy, ToyModel, ToyTask

from hymirec.config import ComputeConfig, OptimConfig
from hymirec.errors import ModelError
from hymirec.training import LocalReporter, fit
from hymirec.training.average import averaged
from hymirec.training.engine import make_engine
from hymirec.training.generators import load_random, save_random, seed_all
from hymirec.training.loop import load_weights
from hymirec.training.schedule import learning_rate

COMPUTE = ComputeConfig(engine="torch")
OPTIM = OptimConfig(epochs=4, batch_size=32, lr=2e-2, patience=10)


def test_training_beats_the_untrained_model(tmp_path: Path) -> None:
    result = fit(ToyTask(), OPTIM, COMPUTE, seed=1, reporter=LocalReporter(tmp_path))
    assert len(result.history) == 5
    assert result.history[-1]["accuracy"] > max(0.85, result.history[0]["accuracy"])
    assert result.history[-1]["train_loss"] < result.history[1]["train_loss"]


@pytest.mark.parametrize("ema", [0.0, 0.9])
@pytest.mark.parametrize("killed_after", [1, 2, 3])
def test_a_run_that_died_after_any_epoch_ends_with_the_same_weights(
    tmp_path: Path, killed_after: int, ema: float
) -> None:
    optim = OPTIM.model_copy(update={"ema": ema})
    whole = fit(ToyTask(), optim, COMPUTE, seed=1, reporter=LocalReporter(tmp_path / "whole"))

    class Dying(LocalReporter):
        def report(self, metrics, save) -> None:  # type: ignore[no-untyped-def]
            super().report(metrics, save)
            if len(self.history) == killed_after:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(ToyTask(), optim, COMPUTE, seed=1, reporter=Dying(tmp_path / "killed"))
    resumed = fit(ToyTask(), optim, COMPUTE, seed=1, reporter=LocalReporter(tmp_path / "killed"))
    assert resumed.history == whole.history
    assert all(torch.equal(resumed.state[name], whole.state[name]) for name in whole.state)


@pytest.mark.parametrize("ema", [0.0, 0.9])
@pytest.mark.parametrize(("accumulation", "every"), [(1, 3), (2, 1)])
@pytest.mark.parametrize("after", [1, 2, 5])
def test_a_run_that_died_within_an_epoch_does_only_the_rest_of_it_and_ends_with_the_same_weights(
    tmp_path: Path, ema: float, accumulation: int, every: int, after: int
) -> None:
    optim = OPTIM.model_copy(update={"ema": ema, "accumulation": accumulation})
    compute = COMPUTE.model_copy(update={"checkpoint_steps": every})
    whole = fit(Noisy(), optim, COMPUTE, seed=1, reporter=LocalReporter(tmp_path / "whole"))
    with pytest.raises(KeyboardInterrupt):
        fit(Noisy(), optim, compute, seed=1, reporter=Interrupted(tmp_path / "killed", after))
    # Eight micro-batches an epoch: two checkpoints within it (after 3 and 6), or three (after 2, 4 and 6).
    within = 2 if accumulation == 1 else 3
    done = 8 * ((after - 1) // within) + every * accumulation * (1 + (after - 1) % within)
    steps = []

    class Counting(LocalReporter):
        def progress(self, epoch: int, step: int, steps_: int, scalars: Mapping[str, float]) -> None:
            steps.append(8 * epoch + step)

    torch.rand(3), np.random.rand(3)  # the process that goes on has drawn other numbers
    resumed = fit(Noisy(), optim, compute, seed=1, reporter=Counting(tmp_path / "killed"))
    assert steps == list(range(done + 1, 8 * 4 + 1))
    assert resumed.history == whole.history
    assert all(torch.equal(resumed.state[name], whole.state[name]) for name in whole.state)


def test_generators_go_on_where_they_stood(tmp_path: Path) -> None:
    np.random.normal()  # numpy draws normals in pairs and keeps the second
    save_random(tmp_path, rank=3)
    expected = torch.rand(5), np.random.normal(size=5)
    seed_all(1, 2, 3)
    load_random(tmp_path, rank=3)
    assert torch.equal(torch.rand(5), expected[0])
    assert np.array_equal(np.random.normal(size=5), expected[1])


def test_the_average_of_weights_is_kept_and_does_not_move_training(tmp_path: Path) -> None:
    last = fit(ToyTask(), OPTIM, COMPUTE, seed=1, reporter=LocalReporter(tmp_path / "last"))
    optim = OPTIM.model_copy(update={"ema": 0.9})
    mean = fit(ToyTask(), optim, COMPUTE, seed=1, reporter=LocalReporter(tmp_path / "mean"))
    assert [row.get("train_loss") for row in mean.history] == [row.get("train_loss") for row in last.history]
    assert not any(torch.equal(mean.state[name], last.state[name]) for name in last.state)


def test_an_average_by_hand() -> None:
    model = ToyModel()
    start = model.linear.weight.detach().clone()
    optim = OptimConfig(ema=0.5, accumulation=2, weight_decay=0, lr=1.0)
    engine = averaged(make_engine(model, optim, COMPUTE), optim, COMPUTE)
    weights = []
    for update in (False, True, False, True):
        engine.step(model.linear.weight.sum(), 0.1, update)
        weights += [model.linear.weight.detach().clone()] if update else []
    # The first decay is 2/11, the second 3/12.
    expected = (2 / 11) * start + (9 / 11) * weights[0]
    expected = (3 / 12) * expected + (9 / 12) * weights[1]
    with engine.gathered():
        torch.testing.assert_close(model.linear.weight.detach(), expected)
    assert torch.equal(model.linear.weight, weights[1])
    torch.testing.assert_close(engine.full_state()["linear.weight"], expected)


def test_no_average_under_zero_3(caplog: pytest.LogCaptureFixture) -> None:
    optim = OptimConfig(ema=0.9)
    engine = make_engine(ToyModel(), optim, COMPUTE)
    assert averaged(engine, optim, ComputeConfig(engine="deepspeed", zero_stage=3)) is engine
    assert "ZeRO-3" in caplog.text


def test_a_checkpoint_without_its_completion_mark_is_not_believed(tmp_path: Path) -> None:
    reporter = LocalReporter(tmp_path)
    fit(ToyTask(), OptimConfig(epochs=1, batch_size=32), COMPUTE, seed=1, reporter=reporter)
    (tmp_path / "checkpoint-000009").mkdir()
    with reporter.latest() as directory:
        assert directory is not None
        assert directory.name == "checkpoint-000000"


def test_training_stops_when_validation_no_longer_improves(tmp_path: Path) -> None:
    class Flat(ToyTask):
        def validate(self, model, rank, world):  # type: ignore[no-untyped-def]
            return {"accuracy": (0.5, 1)}

    optim = OptimConfig(epochs=20, batch_size=32, patience=3)
    result = fit(Flat(), optim, COMPUTE, seed=1, reporter=LocalReporter(tmp_path))
    assert len(result.history) == 1 + 3
    assert result.best_epoch == -1


def test_zero_epochs_return_the_initial_weights(tmp_path: Path) -> None:
    result = fit(ToyTask(), OptimConfig(epochs=0), COMPUTE, seed=1, reporter=LocalReporter(tmp_path))
    initial = ToyTask().build()
    assert all(torch.equal(result.state[name], p) for name, p in initial.named_parameters())


def test_accumulated_micro_batches_give_the_update_of_the_whole_batch(tmp_path: Path) -> None:
    once = OptimConfig(epochs=1, batch_size=64, weight_decay=0)
    twice = OptimConfig(epochs=1, batch_size=64, accumulation=2, weight_decay=0)
    a = fit(ToyTask(batch=64), once, COMPUTE, seed=1, reporter=LocalReporter(tmp_path / "a"))
    b = fit(ToyTask(batch=32), twice, COMPUTE, seed=1, reporter=LocalReporter(tmp_path / "b"))
    assert all(torch.allclose(a.state[name], b.state[name], atol=1e-4) for name in a.state)


def test_a_loss_that_is_not_finite_is_an_error_that_names_the_task(tmp_path: Path) -> None:
    task = ToyTask()
    task.x[7] = math.nan
    with pytest.raises(ModelError, match="toy: the loss is nan"):
        fit(task, OPTIM, COMPUTE, seed=1, reporter=LocalReporter(tmp_path))


def test_weights_of_another_configuration_are_refused() -> None:
    with pytest.raises(ModelError, match=r"linear\.weight"):
        load_weights(ToyModel(), {})


def test_learning_rate_rises_to_its_peak_and_falls_to_its_end() -> None:
    optim = OptimConfig(lr=1.0, warmup_ratio=0.1, min_lr_ratio=0.1)
    rates = [learning_rate(optim, update, 100) for update in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == rates[10] == 1.0
    assert rates[-1] == pytest.approx(0.1)
    assert rates[10:] == sorted(rates[10:], reverse=True)

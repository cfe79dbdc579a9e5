from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from toy_task import ToyTask

from hymirec.config import ComputeConfig, OptimConfig
from hymirec.errors import ModelError
from hymirec.training import LocalReporter, fit
from hymirec.training.engine import DeepSpeedEngine, effective_stage, make_engine

OPTIM = OptimConfig(epochs=2, batch_size=32, lr=2e-2, accumulation=2)
COMPUTE = ComputeConfig(engine="deepspeed")


@pytest.fixture(scope="module", autouse=True)
def one_worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A process group of this process alone, as of one worker of Ray Train."""
    store = tmp_path_factory.mktemp("group") / "store"
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("LOCAL_RANK", "0")
        dist.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
        yield
        dist.destroy_process_group()


def trained(directory: Path) -> dict[str, torch.Tensor]:
    return fit(ToyTask(), OPTIM, COMPUTE, seed=1, reporter=LocalReporter(directory)).state


def test_one_worker_gets_the_weights_of_zero_2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert effective_stage(COMPUTE, 1) == 0
    zero = trained(tmp_path / "0")
    monkeypatch.setattr("hymirec.training.engine.effective_stage", lambda compute, world: compute.zero_stage)
    two = trained(tmp_path / "2")
    initial = dict(ToyTask().build().named_parameters())
    assert all(torch.equal(zero[name], two[name]) for name in two)
    assert not any(torch.equal(zero[name], initial[name]) for name in two)


def test_one_worker_clips_the_gathered_gradients(tmp_path: Path) -> None:
    def clipped(engine: str, norm: float) -> dict[str, torch.Tensor]:
        # To less than Adam's epsilon: a longer norm changes nothing of its steps.
        optim, compute = OPTIM.model_copy(update={"clip_norm": norm}), ComputeConfig.model_validate({"engine": engine})
        return fit(ToyTask(), optim, compute, 1, LocalReporter(tmp_path / f"{engine}{norm}")).state

    expected, found, free = clipped("torch", 1e-9), clipped("deepspeed", 1e-9), clipped("deepspeed", 1.0)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-6)
    assert any(not torch.allclose(found[name], free[name], atol=1e-2) for name in free)


@pytest.mark.parametrize(
    ("stage", "world", "bf16", "run"), [(1, 1, False, 0), (2, 2, False, 2), (3, 1, False, 3), (2, 1, True, 2)]
)
def test_the_stage_is_kept_where_there_is_something_to_share_out(stage: int, world: int, bf16: bool, run: int) -> None:
    assert effective_stage(ComputeConfig(zero_stage=stage, bf16=bf16), world) == run


def test_a_checkpoint_of_another_stage_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hymirec.training.engine.effective_stage", lambda compute, world: compute.zero_stage)
    two = make_engine(ToyTask().build(), OPTIM, COMPUTE)
    assert isinstance(two, DeepSpeedEngine)
    two.save(tmp_path)
    monkeypatch.undo()
    with pytest.raises(ModelError, match=r"no DeepSpeed checkpoint zero-0 \(it has: zero-2\); delete it"):
        make_engine(ToyTask().build(), OPTIM, COMPUTE).load(tmp_path)

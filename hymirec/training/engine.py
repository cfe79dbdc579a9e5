"""Engines: how gradients become updates, alone or over many ranks.

`TorchEngine` is plain PyTorch with averaged gradients; `DeepSpeedEngine` is ZeRO stage 0 to 3. Both have the same
contract, so that the loop, the tasks and the checkpoints do not know which one runs.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from hymirec.config import ComputeConfig, OptimConfig
from hymirec.errors import ModelError

StateDict = dict[str, Tensor]


class Engine(Protocol):
    """A model and its optimizer."""

    device: torch.device

    @property
    def module(self) -> nn.Module:
        """The model to call."""
        ...

    def step(self, loss: Tensor, lr: float, update: bool) -> None:
        """Backward of one micro-batch; on `update` clip the gathered gradients and apply them with `lr`."""
        ...

    def gathered(self) -> AbstractContextManager[Any]:
        """A context in which every rank holds whole parameters, for code that reads them outside `forward`."""
        ...

    def full_state(self) -> StateDict:
        """All weights in fp32 on the CPU; a collective, every rank calls it."""
        ...

    def save(self, directory: Path) -> None:
        """Write this rank's part of the state; file names differ by rank."""
        ...

    def load(self, directory: Path) -> None:
        """Continue from a saved state."""
        ...


def unwrap(module: nn.Module) -> nn.Module:
    """The task's own model inside an engine's wrapper."""
    inner = getattr(module, "module", module)
    return inner if isinstance(inner, nn.Module) else module


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Trainable parameters: matrices decay; gains, biases and scalars do not."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def make_optimizer(model: nn.Module, optim: OptimConfig) -> torch.optim.AdamW:
    """AdamW in one pass over each parameter: on a CPU a third of the time of its separate operations."""
    return torch.optim.AdamW(parameter_groups(model, optim.weight_decay), lr=optim.lr, fused=True)


def _set_lr(groups: Iterable[dict[str, Any]], lr: float) -> None:
    for group in groups:
        group["lr"] = lr


class TorchEngine:
    """AdamW on every rank over averaged gradients. bf16 by autocast."""

    def __init__(self, model: nn.Module, optim: OptimConfig, compute: ComputeConfig, device: torch.device) -> None:
        self.device = device
        self._model = model.to(device)
        self._clip = optim.clip_norm
        self._accumulation = optim.accumulation
        self._bf16 = compute.bf16
        self._optimizer = make_optimizer(model, optim)

    @property
    def module(self) -> nn.Module:
        """The model itself."""
        return self._model

    def step(self, loss: Tensor, lr: float, update: bool) -> None:
        """See `Engine.step`."""
        (loss / self._accumulation).backward()
        if not update:
            return
        parameters = [p for p in self._model.parameters() if p.requires_grad]
        if dist.is_initialized() and dist.get_world_size() > 1:
            for p in parameters:
                if p.grad is None:
                    p.grad = torch.zeros_like(p)
            flat = torch.cat([p.grad.reshape(-1) for p in parameters if p.grad is not None])
            dist.all_reduce(flat)
            flat /= dist.get_world_size()
            for p, part in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
                p.grad = part.view_as(p)
        nn.utils.clip_grad_norm_(parameters, self._clip)
        _set_lr(self._optimizer.param_groups, lr)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)

    def gathered(self) -> AbstractContextManager[Any]:
        """Every rank holds them anyway."""
        return nullcontext()

    def full_state(self) -> StateDict:
        """See `Engine.full_state`."""
        return {name: value.detach().float().cpu().clone() for name, value in self._model.named_parameters()}

    def save(self, directory: Path) -> None:
        """Rank 0 writes weights and moments as safetensors; the other ranks hold the same."""
        if dist.is_initialized() and dist.get_rank() != 0:
            return
        tensors = {f"model/{name}": p.detach().cpu().contiguous().clone() for name, p in self._model.named_parameters()}
        steps: dict[str, float] = {}
        for name, p in self._model.named_parameters():
            for key, value in self._optimizer.state.get(p, {}).items():
                if key == "step":
                    steps[name] = float(value)
                else:
                    tensors[f"{key}/{name}"] = value.cpu().contiguous()
        save_file(tensors, directory / "torch.safetensors")
        (directory / "torch.json").write_text(json.dumps(steps))

    def load(self, directory: Path) -> None:
        """See `Engine.load`."""
        tensors = load_file(directory / "torch.safetensors")
        steps = json.loads((directory / "torch.json").read_text())
        with torch.no_grad():
            for name, p in self._model.named_parameters():
                p.copy_(tensors[f"model/{name}"])
                if name in steps:
                    moments = {key: tensors[f"{key}/{name}"].to(p.device) for key in ("exp_avg", "exp_avg_sq")}
                    self._optimizer.state[p] = {"step": torch.tensor(steps[name], device=p.device), **moments}


class DeepSpeedEngine:
    """DeepSpeed ZeRO. Needs an initialised process group (Ray Train makes one)."""

    def __init__(self, model: nn.Module, optim: OptimConfig, compute: ComputeConfig, device: torch.device) -> None:
        if device.type == "cpu":
            os.environ["DS_ACCELERATOR"] = "cpu"
        import deepspeed

        if device.type == "cpu":
            # DeepSpeed's shared-memory collective is compiled at start for two minutes; plain gloo does the same.
            deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        self.device = device
        self._deepspeed = deepspeed
        self._stage = effective_stage(compute, dist.get_world_size())
        # With nothing to share out, nobody to add gradients with, and no master weights.
        self._alone = self._stage == 0 and dist.get_world_size() == 1 and not compute.bf16
        self._clip = optim.clip_norm
        self._engine, self._optimizer, *_ = deepspeed.initialize(
            model=model.to(device),
            optimizer=make_optimizer(model, optim),
            dist_init_required=False,
            config={
                "train_micro_batch_size_per_gpu": max(
                    1, optim.batch_size // (dist.get_world_size() * optim.accumulation)
                ),
                "gradient_accumulation_steps": optim.accumulation,
                "gradient_clipping": 0.0 if self._alone else optim.clip_norm,
                "zero_optimization": {"stage": self._stage},
                "zero_allow_untested_optimizer": True,
                "bf16": {"enabled": compute.bf16},
                "steps_per_print": 10**9,
            },
        )
        if self._alone:
            # Adding up with nobody, and a norm parameter by parameter, were 3 % of a step on a CPU.
            self._engine.enable_backward_allreduce = False

    @property
    def module(self) -> nn.Module:
        """DeepSpeed's wrapper; calling it runs the model."""
        module: nn.Module = self._engine
        return module

    def step(self, loss: Tensor, lr: float, update: bool) -> None:
        """See `Engine.step`; DeepSpeed counts the micro-batches itself."""
        _set_lr(self._optimizer.param_groups, lr)
        self._engine.backward(loss)
        if self._alone and update:
            nn.utils.clip_grad_norm_([p for p in self._engine.module.parameters() if p.requires_grad], self._clip)
        self._engine.step()

    def gathered(self) -> AbstractContextManager[Any]:
        """ZeRO-3 partitions parameters; the lower stages do not."""
        if self._stage < 3:
            return nullcontext()
        context: AbstractContextManager[Any] = self._deepspeed.zero.GatheredParameters(
            list(self._engine.module.parameters())
        )
        return context

    def full_state(self) -> StateDict:
        """Fp32 master weights where ZeRO or bf16 keeps them, else the parameters."""
        from deepspeed.utils import safe_get_full_fp32_param

        state: StateDict = {}
        for name, p in self._engine.module.named_parameters():
            master = safe_get_full_fp32_param(p) if p.requires_grad else None
            # Under ZeRO-3 a parameter is empty and `ds_shape` is what it will be.
            shape = getattr(p, "ds_shape", p.shape)
            state[name] = (p if master is None else master).detach().float().cpu().clone().view(shape)
        return state

    def save(self, directory: Path) -> None:
        """DeepSpeed's own files, one set a rank."""
        self._engine.save_checkpoint(str(directory), tag=self._tag)

    def load(self, directory: Path) -> None:
        """See `Engine.load`. Raises ModelError for a checkpoint of another ZeRO stage."""
        if not (directory / self._tag).is_dir():
            found = ", ".join(sorted(path.name for path in directory.iterdir() if path.is_dir()))
            raise ModelError(
                f"{directory} has no DeepSpeed checkpoint {self._tag} (it has: {found or 'none'}); delete it to train "
                "this step from its beginning"
            )
        self._engine.load_checkpoint(str(directory), tag=self._tag)

    @property
    def _tag(self) -> str:
        return f"zero-{self._stage}"


def effective_stage(compute: ComputeConfig, world: int) -> int:
    """ZeRO stage that is run: 1 and 2 share gradients and moments out among workers, so of one fp32 worker they are 0.

    There 0 gives the same weights up to rounding (the norm for clipping adds up in another order) without copies of all
    gradients and weights a step. In bf16 they stay, since their fp32 gradients add up more exactly.
    """
    alone = world == 1 and compute.zero_stage < 3 and not compute.bf16
    return 0 if alone else compute.zero_stage


def make_engine(model: nn.Module, optim: OptimConfig, compute: ComputeConfig) -> Engine:
    """The engine that the config names, on this worker's device."""
    device = torch.device("cuda", torch.cuda.current_device()) if compute.use_gpu else torch.device("cpu")
    if compute.engine == "deepspeed" and dist.is_initialized():
        return DeepSpeedEngine(model, optim, compute, device)
    return TorchEngine(model, optim, compute, device)

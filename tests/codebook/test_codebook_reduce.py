"""Real torch.distributed workers: what they exchange, and a fit of two processes against one."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from codebook_workers import clustered

from hymirec.codebook import IdentityReducer, ResidualCodebook, TorchDistributedReducer, fit_codebook
from hymirec.config import CodebookConfig

CONFIG = CodebookConfig(layers=2, centroids=24, iterations=3, slices=20)


def worker(rank: int, world: int, directory: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{directory}/rendezvous", rank=rank, world_size=world)
    reducer = TorchDistributedReducer()
    rows = clustered(500, 16)
    mine = np.arange(len(rows))[rank * 300 : 300 if rank == 0 else None]
    codebook = fit_codebook(rows[mine], mine, CONFIG, 3, reducer)
    codebook.save_pretrained(f"{directory}/{rank}")
    block = torch.full((rank, 3), rank, dtype=torch.int16)
    exchanged = {"rows": reducer.gather(block), "sum": reducer.sum_(torch.tensor([2**40 + rank]))}
    torch.save(exchanged, f"{directory}/{rank}/exchanged.pt")
    dist.destroy_process_group()


def test_two_processes_fit_what_one_fits_and_gather_uneven_blocks(tmp_path: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    processes = [spawn.Process(target=worker, args=(rank, 2, str(tmp_path))) for rank in range(2)]
    for process in processes:
        process.start()
    rows = clustered(500, 16)
    alone = fit_codebook(rows, np.arange(len(rows)), CONFIG, 3, IdentityReducer())
    alone.save_pretrained(tmp_path / "alone")
    for process in processes:
        process.join(240)
        process.kill()
    assert [process.exitcode for process in processes] == [0, 0]
    for rank in range(2):
        for name in ("config.json", "codebook.safetensors"):
            assert (tmp_path / str(rank) / name).read_bytes() == (tmp_path / "alone" / name).read_bytes()
        exchanged = torch.load(tmp_path / str(rank) / "exchanged.pt", weights_only=True)
        assert exchanged["rows"].tolist() == [[1, 1, 1]]
        assert exchanged["sum"].tolist() == [2**41 + 1]
    assert isinstance(ResidualCodebook.from_pretrained(tmp_path / "0"), ResidualCodebook)


@pytest.mark.parametrize("dtype", [torch.int16, torch.int64])
def test_one_worker_alone_exchanges_nothing(dtype: torch.dtype) -> None:
    reducer, block = IdentityReducer(), torch.arange(6, dtype=dtype).view(3, 2)
    assert torch.equal(reducer.gather(block), block)
    assert torch.equal(reducer.sum_(block.clone()), block)

"""A sequence shared by two processes gives what one process gives, values and gradients."""

from pathlib import Path

import pytest
import torch

from anabranch.attention import flow_attention

from .samples import gap, heads, some

if not torch.distributed.is_available():
    pytest.skip("torch has no torch.distributed here", allow_module_level=True)


def _worker(rank: int, folder: str) -> None:
    store = f"file://{folder}/store"
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    q, k, v = heads(11, 9)
    mask = some(2, 9)
    rows, columns = (slice(0, 4), slice(0, 6)) if rank == 0 else (slice(4, 11), slice(6, 9))
    for options in ({}, {"clamp": (-1.0, 1.0)}, {"kv_mask": mask[:, columns]}):
        part = [x.clone().requires_grad_() for x in (q[:, :, rows], k[:, :, columns], v[:, :, columns])]
        y = flow_attention(*part, group=torch.distributed.group.WORLD, **options)
        (y * y.detach().cos()).sum().backward()
        name = "-".join(options) or "plain"
        torch.save([y.detach(), *(x.grad for x in part)], f"{folder}/{name}-{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.xdist_group("distributed")
def test_two_processes_equal_one(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(_worker, (str(tmp_path),), nprocs=2)
    for name, options in {"plain": {}, "clamp": {"clamp": (-1.0, 1.0)}, "kv_mask": {"kv_mask": some(2, 9)}}.items():
        inputs = [x.requires_grad_() for x in heads(11, 9)]
        y = flow_attention(*inputs, **options)
        expected = [y.detach(), *torch.autograd.grad((y * y.detach().cos()).sum(), inputs)]
        parts = [torch.load(tmp_path / f"{name}-{rank}.pt", weights_only=True) for rank in range(2)]
        for whole, first, second in zip(expected, *parts, strict=True):
            assert gap(torch.cat([first, second], 2), whole) <= 1e-12

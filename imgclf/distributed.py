"""Several processes that train one model, as `torchrun` starts them, on one machine or on many.

Each process computes its share of every batch, and the gradients are averaged over all of them. In a single process
every function here does nothing, so that the same code serves both.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import distributed as dist
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

MAIN = 0


def started_by_torchrun() -> bool:
    """Whether this process is one of several that belong together."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def local_rank() -> int:
    """The number of this process on its own machine: which of its accelerators is its own."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def join() -> None:
    """Meet the other processes, if there are any: over nccl where each has its CUDA device, else over gloo."""
    if not started_by_torchrun() or dist.is_initialized():
        return
    on_cuda = torch.cuda.is_available() and torch.cuda.device_count() > local_rank()
    if on_cuda:
        torch.cuda.set_device(local_rank())
    dist.init_process_group("cpu:gloo,cuda:nccl" if on_cuda else "gloo")
    atexit.register(_leave)


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def shard() -> tuple[int, int]:
    """(rank, number of processes): (0, 1) for a process on its own."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def is_main() -> bool:
    """Whether this process is the one that writes and prints."""
    return shard()[0] == MAIN


def sum_over_all(tensor: torch.Tensor) -> torch.Tensor:
    """The sum of a tensor over all processes, in place."""
    if dist.is_initialized():
        dist.all_reduce(tensor)
    return tensor


def any_of_all(flag: bool, device: torch.device) -> bool:
    """Whether the flag is set in any process: they must stop at the same step, or wait for each other for ever."""
    if not dist.is_initialized():
        return flag
    return bool(sum_over_all(torch.tensor(float(flag), device=device)).item())


def gather(value: Any) -> list[Any]:
    """What every process holds, by rank, in every process; for small or rare values, as they travel pickled."""
    if not dist.is_initialized():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def in_turn(shares: Sequence[Sequence[Any]]) -> list[Any]:
    """One list again from the shares `items[rank::processes]` of all ranks."""
    if len(shares) == 1:
        return list(shares[0])
    merged: list[Any] = [None] * sum(map(len, shares))
    for rank, share in enumerate(shares):
        merged[rank :: len(shares)] = share
    return merged


def wrap(model: nn.Module, device: torch.device) -> nn.Module:
    """The model to call in training: one whose backward pass averages the gradients over all processes.

    On CUDA the batch norms of `model` are made to see the whole batch as well. On the processor torch has none that
    do, and each process norms its own share.
    """
    if not dist.is_initialized():
        return model
    if device.type == "cuda":
        nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
    return DistributedDataParallel(model, device_ids=[device.index] if device.type == "cuda" else None)


def share_buffers(model: nn.Module) -> None:
    """Give every process the batch statistics of the main one, so that all of them validate the same model."""
    if dist.is_initialized() and any(isinstance(m, _BatchNorm) for m in model.modules()):
        for buffer in model.buffers():
            dist.broadcast(buffer, MAIN)

"""Several processes that train one model, as `torchrun` starts them, on one machine or on many.

Each process computes its share of every batch, and the gradients are summed over all of them. In a single process
every function here does nothing, so that the same code serves both.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Iterable, Sequence
from importlib import import_module
from typing import Any

import torch
from torch import distributed as dist
from torch import nn

from imgclf.core.errors import ConfigError

MAIN = 0


def join() -> None:
    """Meet the other processes, if there are any: over nccl where each has its CUDA device, else over gloo.

    Raises `ConfigError` where there are CUDA devices, and more processes than these on this machine.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) <= 1 or dist.is_initialized():
        return
    here, devices = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), torch.cuda.device_count()
    on_cuda = torch.cuda.is_available()
    if on_cuda and devices < here:
        raise ConfigError(
            f"{here} processes for {devices} CUDA device{'' if devices == 1 else 's'} on this machine: start at most "
            f"as many as there are devices, or none of them on CUDA with CUDA_VISIBLE_DEVICES="
        )
    if on_cuda:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    # The optimizers load it later, and it keeps a group that is there by then: its threads would outlive `_leave`, and
    # one that runs while Python ends aborts the process.
    import_module("torch._dynamo")
    dist.init_process_group("cpu:gloo,cuda:nccl" if on_cuda else "gloo")
    atexit.register(_leave)


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    """The number of this process among all of them."""
    return dist.get_rank() if dist.is_initialized() else MAIN


def world_size() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def shard() -> tuple[int, int]:
    """(rank, number of processes): (0, 1) for a process on its own."""
    return rank(), world_size()


def is_main() -> bool:
    """Whether this process is the one that writes and prints."""
    return rank() == MAIN


def sum_over_all(tensor: torch.Tensor) -> torch.Tensor:
    """The sum of a tensor over all processes, in place."""
    if dist.is_initialized():
        dist.all_reduce(tensor)
    return tensor


def any_of_all(flags: Sequence[bool], device: torch.device) -> list[bool]:
    """Which of some flags are set in any process: all must stop at the same step, or wait for each other for ever."""
    if not dist.is_initialized():
        return list(flags)
    return [total > 0 for total in sum_over_all(torch.tensor(flags, dtype=torch.float32, device=device)).tolist()]


def gather(value: Any) -> list[Any]:
    """The values of all processes, by rank; for small or rare values, because they are pickled."""
    if not dist.is_initialized():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def sync_norms(model: nn.Module, device: torch.device) -> None:
    """Make the batch norms of `model` see the whole batch, on CUDA.

    On the processor torch has none that do: each process norms its own share. timm's batch norms hold the activation
    that follows, which torch's conversion would lose.
    """
    if not dist.is_initialized() or device.type != "cuda":
        return
    if any(isinstance(module, nn.BatchNorm2d) and hasattr(module, "act") for module in model.modules()):
        from timm.layers.norm_act import convert_sync_batchnorm as convert
    else:
        convert = nn.SyncBatchNorm.convert_sync_batchnorm
    convert(model)  # type: ignore[no-untyped-call]


def share(tensors: Iterable[torch.Tensor]) -> None:
    """Give every process the tensors of the main one, in place."""
    if dist.is_initialized():
        for tensor in tensors:
            message = tensor.contiguous()  # a tensor in channels-last order can't be sent as it lies
            dist.broadcast(message, MAIN)
            tensor.copy_(message)


def sum_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace each gradient by its sum over all processes, all in one message a type of number.

    After the backward pass and not while it runs, as `DistributedDataParallel` would: a process may repeat its part in
    smaller steps for want of memory, have no images of a batch, or train only the head for a while.
    """
    if not dist.is_initialized():
        return
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    for parameter in trained:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    gradients = [parameter.grad for parameter in trained if parameter.grad is not None]
    for dtype in sorted({gradient.dtype for gradient in gradients}, key=str):
        same = [gradient for gradient in gradients if gradient.dtype == dtype]
        message = torch.cat([gradient.flatten() for gradient in same])
        dist.all_reduce(message)
        parts = torch.split(message, [gradient.numel() for gradient in same])
        torch._foreach_copy_(same, [part.view(gradient.shape) for part, gradient in zip(parts, same, strict=True)])

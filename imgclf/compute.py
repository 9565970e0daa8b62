"""How a network computes: its precision, its threads, and the one way to notice that memory ran out."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

SMALL_STEP = 5e7  # floating-point operations of a forward pass: LeNet takes 2e7 for 32 images
# What libraries below torch say in a plain RuntimeError.
NO_MEMORY = ("can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED", "out of memory")


def autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[object]:
    """The context in which a forward pass runs."""
    return nullcontext() if dtype is torch.float32 else torch.autocast(device.type, dtype)


def step_flops(model: nn.Module, example: torch.Tensor, batch_size: int) -> float:
    """The floating-point operations of one forward pass of a batch; `example` is an input of one image."""
    was_training = model.training
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(example)
    model.train(was_training)
    return float(counter.get_total_flops()) * batch_size


@contextmanager
def enough_threads(flops: float) -> Iterator[None]:
    """Compute small steps on one core. Two save a third of such a step on a quiet machine; on a busy one each of its
    many operations waits for the slower core, and it takes twenty times as long."""
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1 if flops < SMALL_STEP else before)
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Every module in evaluation mode, and afterwards each in the mode that it had."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def ran_out_of_memory(error: Exception) -> bool:
    """Whether this is a lack of memory; some allocators say so in words only."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(words in str(error) for words in NO_MEMORY)


def release_memory(device: torch.device) -> None:
    """Give back what a pass that failed still holds, so that a smaller one finds it."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()

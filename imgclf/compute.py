"""How a network computes: its precision, its threads, its memory, and the one way to notice that memory ran out."""

from __future__ import annotations

import ctypes
import gc
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from typing import TypeVar

import torch
from torch import nn

from imgclf.errors import OutOfMemory

T = TypeVar("T")

SMALL_STEP = 5e7  # floating-point operations of a forward pass: LeNet takes 2e7 for 32 images
# Of mallopt(3): from which size on the C library takes a block from the system and returns it as soon as it is free,
# and how much it holds back of what is free; then both within `kept_memory`, and after it.
M_MMAP_THRESHOLD, M_TRIM_THRESHOLD = -3, -1
KEPT, USUAL = (2**30, 2**31 - 1), (2**25, 2**26)
# What libraries below torch say in a plain RuntimeError.
NO_MEMORY = (
    "can't allocate memory",
    "could not create a primitive",  # oneDNN
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "out of memory",
)


def autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[object]:
    """The context in which a forward pass runs."""
    return nullcontext() if dtype is torch.float32 else torch.autocast(device.type, dtype)


def step_flops(model: nn.Module, example: torch.Tensor, batch_size: int) -> float:
    """The floating-point operations of one forward pass of a batch; `example` is an input of one image."""
    from torch.utils.flop_counter import FlopCounterMode  # loads triton, which predictions of few images do without

    with FlopCounterMode(display=False) as counter, torch.no_grad(), evaluating(model):
        model(example)
    return float(counter.get_total_flops()) * batch_size


def all_finite(tensors: Sequence[torch.Tensor], device: torch.device) -> bool:
    """Whether none of them holds NaN or infinity; one wait for `device`, not one for each.

    The sum of a tensor tells in a tenth of the time: it is not finite where a value is not. It may also have been too
    large; then every value is looked at.
    """

    def together(looks: Iterable[torch.Tensor]) -> bool:
        return bool(torch.stack([look.to(device, non_blocking=True) for look in looks]).all())

    if not tensors:
        return True
    return together(tensor.sum().isfinite() for tensor in tensors) or together(t.isfinite().all() for t in tensors)


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


class _Keepers:
    """How many computations of this process want its freed memory kept at the moment."""

    lock = threading.RLock()  # a garbage collection within may close a generator that keeps memory as well
    count = 0


@contextmanager
def kept_memory(device: torch.device) -> Iterator[None]:
    """Keep what is freed for the next step, and give it back at the end: with glibc on Linux, for a CPU.

    Left to itself it returns each large result of a layer to the system and asks for it anew, page by page, at every
    step: a sixth of the time of a step on photos. (PyTorch's Performance Tuning Guide: "Switch memory allocator".)
    """
    libc = _glibc() if device.type == "cpu" else None
    if libc is None:
        yield
        return
    _keep(libc, 1)
    try:
        yield
    finally:
        _keep(libc, -1)


def _keep(libc: ctypes.CDLL, more: int) -> None:
    with _Keepers.lock:
        before, _Keepers.count = _Keepers.count, _Keepers.count + more
        if min(before, _Keepers.count) == 0:  # the first one came, or the last one went
            block, held = KEPT if _Keepers.count else USUAL
            if not libc.mallopt(M_MMAP_THRESHOLD, block):  # older versions take no more than this
                libc.mallopt(M_MMAP_THRESHOLD, USUAL[0])
            libc.mallopt(M_TRIM_THRESHOLD, held)
            if not _Keepers.count:
                libc.malloc_trim(0)


@cache
def _glibc() -> ctypes.CDLL | None:
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None)
    return libc if hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim") else None  # others have neither


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


def in_parts_that_fit(compute: Callable[[int], T], most: int, device: torch.device) -> tuple[T, int]:
    """What `compute` gives when told to take at most so many images at once: `most`, or half as many as often as the
    memory asks for it; and how many they were. Raises `OutOfMemory` where a single image does not fit."""
    while True:
        try:
            return compute(most), most
        except (RuntimeError, MemoryError) as error:
            if not ran_out_of_memory(error):
                raise
            if most <= 1:
                raise OutOfMemory(f"{device} has too little memory for a single image") from error
        most = (most + 1) // 2
        release_memory(device)


def release_memory(device: torch.device) -> None:
    """Give back what a pass that failed still holds, so that a smaller one finds it."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()

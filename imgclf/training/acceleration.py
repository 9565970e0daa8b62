"""Which device and which precision, and how they are set up for training."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import nn

from imgclf.runtime.compute import WholeProcess

COMPILE_SECONDS = 60.0  # what a compiler is assumed to take before it pays
COMPILE_GAIN = 10  # a run must be this many times as long
CUDA_RATE = 1e14  # floating-point operations a second that training reaches: resnet18 at 224 on an H100-class device
LAUNCH_SECONDS = 5e-4  # what launching a small step is assumed to take: about 60 kernels of 8 µs each


def launch_bound(device: torch.device, flops: float) -> bool:
    """Whether a step on CUDA computes for less time than its launches take; `flops` are those of a forward pass."""
    return device.type == "cuda" and 3 * flops / CUDA_RATE < LAUNCH_SECONDS


def should_compile(choice: str, device: torch.device, flops: float) -> bool:
    """Whether to compile a network: `on`, `off`, or `auto` by the floating-point operations of the whole run.

    `auto` compiles only on CUDA, and where the run is ten times as long as the compiler's assumed minute. On a CPU
    compiled training steps were not faster than eager ones.
    """
    if choice != "auto":
        return choice == "on"
    return device.type == "cuda" and flops / CUDA_RATE > COMPILE_GAIN * COMPILE_SECONDS


@contextmanager
def compiled(model: nn.Module) -> Iterator[None]:
    """Run `model` compiled; its modules and the names of its weights stay as they are."""
    model.compile()
    try:
        yield
    finally:
        model._compiled_call_impl = None  # what else would compile again for every other shape


def _tune() -> Callable[[], None]:
    before = torch.backends.cudnn.benchmark, torch.get_float32_matmul_precision()

    def set_both(benchmark: bool, precision: str) -> None:
        torch.backends.cudnn.benchmark = benchmark
        torch.set_float32_matmul_precision(precision)

    set_both(True, "high")
    return lambda: set_both(*before)


_tuning = WholeProcess(_tune)


def tuned(device: torch.device) -> AbstractContextManager[None]:
    """On CUDA: TF32 for what stays in fp32, and the fastest kernels for the fixed shapes of training."""
    return _tuning.made() if device.type == "cuda" else nullcontext()

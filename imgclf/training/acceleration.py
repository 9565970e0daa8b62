"""Whether training is compiled or bound by kernel launches, and the kernels that it uses."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import nn

from imgclf.core.config import TrainConfig
from imgclf.runtime.compute import SMALL_STEP
from imgclf.training.fast_backward import FastGradients
from imgclf.training.frozen_norms import folded_norms

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


@contextmanager
def fast_steps(
    model: nn.Module, example: torch.Tensor, config: TrainConfig, precision: torch.dtype, flops: float
) -> Iterator[None]:
    """On a processor, compute the same gradients sooner, save for rounding; `config.fast_step` off keeps torch's ways.

    `example` is an input of one image, `flops` the floating-point operations of a step's forward pass.
    """
    with ExitStack() as stack:
        if config.fast_step and example.device.type == "cpu" and flops >= SMALL_STEP:
            if precision is torch.bfloat16:
                stack.enter_context(FastGradients())
            if config.freeze_norm:
                stack.enter_context(folded_norms(model, example))
        yield


class _Tuning:
    """Settings of the whole process that several threads may want at once."""

    lock = threading.RLock()  # a garbage collection within may close a generator that wants it as well
    users = 0
    before = (False, "highest")


@contextmanager
def tuned(device: torch.device) -> Iterator[None]:
    """On CUDA: TF32 for what stays in fp32, and the fastest kernels for the fixed shapes of training.

    Set for the first of several trainings at once, and set back after the last.
    """
    if device.type != "cuda":
        yield
        return
    with _Tuning.lock:
        if _Tuning.users == 0:
            _Tuning.before = torch.backends.cudnn.benchmark, torch.get_float32_matmul_precision()
            _set_kernels(True, "high")
        _Tuning.users += 1
    try:
        yield
    finally:
        with _Tuning.lock:
            _Tuning.users -= 1
            if _Tuning.users == 0:
                _set_kernels(*_Tuning.before)


def _set_kernels(benchmark: bool, precision: str) -> None:
    torch.backends.cudnn.benchmark = benchmark
    torch.set_float32_matmul_precision(precision)

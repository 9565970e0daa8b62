"""Which device and which precision, and how they are set up for training."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import nn

from imgclf.core.config import DEVICE_NAME, PRECISIONS
from imgclf.core.errors import ConfigError
from imgclf.runtime.compute import WholeProcess

PRECISION_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
COMPILE_SECONDS = 60.0  # what a compiler is assumed to take before it pays
COMPILE_GAIN = 10  # a run must be this many times as long
CUDA_RATE = 1e14  # floating-point operations a second that training reaches: resnet18 at 224 on an H100-class device
LAUNCH_SECONDS = 5e-4  # what launching a small step is assumed to take: about 60 kernels of 8 µs each


def pick_device(name: str | torch.device) -> torch.device:
    """The device called `name` (`auto`, `cpu`, `cuda`, `cuda:1`, `mps`); one that is not there is a `ConfigError`. What
    is a device already stays as it is."""
    if isinstance(name, torch.device):
        return name
    if not isinstance(name, str) or not DEVICE_NAME.fullmatch(name):
        raise ConfigError(f"device is {name!r}; allowed: auto, cpu, cuda, cuda:N, mps")
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda":
        count = torch.cuda.device_count()
        if count == 0:
            raise ConfigError(f"device is {name!r}, and torch finds no CUDA device here; use --device cpu or auto")
        if (device.index or 0) >= count:
            raise ConfigError(f"device is {name!r}, and there are {count} CUDA devices: cuda:0 to cuda:{count - 1}")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ConfigError("device is 'mps', and torch finds no Metal device here; use --device cpu or auto")
    return device


def pick_precision(name: str | torch.dtype, device: torch.device) -> torch.dtype:
    """The dtype of autocast, also by its name: bf16 where `auto` finds a device that computes in it, else fp32.

    A property of the machine and never a race of timings, so that a run can be repeated.
    """
    if name == "auto":
        return torch.bfloat16 if _has_bf16(device) else torch.float32
    dtype = PRECISION_DTYPES.get(name) if isinstance(name, str) else name
    if dtype is None or dtype not in PRECISION_DTYPES.values():
        raise ConfigError(f"precision is {name!r}; allowed: {', '.join(PRECISIONS)}")
    if dtype is torch.float16 and device.type != "cuda":
        raise ConfigError(f"precision fp16 needs a CUDA device, this is {device}; use bf16, fp32 or auto")
    return dtype


def launch_bound(device: torch.device, flops: float) -> bool:
    """Whether a step on CUDA computes for less time than its launches take; `flops` are those of a forward pass."""
    return device.type == "cuda" and 3 * flops / CUDA_RATE < LAUNCH_SECONDS


def precision_name(dtype: torch.dtype) -> str:
    """What a config calls a dtype of `pick_precision`: fp32, bf16 or fp16."""
    return next(name for name, known in PRECISION_DTYPES.items() if known is dtype)


def _has_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        with torch.cuda.device(device):  # of several, which may differ
            return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return False


def should_compile(choice: str, device: torch.device, flops: float) -> bool:
    """Whether to compile a network: `on`, `off`, or `auto` by the floating-point operations of the whole run.

    `auto` compiles only on CUDA, and where the run is ten times as long as the compiler's assumed minute. On a CPU
    compiled training steps were not faster than eager ones.
    """
    if choice != "auto":
        return choice == "on"
    return device.type == "cuda" and flops / CUDA_RATE > COMPILE_GAIN * COMPILE_SECONDS


@contextmanager
def compiled(model: nn.Module, wanted: bool) -> Iterator[None]:
    """Run `model` compiled where that is wanted; its modules and the names of its weights stay as they are."""
    if not wanted:
        yield
        return
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

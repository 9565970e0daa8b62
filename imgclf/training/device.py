"""Which device and which precision."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from imgclf.errors import ConfigError
from imgclf.specs import DEVICE_NAME

SMALL_STEP = 2e8  # floating-point operations of a forward pass: LeNet takes 2e7 for 32 images


def pick_device(name: str) -> torch.device:
    """The device called `name` (`auto`, `cpu`, `cuda`, `cuda:1`, `mps`); one that is not there is a `ConfigError`."""
    if not DEVICE_NAME.fullmatch(name):
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


def pick_precision(name: str, device: torch.device) -> torch.dtype:
    """The dtype of autocast: bf16 where `auto` finds a device that computes in it, else fp32."""
    if name == "auto":
        return torch.bfloat16 if _has_bf16(device) else torch.float32
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[name]
    if dtype is torch.float16 and device.type != "cuda":
        raise ConfigError(f"precision fp16 needs a CUDA device, this is {device}; use bf16, fp32 or auto")
    return dtype


def _has_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return False


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


def autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[object]:
    """The context in which the forward pass runs."""
    return nullcontext() if dtype is torch.float32 else torch.autocast(device.type, dtype)

"""Which device and which precision to compute in, and what machine this is, as far as it matters for speed and for
equal results."""

from __future__ import annotations

import math
import os
import platform
from pathlib import Path

import torch

from imgclf.core.config import DEVICE_NAME, PRECISIONS
from imgclf.core.errors import ConfigError
from imgclf.runtime import distributed

PRECISION_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def pick_device(name: str | torch.device) -> torch.device:
    """The device called `name` (`auto`, `cpu`, `cuda`, `cuda:1`, `mps`); a missing one is a `ConfigError`. A
    `torch.device` stays as it is."""
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


def precision_name(dtype: torch.dtype) -> str:
    """The name of a dtype in a config: fp32, bf16 or fp16."""
    return next(name for name, known in PRECISION_DTYPES.items() if known is dtype)


def _has_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        with torch.cuda.device(device):  # of several, which may differ
            return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return False


def machine() -> dict[str, str | int]:
    """System, processor, cores that may be used, threads of one operation, processes that train together and, where
    there is one, the accelerator."""
    facts: dict[str, str | int] = {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": cores(),
        "threads": torch.get_num_threads(),
        "processes": distributed.world_size(),
    }
    if torch.cuda.is_available():
        facts["accelerator"] = torch.cuda.get_device_name()
    return facts


def cores() -> int:
    """The processor cores that this process may use: its part of them, where several train together on a machine."""
    all_of_them = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, all_of_them // _neighbors())


def memory() -> int:
    """The bytes of memory that this process may use: of the machine or its container, its part of them."""
    try:
        total = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, ValueError, OSError):  # not on Windows
        total = 8.0 * 2**30
    return int(min(total, _container_limit())) // _neighbors()


def free_memory() -> int:
    """The bytes of `memory` that are free, as far as the system says."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return memory()
    return min(free // _neighbors(), memory())


def _neighbors() -> int:
    """How many processes train together on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def _container_limit() -> float:
    """The memory of a container (cgroup v2), which may be less than the machine's; infinite outside of one."""
    try:
        return float(Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii"))
    except (OSError, ValueError):  # "max" is no number
        return math.inf


def _processor() -> str:
    """The processor's name and instruction set: equal names may hide virtual machines of unequal kinds."""
    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):  # not on Linux
        pass
    return f"{name}, {torch.backends.cpu.get_cpu_capability()}"

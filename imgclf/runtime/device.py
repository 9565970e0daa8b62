"""What machine this is, as far as it matters for speed and for equal results."""

from __future__ import annotations

import math
import os
import platform
from pathlib import Path

import torch

from imgclf.runtime import distributed


def machine() -> dict[str, str | int]:
    """System, processor, cores that may be used, threads of one operation, processes that train together and, where
    there is one, the accelerator."""
    facts: dict[str, str | int] = {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": cores(),
        "threads": torch.get_num_threads(),
        "processes": distributed.shard()[1],
    }
    if torch.cuda.is_available():
        facts["accelerator"] = torch.cuda.get_device_name()
    return facts


def cores() -> int:
    """The processor cores that this process may use: its part of them, where several train together on a machine."""
    all_of_them = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, all_of_them // _neighbours())


def memory() -> int:
    """The bytes of memory that this process may use: of the machine or its container, its part of them."""
    try:
        total = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, ValueError, OSError):  # not on Windows
        total = 8.0 * 2**30
    return int(min(total, _container_limit())) // _neighbours()


def free_memory() -> int:
    """The bytes of `memory` that are free, as far as the system says."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return memory()
    return min(free // _neighbours(), memory())


def _neighbours() -> int:
    """How many processes train together on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def _container_limit() -> float:
    """The memory of a container (cgroup v2), which may be less than the machine's; infinite outside of one."""
    try:
        return float(Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii"))
    except (OSError, ValueError):  # "max" is no number
        return math.inf


def _processor() -> str:
    """The processor's name, with what it can compute in: equal names may hide virtual machines of unequal kinds."""
    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):  # not on Linux
        pass
    return f"{name}, {torch.backends.cpu.get_cpu_capability()}"

"""What machine this is, as far as it matters for speed and for equal results."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import torch

from imgclf import distributed


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
    return max(1, all_of_them // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def _processor() -> str:
    """The processor's name, with what it can compute in: equal names may hide virtual machines of unequal kinds."""
    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):  # not on Linux
        pass
    return f"{name}, {torch.backends.cpu.get_cpu_capability()}"

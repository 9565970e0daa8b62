"""Pixels that are decoded once: a bounded cache in memory."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path

from imgclf.data.source import Pixels

RAM_SHARE = 0.125  # of the training images, and of the valid ones: a quarter together


def memory_budget() -> int:
    """The bytes that one store may take: an eighth of the machine's memory."""
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # not on Windows
        total = 8 * 2**30
    return int(min(total, _container_limit()) * RAM_SHARE)


def _container_limit() -> float:
    """The memory of a container (cgroup v2), which may be less than the machine's; infinite outside of one."""
    try:
        return float(Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii"))
    except (OSError, ValueError):  # "max" is no number
        return math.inf


class Store:
    """Keeps what `read(index)` gives, as long as `budget` bytes last; afterwards it reads again each time.

    May be called from several threads. What is kept never changes what is returned, only how fast.
    """

    def __init__(self, read: Callable[[int], Pixels], n: int, budget: int | None = None) -> None:
        self._read = read
        self._kept: list[Pixels | None] = [None] * n
        self._left = memory_budget() if budget is None else budget

    def __call__(self, index: int) -> Pixels:
        """The pixels at `index`; not to be written to."""
        kept = self._kept[index]
        if kept is not None:
            return kept
        pixels = self._read(index)
        if pixels.nbytes <= self._left:
            self._left -= pixels.nbytes
            self._kept[index] = pixels
        return pixels

    def holds(self, index: int) -> bool:
        """Whether `index` needs no reading any more."""
        return self._kept[index] is not None

"""What the operations on batches are, whichever device they are for: `ops_cpu.py` and `ops_torch.py` offer these."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

Numbers = NDArray[np.float64]


def moved(table: NDArray[np.generic], pixels: torch.Tensor) -> torch.Tensor:
    """Parameters beside the pixels; real numbers as float32, which every device has."""
    single = table.astype(np.float32) if table.dtype == np.float64 else table
    return torch.from_numpy(single).to(pixels.device, non_blocking=pixels.is_cuda)


class Ops(Protocol):
    """What both modules of operations offer; see there."""

    def mirror(self, pixels: torch.Tensor, chosen: NDArray[np.bool_]) -> torch.Tensor: ...
    def crop(
        self, pixels: torch.Tensor, padding: int, top: NDArray[np.int64], left: NDArray[np.int64], border: str
    ) -> torch.Tensor: ...
    def warp(self, pixels: torch.Tensor, matrices: Numbers) -> torch.Tensor: ...
    def tone(self, pixels: torch.Tensor, gain: Numbers, offset: Numbers) -> torch.Tensor: ...
    def color(
        self, pixels: torch.Tensor, brightness: Numbers, contrast: Numbers, saturation: Numbers
    ) -> torch.Tensor: ...
    def hue(self, pixels: torch.Tensor, turn: Numbers) -> torch.Tensor: ...
    def sharpen(self, pixels: torch.Tensor, factor: Numbers) -> torch.Tensor: ...
    def histograms(self, pixels: torch.Tensor) -> torch.Tensor: ...
    def lookup(self, pixels: torch.Tensor, tables: torch.Tensor) -> torch.Tensor: ...
    def paste(self, pixels: torch.Tensor, boxes: NDArray[np.int64], values: torch.Tensor) -> torch.Tensor: ...
    def blend(self, pixels: torch.Tensor, others: torch.Tensor, share: Numbers) -> torch.Tensor: ...

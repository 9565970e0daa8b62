"""What augmentation does to pixels on an accelerator: the whole batch at once, with torch.

The same functions as in `ops_cpu.py`, with the same arguments and, to a level or two, the same pixels (the hue is finer
than OpenCV's steps). Only small tables of parameters travel; nothing waits for the device.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from imgclf.transforms._ops_protocol import moved
from imgclf.transforms.ops_cpu import LUMA, SMOOTH


def mirror(pixels: torch.Tensor, chosen: NDArray[np.bool_]) -> torch.Tensor:
    """The chosen images (n,) as their mirror images."""
    return torch.where(moved(chosen, pixels)[:, None, None, None], pixels.flip(2), pixels)


def crop(
    pixels: torch.Tensor, padding: int, top: NDArray[np.int64], left: NDArray[np.int64], border: str
) -> torch.Tensor:
    """A window of the image's own size from the image in a frame, at (top, left) of the frame, each (n,).

    The frame is black or, with the border "reflect", the image mirrored in its outermost pixels.
    """
    n, height, width, _ = pixels.shape
    rows = moved(top - padding, pixels)[:, None] + torch.arange(height, device=pixels.device)
    columns = moved(left - padding, pixels)[:, None] + torch.arange(width, device=pixels.device)
    inside = ((rows >= 0) & (rows < height))[:, :, None] & ((columns >= 0) & (columns < width))[:, None]
    images = torch.arange(n, device=pixels.device)[:, None, None]
    if border == "reflect":
        return pixels[images, _reflected(rows, height)[:, :, None], _reflected(columns, width)[:, None]]
    window = pixels[images, rows.clamp(0, height - 1)[:, :, None], columns.clamp(0, width - 1)[:, None]]
    return window * inside[..., None]


def _reflected(index: torch.Tensor, side: int) -> torch.Tensor:
    """Positions outside of 0…side - 1 as those inside that a mirror on the outermost pixels shows."""
    period = max(1, 2 * (side - 1))
    return (side - 1) - ((index % period) - (side - 1)).abs()


def warp(pixels: torch.Tensor, matrices: NDArray[np.float64]) -> torch.Tensor:
    """Images moved by `matrices` (n, 2, 3), from old (x, y) to new in pixels; linear, the border is continued."""
    n, height, width, channels = pixels.shape
    unit = np.array([[2 / width, 0, 1 / width - 1], [0, 2 / height, 1 / height - 1], [0, 0, 1]])  # of x and y in -1…1
    square = np.concatenate([matrices, np.broadcast_to([[[0.0, 0.0, 1.0]]], (n, 1, 3))], axis=1)
    back = unit @ np.linalg.inv(square) @ np.linalg.inv(unit)
    shape = [n, channels, height, width]
    grid = torch.nn.functional.affine_grid(moved(back[:, :2], pixels), shape, align_corners=False)
    edge = moved(np.array([1 - 1 / width, 1 - 1 / height]), pixels)  # the centers of the outermost pixels
    grid = grid.clamp(-edge, edge)  # and no padding mode "border", which not every device has
    planes = pixels.permute(0, 3, 1, 2).float()
    out = torch.nn.functional.grid_sample(planes, grid, align_corners=False)
    return _levels(out.permute(0, 2, 3, 1))


def tone(pixels: torch.Tensor, gain: NDArray[np.float64], offset: NDArray[np.float64]) -> torch.Tensor:
    """Every value times `gain` plus `offset`, each (n,), in levels."""
    return _levels(pixels * _each(gain, pixels) + _each(offset, pixels))


def color(
    pixels: torch.Tensor,
    brightness: NDArray[np.float64],
    contrast: NDArray[np.float64],
    saturation: NDArray[np.float64],
) -> torch.Tensor:
    """Three factors (n,), 1 for no change, in a single pass: without clipping in between their order is indifferent."""
    luma = moved(LUMA, pixels)
    sums = pixels.sum((1, 2), dtype=torch.int64)  # exact, so that no image depends on its neighbors
    mean = ((sums / (pixels.shape[1] * pixels.shape[2])) * luma).sum(1)[:, None, None, None]
    gain = brightness * contrast
    gray = (pixels * luma).sum(3, keepdim=True) * _each(gain * (1 - saturation), pixels)
    offset = gray + mean * _each(brightness * (1 - contrast), pixels)
    return _levels(pixels * _each(gain * saturation, pixels) + offset)


def hue(pixels: torch.Tensor, turn: NDArray[np.float64]) -> torch.Tensor:
    """The hue turned by `turn` (n,), in whole turns of the color circle."""
    values = pixels.float()
    red, green, blue = values.unbind(3)
    high, low = values.amax(3), values.amin(3)
    span = high - low
    safe = span.clamp(min=1)
    sixth = torch.where(high == green, 2 + (blue - red) / safe, 4 + (red - green) / safe)
    sixth = torch.where(high == red, (green - blue) / safe, sixth) + 6 * _each(turn, pixels)[..., 0]
    place = (sixth[..., None] + (5 - 2 * torch.arange(3, device=pixels.device))) % 6
    return _levels(high[..., None] - span[..., None] * torch.minimum(place, 4 - place).clamp(0, 1))


def sharpen(pixels: torch.Tensor, factor: NDArray[np.float64]) -> torch.Tensor:
    """A factor (n,) of sharpness: 1 is no change, 0 is smoothed by PIL's filter of 3×3, more than 1 is sharper."""
    planes = pixels.permute(0, 3, 1, 2).float()
    framed = torch.nn.functional.pad(planes, (1, 1, 1, 1), mode="replicate")
    edge, center = float(SMOOTH[0, 0]), float(SMOOTH[1, 1])
    sums = 9 * torch.nn.functional.avg_pool2d(framed, 3, stride=1)
    smooth = (edge * sums + (center - edge) * planes).permute(0, 2, 3, 1)
    part = _each(factor, pixels)
    return _levels(part * pixels + (1 - part) * smooth)


def histograms(pixels: torch.Tensor) -> torch.Tensor:
    """How many pixels have each level, int64 (n, channels, 256)."""
    levels = _flat(pixels)
    counts = torch.zeros((*levels.shape[:2], 256), dtype=torch.int64, device=pixels.device)
    return counts.scatter_add_(2, levels, torch.ones_like(counts[:, :, :1]).expand_as(levels))


def lookup(pixels: torch.Tensor, tables: torch.Tensor) -> torch.Tensor:
    """Every level replaced by what a table of its image and channel, uint8 (n, channels, 256), holds for it."""
    n, height, width, channels = pixels.shape
    found = tables.gather(2, _flat(pixels)).view(n, channels, height, width)
    return found.permute(0, 2, 3, 1).contiguous()


def _flat(pixels: torch.Tensor) -> torch.Tensor:
    """The levels as indices, int64 (n, channels, pixels)."""
    return pixels.permute(0, 3, 1, 2).flatten(2).long()


def paste(pixels: torch.Tensor, boxes: NDArray[np.int64], values: torch.Tensor) -> torch.Tensor:
    """In each box (top, left, bottom, right), (n, 4), the values, which are as pixels or (n, 1, 1, channels)."""
    top, left, bottom, right = moved(boxes, pixels)[:, :, None].unbind(1)
    rows = torch.arange(pixels.shape[1], device=pixels.device)
    columns = torch.arange(pixels.shape[2], device=pixels.device)
    inside = ((rows >= top) & (rows < bottom))[:, :, None] & ((columns >= left) & (columns < right))[:, None]
    return torch.where(inside[..., None], values, pixels)


def blend(pixels: torch.Tensor, others: torch.Tensor, share: NDArray[np.float64]) -> torch.Tensor:
    """`share` (n,) of each image and the rest of the other."""
    return _levels(pixels * _each(share, pixels) + others * _each(1 - share, pixels))


def _each(table: NDArray[np.float64], pixels: torch.Tensor) -> torch.Tensor:
    """One number an image (n,), to be multiplied with pixels."""
    return moved(table, pixels)[:, None, None, None]


def _levels(values: torch.Tensor) -> torch.Tensor:
    return values.round().clamp(0, 255).to(torch.uint8)

"""Evaluation pixels: the one function that valid, test and predict all use, and the step from pixels to a tensor."""

from __future__ import annotations

import math
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from imgclf.core.config import PreprocessConfig
from imgclf.core.errors import DataError

if TYPE_CHECKING:
    import torch

Pixels = NDArray[np.uint8]

_LUMA = np.array([299, 587, 114], dtype=np.float32) / 1000  # ITU-R BT.601, as Pillow's mode L
_HEADROOM = 2  # decode at no less than twice the final size: what a scaled decoding loses then is invisible


def decode_size(preprocess: PreprocessConfig) -> tuple[int, int]:
    """The (height, width) below which an image must not be decoded, so that scaled decoding costs no detail."""
    height, width = (math.ceil(_HEADROOM * side / preprocess.crop_pct) for side in preprocess.size)
    return height, width


def prepare(pixels: Pixels, preprocess: PreprocessConfig, shape: tuple[int, int] | None = None) -> Pixels:
    """An image of any shape as uint8 (height, width, channels) of the config's size: no randomness, antialiased.

    The same whole pixels as torchvision's and timm's transforms give, which resize to size / crop_pct and cut out the
    center or, where that is smaller, put a border around it. `shape` is the image's own (height, width) where it was
    decoded at a half, a quarter or an eighth of it: an odd side has lost its half pixel then.
    """
    pixels = to_channels(pixels, preprocess.channels)
    shape = shape or pixels.shape[:2]
    rows, columns = (_stretch(*side) for side in zip(shape, _resized(shape, preprocess), preprocess.size, strict=True))
    down, across = (_decoded_scale(*side) for side in zip(shape, pixels.shape, strict=False))
    box = (columns.start / across, rows.start / down, columns.end / across, rows.end / down)
    part = resize(pixels, (rows.pixels, columns.pixels), preprocess.interpolation, box)
    if part.shape[:2] == preprocess.size:
        return part
    canvas = np.empty((*preprocess.size, preprocess.channels), np.uint8)
    canvas[:] = mean_color(preprocess) if preprocess.resize_mode == "pad" else 0
    canvas[rows.place : rows.place + rows.pixels, columns.place : columns.place + columns.pixels] = part
    return canvas


def to_channels(pixels: Pixels, channels: int) -> Pixels:
    """Gray to color by repetition, color to gray by luma (BT.601); other numbers of channels must agree."""
    have = pixels.shape[2]
    if have == channels:
        return pixels
    if have == 1:
        return np.repeat(pixels, channels, axis=2)
    if have == 3 and channels == 1:
        return np.asarray((pixels @ _LUMA + 0.5).astype(np.uint8)[..., None])
    raise DataError(f"an image has {have} channels, which can't be converted to the {channels} of the model")


def to_input(pixels: torch.Tensor, preprocess: PreprocessConfig, device: torch.device) -> torch.Tensor:
    """A batch of pixels, uint8 (n, height, width, channels), as normalized float32 (n, channels, height, width).

    The bytes travel to the device, not the floats; the result lies in channels-last memory.
    """

    n, height, width, channels = pixels.shape
    # A row of pixels at a time: three channels alone are too short a run for vector instructions.
    scale, bias = _row_factors(preprocess.mean, preprocess.std, width if channels > 1 else 1, device)
    # Not towards the processor: it would read before all of it has arrived.
    rows = pixels.to(device, non_blocking=device.type == "cuda").reshape(n * height, width * channels)
    return rows.float().mul_(scale).add_(bias).view(n, height, width, channels).permute(0, 3, 1, 2)


@cache
def _row_factors(
    mean: tuple[float, ...], std: tuple[float, ...], repeats: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """What the bytes of a row are multiplied by, and what is added."""
    import torch

    means, deviations = torch.tensor(mean, dtype=torch.float64), torch.tensor(std, dtype=torch.float64)
    scale, bias = 1 / (255 * deviations), -means / deviations
    return scale.repeat(repeats).float().to(device), bias.repeat(repeats).float().to(device)


class _Stretch(NamedTuple):
    """What is seen of a side: from `start` to `end`, as so many `pixels`, the first at this `place` of the target."""

    start: float
    end: float
    pixels: int
    place: int


def _stretch(side: int, resized: int, target: int) -> _Stretch:
    """The middle of a side that is resized to a whole number of pixels, of which a target has room for so many."""
    if resized <= target:
        return _Stretch(0.0, float(side), resized, (target - resized) // 2)
    first = round((resized - target) / 2)
    return _Stretch(first * side / resized, (first + target) * side / resized, target, 0)


def _decoded_scale(side: int, decoded: int) -> int:
    """What a side was divided by, a power of 2, to be decoded: that rounds up."""
    return 1 << int(-(-side // decoded) - 1).bit_length()


def _resized(shape: tuple[int, int], preprocess: PreprocessConfig) -> tuple[int, int]:
    """The whole pixels (height, width) that torchvision's and timm's transforms resize an image to."""
    height, width = (max(1, int(side / preprocess.crop_pct)) for side in preprocess.size)
    if preprocess.resize_mode == "squash":
        return height, width
    if preprocess.resize_mode == "crop" and height == width:  # torchvision's, which rounds down where timm's own rounds
        short = min(shape)
        return int(height * shape[0] / short), int(height * shape[1] / short)
    ratios = shape[0] / height, shape[1] / width
    ratio = min(ratios) if preprocess.resize_mode == "crop" else max(ratios)
    return max(1, round(shape[0] / ratio)), max(1, round(shape[1] / ratio))


def mean_color(preprocess: PreprocessConfig) -> list[int]:
    """The config's mean as a color, 0…255 a channel: what stands where there is no image."""
    return [round(min(max(value, 0.0), 1.0) * 255) for value in preprocess.mean]


def resize(
    pixels: Pixels, size: tuple[int, int], interpolation: str, box: tuple[float, float, float, float] | None = None
) -> Pixels:
    """An image, or the part in `box` (left, top, right, bottom; in pixels), at a size (height, width), antialiased.

    Resizing only the part that is kept bounds the memory for any aspect.
    """
    whole = (0.0, 0.0, float(pixels.shape[1]), float(pixels.shape[0]))
    if pixels.shape[:2] == size and box in (None, whole):
        return pixels
    color, by = pixels.shape[2] == 3, Image.Resampling[interpolation.upper()]
    planes = map(Image.fromarray, map(np.ascontiguousarray, [pixels] if color else np.moveaxis(pixels, 2, 0)))
    resized = [np.asarray(plane.resize(size[::-1], by, box=box)) for plane in planes]
    return resized[0] if color else np.stack(resized, axis=2)

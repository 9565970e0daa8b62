"""What augmentation does to pixels in main memory: image by image, with OpenCV and numpy.

On one core this is 2 to 50 times as fast as the same with torch on the whole batch (`ops_torch.py`, which takes the
same arguments), and an image can't notice what else is in its batch. Pixels are uint8 (n, height, width, channels);
the result is always new memory.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]

LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601
SMOOTH = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]]) / 13
_OPENCV_CHANNELS = 4  # more than these, OpenCV does not warp


def mirror(pixels: torch.Tensor, chosen: NDArray[np.bool_]) -> torch.Tensor:
    """The chosen images (n,) as their mirror images."""
    import cv2

    images = _array(pixels)
    out = images.copy()
    for i in np.flatnonzero(chosen):
        cv2.flip(images[i], 1, out[i])
    return torch.from_numpy(out)


def crop(
    pixels: torch.Tensor, padding: int, top: NDArray[np.int64], left: NDArray[np.int64], border: str
) -> torch.Tensor:
    """A window of the image's own size from the image in a frame, at (top, left) of the frame, each (n,).

    The frame is black or, with the border "reflect", the image mirrored in its outermost pixels.
    """
    height, width = pixels.shape[1:3]
    frame = ((0, 0), (padding, padding), (padding, padding), (0, 0))
    framed = np.pad(pixels.numpy(), frame, mode="reflect" if border == "reflect" else "constant")
    out = np.empty(pixels.shape, np.uint8)
    for target, source, y, x in zip(out, framed, top.tolist(), left.tolist(), strict=True):
        target[...] = source[y : y + height, x : x + width]
    return torch.from_numpy(out)


def warp(pixels: torch.Tensor, matrices: NDArray[np.float64]) -> torch.Tensor:
    """Images moved by `matrices` (n, 2, 3), from old (x, y) to new in pixels; linear, the border is continued."""
    import cv2

    height, width, channels = pixels.shape[1:]

    def move(source: Pixels, matrix: NDArray[np.float64], target: Pixels) -> None:
        for first in range(0, channels, _OPENCV_CHANNELS):
            planes = slice(first, first + _OPENCV_CHANNELS)
            part = np.ascontiguousarray(source[..., planes])
            moved = cv2.warpAffine(part, matrix, (width, height), None, cv2.INTER_LINEAR, cv2.BORDER_REPLICATE)
            target[..., planes] = moved.reshape(height, width, -1)

    return _each(move, pixels, matrices)


def tone(pixels: torch.Tensor, gain: NDArray[np.float64], offset: NDArray[np.float64]) -> torch.Tensor:
    """Every value times `gain` plus `offset`, each (n,), in levels."""
    import cv2

    tables = np.rint(np.arange(256) * gain[:, None] + offset[:, None]).clip(0, 255).astype(np.uint8)
    return _each(cv2.LUT, pixels, tables)


def color(
    pixels: torch.Tensor,
    brightness: NDArray[np.float64],
    contrast: NDArray[np.float64],
    saturation: NDArray[np.float64],
) -> torch.Tensor:
    """Three factors (n,), 1 for no change, in a single pass: without clipping in between their order is indifferent."""
    import cv2

    images, gain = pixels.numpy(), brightness * contrast
    matrices = np.empty((len(images), 3, 4))
    matrices[:, :, :3] = (gain * saturation)[:, None, None] * np.eye(3)
    matrices[:, :, :3] += (gain * (1 - saturation))[:, None, None] * LUMA
    means = np.array([cv2.mean(image)[:3] for image in _array(pixels)]).reshape(-1, 3)
    matrices[:, :, 3] = (brightness * (1 - contrast) * (means @ LUMA))[:, None]
    return _each(cv2.transform, pixels, matrices)


def hue(pixels: torch.Tensor, turn: NDArray[np.float64]) -> torch.Tensor:
    """The hue turned by `turn` (n,), in whole turns of the color circle; in OpenCV's steps of 2 degrees."""
    import cv2

    def turned(source: Pixels, part: float, target: Pixels) -> None:
        hsv = cv2.cvtColor(source, cv2.COLOR_RGB2HSV)
        table = np.mod(np.arange(256) + 180 * part, 180).astype(np.uint8)
        cv2.insertChannel(cv2.LUT(cv2.extractChannel(hsv, 0), table), hsv, 0)
        cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB, target)

    return _each(turned, pixels, turn)


def sharpen(pixels: torch.Tensor, factor: NDArray[np.float64]) -> torch.Tensor:
    """A factor (n,) of sharpness: 1 is no change, 0 is smoothed by PIL's filter of 3×3, more than 1 is sharper."""
    import cv2

    kernels = (1 - factor)[:, None, None] * SMOOTH
    kernels[:, 1, 1] += factor

    def filtered(source: Pixels, kernel: NDArray[np.float64], target: Pixels) -> None:
        cv2.filter2D(source, -1, kernel, target, borderType=cv2.BORDER_REPLICATE)

    return _each(filtered, pixels, kernels)


def histograms(pixels: torch.Tensor) -> torch.Tensor:
    """How many pixels have each level, int64 (n, channels, 256)."""
    import cv2

    counts = np.empty((len(pixels), pixels.shape[3], 256), np.int64)
    for rows, image in zip(counts, _array(pixels), strict=True):
        for channel, row in enumerate(rows):
            row[:] = cv2.calcHist([image], [channel], None, [256], [0, 256]).reshape(256)
    return torch.from_numpy(counts)


def lookup(pixels: torch.Tensor, tables: torch.Tensor) -> torch.Tensor:
    """Every level replaced by what a table of its image and channel, uint8 (n, channels, 256), holds for it."""
    import cv2

    return _each(cv2.LUT, pixels, _array(tables.transpose(1, 2))[:, None])


def paste(pixels: torch.Tensor, boxes: NDArray[np.int64], values: torch.Tensor) -> torch.Tensor:
    """In each box (top, left, bottom, right), (n, 4), the values, which are as pixels or (n, 1, 1, channels)."""
    out = pixels.numpy().copy()
    filling = np.broadcast_to(values.numpy(), out.shape)
    for i, (top, left, bottom, right) in enumerate(boxes.tolist()):
        out[i, top:bottom, left:right] = filling[i, top:bottom, left:right]
    return torch.from_numpy(out)


def blend(pixels: torch.Tensor, others: torch.Tensor, share: NDArray[np.float64]) -> torch.Tensor:
    """`share` (n,) of each image and the rest of the other."""
    import cv2

    out = np.empty(pixels.shape, np.uint8)
    for target, a, b, part in zip(out, _array(pixels), _array(others), share.tolist(), strict=True):
        cv2.addWeighted(a, part, b, 1 - part, 0, target)
    return torch.from_numpy(out)


def _each(change: Callable[[Pixels, Any, Pixels], object], pixels: torch.Tensor, own: NDArray[Any]) -> torch.Tensor:
    """What `change` makes of each image and what it has of its `own`, and writes into its third argument."""
    out = np.empty(pixels.shape, np.uint8)
    for target, source, part in zip(out, _array(pixels), own, strict=True):
        change(source, part, target)
    return torch.from_numpy(out)


def _array(pixels: torch.Tensor) -> Pixels:
    return np.ascontiguousarray(pixels.numpy())

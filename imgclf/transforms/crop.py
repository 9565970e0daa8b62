"""The pixels of one image at another size, into memory that exists already: what training takes from each image.

Evaluation pixels come from `preprocess.prepare` alone. Here speed counts: what is lost is less than what a random crop
changes anyway.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np

from imgclf.core.config import PreprocessConfig
from imgclf.transforms.preprocess import Pixels, resize, to_channels

Box = Sequence[float]  # (top, left, height, width) as fractions of the image's sides
_KEPT = 1.15  # the share of the final size that is kept for crops: 256 + 2 pixels for 224


@cache
def _cv2() -> Any:
    """OpenCV, without threads of its own: it is called in the threads of a loader, one for each core."""
    import cv2

    cv2.setNumThreads(0)
    return cv2


def crop_resize(pixels: Pixels, box: Box, out: Pixels) -> None:
    """Write the part of an image that lies in `box` into `out`, at the size and with the channels that `out` has.

    `pixels` is uint8 (height, width, channels) with up to 128 channels, `out` a contiguous one of another size; the box
    is taken to the nearest whole pixel and holds at least one. Interpolation is linear; where a side shrinks to a half
    or less, pairs of pixels are averaged before, so that none is passed over.
    """
    height, width, channels = out.shape
    top, rows = _span(box[0], box[2], pixels.shape[0], height)
    left, columns = _span(box[1], box[3], pixels.shape[1], width)
    part = pixels[top : top + rows, left : left + columns]
    own = out if part.shape[2] == channels else np.empty((height, width, part.shape[2]), np.uint8)
    _sample(part, own)
    if own is not out:
        out[...] = to_channels(own, channels)


def crop_decode_size(box: Box, size: tuple[int, int]) -> tuple[int, int]:
    """The (height, width) below which an image must not be decoded, so that its `box` still has `size` pixels."""
    return math.ceil(size[0] / box[2]), math.ceil(size[1] / box[3])


def shrink(pixels: Pixels, short_side: int) -> Pixels:
    """An image with its shorter side at most `short_side`: antialiased, with its ratio kept, and never enlarged."""
    height, width = pixels.shape[:2]
    scale = short_side / min(height, width)
    if scale >= 1:
        return pixels
    return resize(pixels, (round(height * scale), round(width * scale)), "bilinear")


def kept_side(preprocess: PreprocessConfig) -> int:
    """The shorter side of the images that are kept for random crops."""
    return math.ceil(_KEPT * max(preprocess.size))


def takes_whole_image(preprocess: PreprocessConfig) -> bool:
    """Whether training starts from the decoded image (a random crop of it) and not from the prepared pixels."""
    first = preprocess.steps[0].op if preprocess.steps else ""
    return first == "resized_crop" and preprocess.resize_mode == "crop" and preprocess.compose is None


def _span(start: float, length: float, side: int, target: int) -> tuple[int, int]:
    """The first pixel and the number of pixels of a stretch of a side, both given as fractions of it.

    The number can be halved as often as it will be; what that adds or takes, it does on both ends alike.
    """
    wanted = min(max(length * side, 1.0), float(side))
    step = 2 ** max(0, math.floor(math.log2(wanted / target)))
    count = min(max(1, math.floor(wanted / step + 0.5)), side // step) * step
    first = math.floor(start * side + (wanted - count) / 2 + 0.5)
    return min(max(0, first), side - count), count


def _sample(part: Pixels, out: Pixels) -> None:
    cv2 = _cv2()
    height, width = out.shape[:2]
    rows, columns = part.shape[:2]
    while rows >= 2 * height or columns >= 2 * width:
        rows = rows // 2 if rows >= 2 * height else rows
        columns = columns // 2 if columns >= 2 * width else columns
        # At exactly one half linear interpolation is the mean of two pixels, and OpenCV is fastest there.
        part = cv2.resize(part, (columns, rows), interpolation=cv2.INTER_LINEAR)
    cv2.resize(part, (width, height), dst=out, interpolation=cv2.INTER_LINEAR)

"""Pixels that are decoded once and stay in memory: their format and their place.

An image is kept in one of two forms. Where each epoch cuts another part out of it, it is kept whole, shrunk to a little
more than the size of the model, in its own shape. In all other cases the prepared pixels are kept, which all have the
size of the model and lie in one tensor.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from imgclf.core.config import PreprocessConfig
from imgclf.core.errors import DataError
from imgclf.core.text import byte_size, plural
from imgclf.data.dataset import ArrayReader, Pixels, Sample, Source, open_measured, open_prepared
from imgclf.data.loading.disk_cache import CachedImage, PixelCache, disk_room
from imgclf.runtime.compute import ran_out_of_memory, release_memory
from imgclf.runtime.device import memory
from imgclf.transforms.crop import kept_side, shrink, takes_whole_image
from imgclf.transforms.preprocess import decode_size, mean_color, prepare, to_channels

RAM_SHARE = 0.125  # of the training images, and of the valid ones: a quarter together
SIZED_IMAGES = 24
ASSUMED_ASPECT = 16 / 9  # assumed where no image tells its shape
DEVICE_SHARE = 0.6  # of the free memory of an accelerator
HOST_SHARE = 0.5


def memory_budget() -> int:
    """The bytes that the pixels of one loader may take: an eighth of the memory."""
    return int(memory() * RAM_SHARE)


@dataclass(frozen=True)
class CacheFormat:
    """Which pixels of an image are kept: the `whole` of it, shrunk, or what `prepare` makes of it."""

    preprocess: PreprocessConfig
    whole: bool

    @classmethod
    def of(cls, preprocess: PreprocessConfig, train: bool) -> CacheFormat:
        """The form that training or evaluation by this preprocessing starts from."""
        return cls(preprocess, train and takes_whole_image(preprocess))

    @property
    def shape(self) -> tuple[int, int, int]:
        """(height, width, channels) of prepared pixels."""
        return (*self.preprocess.size, self.preprocess.channels)

    def read(self, source: Source, ref: str) -> CachedImage:
        """Decode one image into this form. Raises `DataError`, as `BadImage`, where it can't be read."""
        if not self.whole:
            return CachedImage(open_prepared(source, ref, self.preprocess), self.preprocess.size)
        side = kept_side(self.preprocess)
        pixels, shape = open_measured(source, ref, lambda _: (side, side))
        return CachedImage(to_channels(shrink(pixels, side), self.preprocess.channels), shape)

    def settings(self) -> dict[str, object]:
        """All that these pixels depend on, apart from the image, as JSON values."""
        preprocess = self.preprocess
        levels: dict[str, object] = (
            {"levels": [astuple(each) for each in preprocess.levels]} if preprocess.levels else {}
        )
        if self.whole:
            kept = {"kept_side": kept_side(preprocess), "channels": preprocess.channels, "smooth_colors": False}
            return {**kept, **levels}
        fit = {
            "size": list(preprocess.size),
            "channels": preprocess.channels,
            "resize_mode": preprocess.resize_mode,
            "interpolation": preprocess.interpolation,
            "crop_pct": preprocess.crop_pct,
        }
        if preprocess.resize_mode == "pad":
            fit["color"] = mean_color(preprocess)
        return {**fit, "decode_size": list(decode_size(preprocess)), **levels}

    def bytes_each(self, source: Source, samples: Sequence[Sample]) -> int:
        """The mean bytes of a kept image; for whole images from the headers of up to 24 of them, evenly spread."""
        if not self.whole:
            return math.prod(self.shape)
        side = kept_side(self.preprocess)
        shapes = []
        for sample in samples[:: max(1, -(-len(samples) // SIZED_IMAGES))]:
            try:
                shapes.append(open_measured(source, sample.ref, lambda _: (1, 1))[1])
            except DataError:  # named when it is wanted
                continue
        areas = [height * width * min(1.0, side / min(height, width)) ** 2 for height, width in shapes]
        area = sum(areas) / len(areas) if areas else side * side * ASSUMED_ASPECT
        return math.ceil(area * self.preprocess.channels)


class DenseStore:
    """Prepared pixels of n images as one uint8 tensor (n, height, width, channels), filled as images are needed.

    A set that lies in memory already, in the right size, is copied at once. May be filled from several threads.
    """

    def __init__(self, source: Source, samples: Sequence[Sample], form: CacheFormat) -> None:
        array = _stacked(source, samples, form)
        self.full = array is not None
        self._has: NDArray[np.bool_] = np.full(len(samples), self.full)
        shape = (len(samples), *form.shape)
        self._tensor = torch.empty(shape, dtype=torch.uint8) if array is None else torch.from_numpy(array)

    def missing(self, index: NDArray[np.int64]) -> NDArray[np.int64]:
        """Those of the positions that are still to be filled."""
        return index[:0] if self.full else index[~self._has[index]]

    def put(self, position: int, kept: CachedImage) -> None:
        """Fill one position."""
        if self._tensor.is_cpu:
            self._tensor.numpy()[position] = kept.pixels
        else:
            self._tensor[position] = torch.tensor(kept.pixels, device=self._tensor.device)
        self._has[position] = True

    def select(self, index: NDArray[np.int64]) -> tuple[torch.Tensor, NDArray[np.int64]]:
        """The pixels at those of the positions that are filled, in new memory on the device of `self`; and these."""
        filled = index if self.full else index[self._has[index]]
        here = torch.from_numpy(filled).to(self._tensor.device, non_blocking=self._tensor.is_cuda)
        return self._tensor.index_select(0, here), filled

    def row(self, position: int) -> CachedImage | None:
        """The pixels at one position, not to be written to; None where it is still to be filled."""
        if not self._has[position]:
            return None
        pixels = self._tensor[position].cpu().numpy()
        return CachedImage(pixels, pixels.shape[:2])

    def move_to(self, device: torch.device) -> None:
        """Once as good as full, see whether anything is missing, and move to `device` if there is room by now."""
        self.full = bool(self._has.all())
        try:
            self._tensor = self._tensor.to(device)
        except (RuntimeError, MemoryError) as error:
            if not ran_out_of_memory(error):
                raise
            release_memory(device)


def _stacked(source: Source, samples: Sequence[Sample], form: CacheFormat) -> Pixels | None:
    """The images of an array reader that are what `prepare` would make of them, copied at once; else None."""
    reader = source.reader
    if type(reader) is not ArrayReader or not samples:
        return None
    keys, _, numbers = zip(*(sample.ref.rpartition("/") for sample in samples), strict=True)
    index = np.array(numbers, np.int64)
    arrays = {key: reader.arrays[key] for key in set(keys)}
    firsts = [array[0] for array in arrays.values()]
    if any(prepare(first, form.preprocess) is not first for first in firsts):
        return None
    if len(arrays) == 1:
        return np.take(arrays[keys[0]], index, axis=0)
    stacked: Pixels = np.empty((len(samples), *form.shape), np.uint8)
    places = np.array(keys)
    for key, array in arrays.items():
        stacked[places == key] = array[index[places == key]]
    return stacked


class RaggedStore:
    """Whole images of n samples, each an array of its own shape, filled as images are needed."""

    def __init__(self, n: int) -> None:
        self._kept: list[CachedImage | None] = [None] * n

    def put(self, position: int, kept: CachedImage) -> None:
        """Fill one position."""
        self._kept[position] = kept

    def row(self, position: int) -> CachedImage | None:
        """The pixels at one position, read-only; None if it is still to be filled."""
        return self._kept[position]


@dataclass(frozen=True)
class CacheLevel:
    """Where pixels are kept (`device`, `ram`, `disk` or `off`), and why, for one line of text."""

    name: str
    reason: str

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


def choose_cache_level(
    asked: str, source: Source, samples: Sequence[Sample], form: CacheFormat, device: torch.device
) -> CacheLevel:
    """The level that was asked for, or for `auto` the first that has room: device, ram, disk, off.

    The sizes of whole images are estimated from the headers of 24 of them. Whole images stay in memory where `device`
    is asked for: they differ in shape, and are cut by the processor. On the CPU, device and memory are the same.
    """
    if asked == "off":
        return CacheLevel("off", "as asked")
    each = form.bytes_each(source, samples)
    needed = each * len(samples)
    size = f"{plural(len(samples), 'image')}, {byte_size(needed)}"
    if asked != "auto":
        return CacheLevel("ram" if asked == "device" and (form.whole or device.type == "cpu") else asked, size)
    fits = needed < DEVICE_SHARE * _free_memory(device) and needed < HOST_SHARE * memory()  # which it passes through
    if device.type != "cpu" and not form.whole and fits:
        return CacheLevel("device", size)
    if needed <= memory_budget():
        return CacheLevel("ram", size)
    room = disk_room()
    left = len(samples) - PixelCache(form.settings()).holds(s.sha256 for s in samples if s.sha256)
    if left * each <= room:
        return CacheLevel("disk", size)
    have = f"memory has room for {byte_size(memory_budget())}, the disk for {byte_size(room)}"
    return CacheLevel("off", f"{size}; {have} (more after `imgclf cache clear`)")


def _free_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    return 0

"""Where a loader's pixels are kept: on the device, in memory, on the disk, or nowhere. Chosen by size, up front."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from imgclf.data.dataset import Sample, Source
from imgclf.data.loading.disk_cache import JPEG_SHARE, PixelCache, disk_room, in_units
from imgclf.data.loading.pixel_store import Form, memory_budget
from imgclf.runtime.device import memory

DEVICE_SHARE = 0.6  # of the free memory of an accelerator
HOST_SHARE = 0.5


@dataclass(frozen=True)
class Tier:
    """Where pixels are kept (`device`, `ram`, `disk`, `jpeg` or `off`), and why, for one line of text."""

    name: str
    reason: str

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


def choose_tier(
    asked: str, source: Source, samples: Sequence[Sample], form: Form, *, train: bool, device: torch.device
) -> Tier:
    """The tier that was asked for, or for `auto` the first that has room: device, ram, disk, jpeg, off.

    The sizes of whole images are estimated from the headers of 24 of them. Whole images stay in memory where `device`
    is asked for: they differ in shape, and are cut by the processor. On the CPU, device and memory are the same.
    JPEG is for training only, others are kept exactly: figures and predictions come from the same pixels in every tier
    (save for the training images that unknown ones are measured against).
    """
    if asked == "off":
        return Tier("off", "as asked")
    each = form.bytes_each(source, samples)
    needed = each * len(samples)
    images = f"{len(samples):,} image{'' if len(samples) == 1 else 's'}"
    size, packed = f"{images}, {in_units(needed)}", f"{images}, about {in_units(needed * JPEG_SHARE)}"
    if asked == "jpeg":
        if train and _has_jpeg(form):
            return Tier("jpeg", packed)
        return Tier("disk", f"{size}; jpeg is for training images of 1 or 3 channels")
    if asked != "auto":
        return Tier("ram" if asked == "device" and (form.whole or device.type == "cpu") else asked, size)
    fits = needed < DEVICE_SHARE * _free_memory(device) and needed < HOST_SHARE * memory()  # which it passes through
    if device.type != "cpu" and not form.whole and fits:
        return Tier("device", size)
    if needed <= memory_budget():
        return Tier("ram", size)
    room = disk_room()
    for lossy in (False, True) if train and _has_jpeg(form) else (False,):
        left = len(samples) - PixelCache(form, lossy=lossy).holds(s.sha256 for s in samples if s.sha256)
        if left * each * (JPEG_SHARE if lossy else 1) <= room:
            return Tier("jpeg", packed) if lossy else Tier("disk", size)
    have = f"memory has room for {in_units(memory_budget())}, the disk for {in_units(room)}"
    return Tier("off", f"{size}; {have} (more after `imgclf cache clear`)")


def _has_jpeg(form: Form) -> bool:
    return form.recipe.channels in (1, 3)


def _free_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    return 0

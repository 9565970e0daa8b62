"""Test-time augmentation: the views of an image whose outputs are averaged."""

from __future__ import annotations

import torch
from torch.nn import functional as F


def weighted_views(images: torch.Tensor, tta: str) -> list[tuple[float, torch.Tensor]]:
    """Views of images (n, channels, height, width), and how much each counts in the mean of the outputs.

    `tta` is `none`, `mirror` or `mirror-shift` (Jordan, arXiv:2404.00498).
    """
    if tta == "none":
        return [(1.0, images)]
    if tta == "mirror":
        return [(0.5, images), (0.5, images.flip(3))]
    height, width = images.shape[2:]
    framed = F.pad(images, (1, 1, 1, 1), mode="reflect")
    moved = [framed[:, :, i : i + height, i : i + width] for i in (0, 2)]
    counted = ((0.25, images), *((0.125, view) for view in moved))
    return [(weight, view) for weight, one in counted for view in (one, one.flip(3))]

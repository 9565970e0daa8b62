"""Test-time augmentation: the views of an image, and the mean of what a network makes of them."""

from __future__ import annotations

import torch
from torch import nn


def mean_over_views(model: nn.Module, images: torch.Tensor, tta: str) -> torch.Tensor:
    """The outputs of `model`, float32 (n, k), averaged over the views of images (n, channels, height, width).

    Args:
        model: Maps images to outputs (n, k).
        images: Normalized images.
        tta: `none`, `mirror`, or `mirror-shift`: six views (Jordan, arXiv:2404.00498).
    """
    mean = torch.zeros((), device=images.device)
    for weight, view in _views(images, tta):
        mean = mean + weight * model(view).float()
    return mean


def _views(images: torch.Tensor, tta: str) -> list[tuple[float, torch.Tensor]]:
    """Each view with its weight in the mean."""
    if tta == "none":
        return [(1.0, images)]
    if tta == "mirror":
        return [(0.5, images), (0.5, images.flip(3))]
    height, width = images.shape[2:]
    framed = nn.functional.pad(images, (1, 1, 1, 1), mode="reflect")
    moved = [framed[:, :, i : i + height, i : i + width] for i in (0, 2)]
    counted = ((0.25, images), *((0.125, view) for view in moved))
    return [(weight, view) for weight, one in counted for view in (one, one.flip(3))]

"""The loss of a batch: cross-entropy with class weights, label smoothing and blended images, summed over images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional as F

from imgclf.data.loading.loader import Mix

BETA = 0.999  # of the effective number of images


def class_weights(targets: Sequence[int], classes: int, kind: str | None) -> torch.Tensor | None:
    """Weights (classes,) with a mean of 1 over the images, by `kind`: None where all images count alike.

    `balanced` is inverse to the number of images of a class, `effective` to their effective number
    (1 - b^n) / (1 - b) with b = 0.999 (Cui et al. 2019, arXiv:1901.05555), which grows more slowly than n.
    """
    if kind not in ("balanced", "effective"):
        return None
    counts = torch.bincount(torch.tensor(targets), minlength=classes).clamp(min=1).double()
    weights = 1 / (counts if kind == "balanced" else 1 - BETA**counts)
    return (weights * counts.sum() / (weights * counts).sum()).float()


def summed_loss(
    logits: torch.Tensor, targets: torch.Tensor, mix: Mix | None, weight: torch.Tensor | None, smoothing: float
) -> torch.Tensor:
    """The cross-entropy summed over images; of blended images each of the two classes counts by its share."""
    if mix is None:
        return F.cross_entropy(logits, targets, weight, label_smoothing=smoothing, reduction="sum")
    own, other = (
        F.cross_entropy(logits, classes, weight, label_smoothing=smoothing, reduction="none")
        for classes in (targets, mix.targets)
    )
    return (mix.share * own + (1 - mix.share) * other).sum()


def batch_weight(targets: torch.Tensor, mix: Mix | None, weight: torch.Tensor | None) -> torch.Tensor | int:
    """The divisor of `summed_loss` for the mean over a batch: the class weights of its images, summed."""
    if weight is None:
        return len(targets)
    if mix is None:
        return weight[targets].sum()
    return (mix.share * weight[targets] + (1 - mix.share) * weight[mix.targets]).sum()

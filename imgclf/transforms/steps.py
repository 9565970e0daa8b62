"""Augmentation of whole batches on any device: what presets run on.

A step draws the parameters of every image from (seed, epoch, sample), by the distributions of albumentations 2.0.8;
then `ops_cpu.py` or `ops_torch.py` changes the pixels. What an image becomes does not depend on its neighbors, except
where images are blended.

mixup: Zhang et al., arXiv 1710.09412; cutmix: Yun et al., arXiv 1905.04899; alternating flip: Jordan, arXiv 2404.00498.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from imgclf.core.config import AugmentStep, PreprocessConfig
from imgclf.core.errors import ConfigError
from imgclf.transforms import ops_cpu, ops_torch
from imgclf.transforms._ops_protocol import Numbers, Ops, moved
from imgclf.transforms.rng import Draws
from imgclf.transforms.trivial_augment import DRAWS, Space, about_center, alter

Shares = tuple[torch.Tensor, torch.Tensor]
T = TypeVar("T")

BORDERS = ("black", "reflect")  # of the frame that a random crop is taken from

_TRIES = 10  # of a random resized crop, as in torchvision and albumentations
_ERASED_RATIO = (0.3, 3.3)  # width to height; the default of albumentations
_CROP_STEP, _FIRST_STEP = 0, 1  # whose streams: resized crops are made apart, wherever the step stands


def crop_boxes(
    step: AugmentStep, seed: int, epoch: int, keys: NDArray[np.uint64], shapes: NDArray[np.int64]
) -> Numbers:
    """Where a `resized_crop` cuts each image: (top, left, height, width) as fractions of its sides, (n, 4).

    `shapes` (n, 2) are (height, width). Only their ratio counts: an image gives the same part of it at any scale. The
    first of ten boxes that fits is taken, or else the largest centerd one whose aspect is allowed.
    """
    return _run_step(_crop_boxes, step, Draws(seed, epoch, keys, _CROP_STEP), shapes)


def augment(
    pixels: torch.Tensor, preprocess: PreprocessConfig, seed: int, epoch: int, keys: NDArray[np.uint64]
) -> torch.Tensor:
    """All steps but `resized_crop` (see `crop_boxes`), `mixup` and `cutmix` (see `blend`).

    Takes and gives uint8 (n, height, width, channels) on any device; the input is never written to, and is itself the
    answer where there is nothing to do.
    """
    for i, step in enumerate(_steps(preprocess), _FIRST_STEP):
        if step.op in _STEPS:
            pixels = _run_step(_STEPS[step.op], step, _ops(pixels), pixels, Draws(seed, epoch, keys, i))
    return pixels


def blends(preprocess: PreprocessConfig) -> bool:
    """Whether `blend` does anything."""
    return any(step.op in _BLENDS for step in _steps(preprocess))


def blend(
    pixels: torch.Tensor,
    targets: torch.Tensor,
    preprocess: PreprocessConfig,
    seed: int,
    epoch: int,
    keys: NDArray[np.uint64],
) -> tuple[torch.Tensor, Shares | None]:
    """Mix each image with the next one of its batch, by the config's `mixup` and `cutmix`.

    Each image is blended in one of the ways, with the chance `p` of each. Gives the pixels, and None where the config
    blends nothing, or else the targets of the other images (n,) and each image's own share, float32 (n,) in 0…1.
    """
    steps = [(i, step) for i, step in enumerate(_steps(preprocess), _FIRST_STEP) if step.op in _BLENDS]
    if not steps:
        return pixels, None
    params = [_run_step(_blend_params, step) for _, step in steps]
    edges = np.cumsum([0.0, *(p for _, p in params)])
    if edges[-1] > 1 + 1e-9:
        raise ConfigError(f"the probabilities p of mixup and cutmix sum to {edges[-1]:g}; allowed: up to 1")
    ops, others, kept = _ops(pixels), pixels.roll(-1, 0), np.ones(len(keys))
    turn = Draws(seed, epoch, keys, steps[0][0])(1)[0]
    for (i, step), (alpha, _), low, high in zip(steps, params, edges[:-1], edges[1:], strict=True):
        _, share, *center = Draws(seed, epoch, keys, i)(4)
        share = np.where((turn >= low) & (turn < high), _beta(share, alpha), 1.0)
        pixels, share = _BLENDS[step.op](ops, pixels, others, share, center)
        kept *= share
    return pixels, (targets.roll(-1, 0), moved(kept, pixels))


def _ops(pixels: torch.Tensor) -> Ops:
    return ops_cpu if pixels.device.type == "cpu" else ops_torch


def _steps(preprocess: PreprocessConfig) -> tuple[AugmentStep, ...]:
    return preprocess.steps if preprocess.compose is None else ()


def _run_step(function: Callable[..., T], step: AugmentStep, *arguments: Any) -> T:
    """What a step's function gives for the arguments and the step's parameters; `ConfigError` if it takes others."""
    try:
        return function(*arguments, **step.params)
    except TypeError as error:
        raise ConfigError(f"step {step.op!r} does not take {dict(step.params)!r}: {error}") from error


def _between(limits: Any, draw: Numbers) -> Numbers:
    low, high = limits
    return np.asarray(low + (high - low) * draw)


def _crop_boxes(draws: Draws, shapes: NDArray[np.int64], scale: Any, ratio: Any) -> Numbers:
    numbers = draws(2 * _TRIES + 2)
    aspect = shapes[:, 1] / shapes[:, 0]
    area = _between(scale, numbers[:_TRIES])
    shape = np.exp(_between(np.log(ratio), numbers[_TRIES : 2 * _TRIES])) / aspect  # of the box, in fractions
    sides = np.sqrt(np.stack([area / shape, area * shape]))  # height and width, (2, tries, n)
    fits = (sides <= 1).all(0)
    first = np.take_along_axis(sides, fits.argmax(0)[None, None], 1)[:, 0]
    nearest = np.clip(aspect, *ratio) / aspect
    centerd = np.stack([np.minimum(1 / nearest, 1), np.minimum(nearest, 1)])
    taken = np.where(fits.any(0), first, centerd)
    corner = (1 - taken) * np.where(fits.any(0), numbers[-2:], 0.5)
    return np.concatenate([corner, taken]).T


def _random_crop(ops: Ops, pixels: torch.Tensor, draws: Draws, padding: int, border: str = BORDERS[0]) -> torch.Tensor:
    if border not in BORDERS:
        raise ConfigError(f"the border of random_crop is {border!r}; allowed: {', '.join(BORDERS)}")
    top, left = (draws(2) * (2 * padding + 1)).astype(np.int64)
    return ops.crop(pixels, padding, top, left, border)


def _affine(ops: Ops, pixels: torch.Tensor, draws: Draws, shift: float, rotate: float, scale: Any) -> torch.Tensor:
    """Scale (of x and of y on its own), then turn, about the center; then shift by whole pixels."""
    x, y, wide, high, angle = draws(5)
    shifts = _between((-shift, shift), np.stack([x, y], 1))
    angles = np.deg2rad(_between((-rotate, rotate), angle))
    wide, high = _between(scale, wide), _between(scale, high)
    sine, cosine = np.sin(angles), np.cos(angles)
    linear = np.stack([cosine * wide, sine * high, -sine * wide, cosine * high], 1).reshape(-1, 2, 2)
    return ops.warp(pixels, about_center(linear, pixels, shifts))


def _flip(ops: Ops, pixels: torch.Tensor, draws: Draws, p: float) -> torch.Tensor:
    return ops.mirror(pixels, draws(1)[0] < p)


def _alternating_flip(ops: Ops, pixels: torch.Tensor, draws: Draws) -> torch.Tensor:
    """Mirrored in every second epoch: of two epochs, an image is seen from both sides."""
    starts = Draws(draws.seed, 0, draws.keys, draws.step)(1)[0] < 0.5
    return ops.mirror(pixels, starts ^ bool(draws.epoch % 2))


def _color_jitter(
    ops: Ops, pixels: torch.Tensor, draws: Draws, brightness: float, contrast: float, saturation: float, hue: float
) -> torch.Tensor:
    numbers = draws(8)
    if pixels.shape[3] != 3:  # there is no color to change
        offset = 255 * _between((-brightness, brightness), numbers[0])
        return ops.tone(pixels, 1 + _between((-contrast, contrast), numbers[1]), offset)
    parts = np.array([[brightness], [contrast], [saturation]])
    factors = _between((np.maximum(1 - parts, 0), 1 + parts), numbers[:3])
    if not hue:
        return ops.color(pixels, *factors)
    # The four changes come in a random order. That of the three factors is indifferent, but to the hue each is either
    # before or after.
    before = numbers[4:7] < numbers[7]
    pixels = ops.color(pixels, *np.where(before, factors, 1.0))
    pixels = ops.hue(pixels, _between((-hue, hue), numbers[3]))
    return ops.color(pixels, *np.where(before, 1.0, factors))


def _erase(ops: Ops, pixels: torch.Tensor, draws: Draws, scale: Any, p: float) -> torch.Tensor:
    height, width, channels = pixels.shape[1:]
    numbers = draws(5 + channels)
    boxes = _erased_boxes(numbers[1:5], height, width, scale)
    colors = (numbers[5:].T * 256).astype(np.uint8)
    return ops.paste(pixels, np.where((numbers[0] < p)[:, None], boxes, 0), moved(colors, pixels)[:, None, None])


def _erased_boxes(numbers: Numbers, height: int, width: int, scale: Any) -> NDArray[np.int64]:
    """(top, left, bottom, right) of what to erase, (n, 4), from four numbers an image; all 0 where nothing fits.

    The largest rectangle is the one that has room at any ratio.
    """
    ratio_low, ratio_high = _ERASED_RATIO
    least = scale[0] * height * width
    most = min(scale[1] * height * width, ratio_low * height**2, width**2 / ratio_high)
    if most < least:
        return np.zeros((numbers.shape[1], 4), np.int64)
    area = _between((least, most), numbers[0])
    narrow, wide = np.maximum(ratio_low, area / height**2), np.minimum(ratio_high, width**2 / area)
    ratio = narrow + (wide - narrow) * numbers[1]
    sides = np.rint(np.sqrt(np.stack([area / ratio, area * ratio], 1)))
    corner = np.floor(numbers[2:4].T * (np.array([height, width]) - sides + 1))
    return np.concatenate([corner, corner + sides], 1).astype(np.int64)


def _trivial(ops: Ops, pixels: torch.Tensor, draws: Draws, **space: Any) -> torch.Tensor:
    return alter(ops, pixels, draws(DRAWS), Space(**space))


def _blend_params(alpha: float, p: float) -> tuple[float, float]:
    if not (alpha > 0 and 0 <= p <= 1):
        raise ConfigError(f"mixup and cutmix have alpha {alpha!r} and p {p!r}; allowed: alpha above 0, p 0 to 1")
    return alpha, p


def _beta(numbers: Numbers, alpha: float) -> Numbers:
    """Draws of Beta(alpha, alpha) from uniform ones."""
    if alpha == 1:
        return numbers
    from scipy.special import betaincinv

    return np.asarray(betaincinv(alpha, alpha, numbers))


def _mixup(
    ops: Ops, pixels: torch.Tensor, others: torch.Tensor, share: Numbers, center: list[Numbers]
) -> tuple[torch.Tensor, Numbers]:
    return ops.blend(pixels, others, share), share


def _cutmix(
    ops: Ops, pixels: torch.Tensor, others: torch.Tensor, share: Numbers, center: list[Numbers]
) -> tuple[torch.Tensor, Numbers]:
    """A box of the other's image, about a center anywhere and cut at the edge; the share is what is left in truth."""
    size = np.array(pixels.shape[1:3])
    sides = (size * np.sqrt(1 - share)[:, None]).astype(np.int64)
    middle = (size * np.stack(center, 1)).astype(np.int64)
    low = np.maximum(middle - sides // 2, 0)
    high = np.minimum(middle - sides // 2 + sides, size)
    return ops.paste(pixels, np.concatenate([low, high], 1), others), 1 - (high - low).prod(1) / size.prod()


_STEPS: dict[str, Callable[..., torch.Tensor]] = {
    "random_crop": _random_crop,
    "affine": _affine,
    "flip": _flip,
    "alternating_flip": _alternating_flip,
    "color_jitter": _color_jitter,
    "erase": _erase,
    "trivial": _trivial,
}
_BLENDS = {"mixup": _mixup, "cutmix": _cutmix}

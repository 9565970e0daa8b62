"""TrivialAugment: one operation an image, drawn at random, with a strength drawn at random.

Müller and Hutter 2021, arXiv:2103.10158. It has nothing to tune. Here a strength is a real number and not one of 31,
what comes in from outside of the image continues its border, and no image is turned so far that it stands on its head.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from imgclf.transforms._ops_protocol import Numbers, Ops, moved

DRAWS = 2  # numbers that an image needs
MOVES = ("shear_x", "shear_y", "translate_x", "translate_y", "rotate")
FACTORS = ("brightness", "contrast", "saturation")
MASKS = ("posterize", "solarize")
STRETCHES = ("autocontrast", "equalize")
RECOLORING = ("saturation", *MASKS, *STRETCHES)  # they change the hue or the saturation
OPERATIONS = ("identity", *MOVES, "brightness", "contrast", "sharpness", *RECOLORING)
FEWEST_BITS = 4

Chosen = NDArray[np.int64]  # positions in OPERATIONS


@dataclass(frozen=True)
class Space:
    """How far the operations go: at most `shear` pixels aside for each pixel of height or width, `shift` of a side,
    `rotate` degrees, each to both sides; factors of brightness, contrast, saturation and sharpness of 1 ± `factor`.

    Without `recolor`, operations that change hue or saturation are left out.
    """

    shear: float
    shift: float
    rotate: float
    factor: float
    recolor: bool = True


def alter(ops: Ops, pixels: torch.Tensor, numbers: Numbers, space: Space) -> torch.Tensor:
    """Each image of uint8 (n, height, width, channels) changed by one operation; `numbers` (2, n) in [0, 1) say by
    which one, and how strongly. All are as likely."""
    count = len(OPERATIONS) - (0 if space.recolor else len(RECOLORING))
    chosen = (numbers[0] * count).astype(np.int64)
    strength = 2 * numbers[1] - 1
    out = pixels.clone(memory_format=torch.contiguous_format)
    for names, change in _GROUPS:
        places = np.flatnonzero(_is_one_of(chosen, names))
        if len(places):
            index = moved(places, pixels)
            part = change(ops, pixels.index_select(0, index), chosen[places], strength[places], space)
            out.index_copy_(0, index, part)
    return out


def _is_one_of(chosen: Chosen, names: tuple[str, ...]) -> NDArray[np.bool_]:
    return np.isin(chosen, [OPERATIONS.index(name) for name in names])


def _only(name: str, chosen: Chosen, strength: Numbers) -> Numbers:
    """The strength where an operation was chosen, and elsewhere 0."""
    return np.where(chosen == OPERATIONS.index(name), strength, 0.0)


def _move(ops: Ops, pixels: torch.Tensor, chosen: Chosen, strength: Numbers, space: Space) -> torch.Tensor:
    """Sheared or turned about the center, or shifted by whole pixels."""
    shear_x, shear_y, x, y, turn = (_only(name, chosen, strength) for name in MOVES)
    sine, cosine = np.sin(np.deg2rad(space.rotate * turn)), np.cos(np.deg2rad(space.rotate * turn))
    linear = np.stack([cosine, sine + space.shear * shear_x, space.shear * shear_y - sine, cosine], 1).reshape(-1, 2, 2)
    return ops.warp(pixels, about_center(linear, pixels, space.shift * np.stack([x, y], 1)))


def about_center(linear: Numbers, pixels: torch.Tensor, shifts: Numbers) -> Numbers:
    """Linear maps (n, 2, 2) about the center of images, then shifts (n, 2) of the sides, by whole pixels: (n, 2, 3)."""
    size = np.array(pixels.shape[2:0:-1])
    center = (size - 1) / 2
    return np.concatenate([linear, (center + np.trunc(shifts * size) - linear @ center)[..., None]], 2)


def _scale(ops: Ops, pixels: torch.Tensor, chosen: Chosen, strength: Numbers, space: Space) -> torch.Tensor:
    brightness, contrast, saturation = (1 + space.factor * _only(name, chosen, strength) for name in FACTORS)
    if pixels.shape[3] == 3:
        return ops.color(pixels, brightness, contrast, saturation)
    return ops.tone(pixels, brightness * contrast, 127.5 * (1 - contrast))  # there is no color to change


def _sharpen(ops: Ops, pixels: torch.Tensor, chosen: Chosen, strength: Numbers, space: Space) -> torch.Tensor:
    return ops.sharpen(pixels, 1 + space.factor * strength)


def _mask(ops: Ops, pixels: torch.Tensor, chosen: Chosen, strength: Numbers, space: Space) -> torch.Tensor:
    """Posterized to fewer bits, 8 to 4, or solarized: what is above a threshold, 256 to 0, is inverted."""
    levels, strength = np.arange(256), abs(strength)[:, None]
    lost = np.rint((8 - FEWEST_BITS) * strength).astype(np.int64)
    posterized = levels >> lost << lost
    solarized = np.where(levels >= 256 * (1 - strength), 255 - levels, levels)
    tables = np.where(_is_one_of(chosen, ("posterize",))[:, None], posterized, solarized).astype(np.uint8)
    return ops.lookup(pixels, moved(tables, pixels)[:, None].expand(-1, pixels.shape[3], -1))


def _stretch(ops: Ops, pixels: torch.Tensor, chosen: Chosen, strength: Numbers, space: Space) -> torch.Tensor:
    """Each channel's levels spread over all 256, evenly or by their frequency, as PIL's ImageOps does it."""
    counts = ops.histograms(pixels)
    levels = torch.arange(256, device=counts.device).expand_as(counts)
    last = torch.where(counts > 0, levels, 0).amax(2, keepdim=True)
    first = torch.where(counts > 0, levels, 255).amin(2, keepdim=True)
    span = last - first
    stretched = torch.where(span > 0, (levels - first) * 255 // span.clamp(min=1), levels)
    share = (counts.sum(2, keepdim=True) - counts.gather(2, last)) // 255  # pixels of each level that comes out
    darker = counts.cumsum(2) - counts
    equalized = torch.where(share > 0, (darker + share // 2) // share.clamp(min=1), levels)
    even = moved(_is_one_of(chosen, ("autocontrast",)), pixels)
    tables = torch.where(even[:, None, None], stretched, equalized).clamp(0, 255)
    return ops.lookup(pixels, tables.to(torch.uint8))


_GROUPS: tuple[tuple[tuple[str, ...], Callable[[Ops, torch.Tensor, Chosen, Numbers, Space], torch.Tensor]], ...] = (
    (MOVES, _move),
    (FACTORS, _scale),
    (("sharpness",), _sharpen),
    (MASKS, _mask),
    (STRETCHES, _stretch),
)

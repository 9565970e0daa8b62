"""Augmentation presets: named lists of steps. A step is data; `batch.py` runs it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from imgclf.core.config import AugmentStep
from imgclf.core.registry import Registry

Preset = Callable[[bool], tuple[AugmentStep, ...]]
PRESETS: Registry[Preset] = Registry("augmentation preset")
# The operations that change hues and saturations, and the parameters with which they leave them.
RECOLORING: dict[str, dict[str, Any]] = {
    "color_jitter": {"saturation": 0.0, "hue": 0.0},
    "trivial": {"recolor": False},
}


def preset_steps(name: str, *, mirror: bool = True) -> tuple[AugmentStep, ...]:
    """The steps of the preset called `name`; `mirror=False` leaves out what would change a label, as of a digit."""
    return PRESETS.get(name)(mirror)


def limited(steps: tuple[AugmentStep, ...], *, mirror: bool, recolor: bool) -> tuple[AugmentStep, ...]:
    """The steps without mirroring, or without other hues and saturations, where these would change a label."""
    kept = [step for step in steps if mirror or step.op not in ("flip", "alternating_flip")]
    if not recolor:
        kept = [replace(step, params={**step.params, **RECOLORING.get(step.op, {})}) for step in kept]
    return tuple(kept)


def _preset(function: Preset) -> Preset:
    PRESETS.add(function.__name__.removeprefix("_").replace("_", "-"), function)
    return function


def _flip(mirror: bool) -> tuple[AugmentStep, ...]:
    return (AugmentStep("flip", {"p": 0.5}),) if mirror else ()


def _zoom(mirror: bool, smallest: float) -> AugmentStep:
    """A random crop, resized; where position carries meaning (digits), a gentle change of scale that cuts little."""
    if mirror:
        return AugmentStep("resized_crop", {"scale": [smallest, 1.0], "ratio": [0.75, 4 / 3]})
    return AugmentStep("affine", {"shift": 0.1, "rotate": 10, "scale": [0.85, 1.15]})


@_preset
def _none(mirror: bool) -> tuple[AugmentStep, ...]:
    return ()


@_preset
def _light(mirror: bool) -> tuple[AugmentStep, ...]:
    return (AugmentStep("affine", {"shift": 0.08, "rotate": 5, "scale": [0.95, 1.05]}), *_flip(mirror))


@_preset
def _standard(mirror: bool) -> tuple[AugmentStep, ...]:
    jitter = AugmentStep("color_jitter", {"brightness": 0.2, "contrast": 0.2, "saturation": 0.2, "hue": 0.0})
    return (_zoom(mirror, 0.5), *_flip(mirror), jitter)


@_preset
def _strong(mirror: bool) -> tuple[AugmentStep, ...]:
    jitter = AugmentStep("color_jitter", {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1})
    erase = AugmentStep("erase", {"scale": [0.02, 0.2], "p": 0.25})
    return (_zoom(mirror, 0.25), *_flip(mirror), jitter, erase)


@_preset
def _mix(mirror: bool) -> tuple[AugmentStep, ...]:
    """`strong`, and half of the images blended, half with a box of another: for long training from scratch."""
    mixup = AugmentStep("mixup", {"alpha": 0.2, "p": 0.5})
    return (*_strong(mirror), mixup, AugmentStep("cutmix", {"alpha": 1.0, "p": 0.5}))


@_preset
def _trivial(mirror: bool) -> tuple[AugmentStep, ...]:
    """A crop, a mirror, and one change of a random kind and strength (TrivialAugment); digits are not solarized."""
    far = {"shear": 0.3, "shift": 0.2, "rotate": 30} if mirror else {"shear": 0.15, "shift": 0.1, "rotate": 10}
    return (_zoom(mirror, 0.5), *_flip(mirror), AugmentStep("trivial", {**far, "factor": 0.9, "recolor": mirror}))


@_preset
def _shifts(mirror: bool) -> tuple[AugmentStep, ...]:
    """Lab 10-6: a random crop of the size after padding 4 pixels on each side."""
    return (AugmentStep("random_crop", {"padding": 4}),)


@_preset
def _shifts_flips(mirror: bool) -> tuple[AugmentStep, ...]:
    return (*_shifts(mirror), *_flip(mirror))


@_preset
def _speedrun(mirror: bool) -> tuple[AugmentStep, ...]:
    """A shift of up to 2 pixels, and mirrored in every second epoch: for a few epochs on small images."""
    return (
        AugmentStep("random_crop", {"padding": 2, "border": "reflect"}),
        *((AugmentStep("alternating_flip"),) if mirror else ()),
    )

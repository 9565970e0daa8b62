"""Augmentation by albumentations, one image at a time. The only module that knows albumentations.

It runs a user's own pipeline, and any recipe; the other engine, for whole batches, is `batch.py`.

The library opens a network connection when it is imported unless a variable forbids it, and its pipelines draw from a
generator of their own, which every worker and every epoch repeats. So the variable is set before the import, and the
pipeline is reseeded for each image: the same seed gives the same pixels whatever thread or process runs it.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np
import torch

from imgclf.core.config import AugmentStep, PreprocessConfig
from imgclf.core.errors import ConfigError
from imgclf.transforms import ops_cpu
from imgclf.transforms._ops import Numbers
from imgclf.transforms.preprocess import Pixels, to_channels
from imgclf.transforms.trivial_augment import DRAWS, Space, alter

T = TypeVar("T")
BORDERS = ("black", "reflect")  # of the frame that a random crop is taken from


@lru_cache(maxsize=1)
def _library() -> Any:
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
    import albumentations

    return albumentations


def takes_whole_image(recipe: PreprocessConfig) -> bool:
    """Whether augmentation starts from the decoded image (a random crop of it) and not from the prepared pixels."""
    first = recipe.steps[0].op if recipe.steps else ""
    return first == "resized_crop" and recipe.resize_mode == "crop" and recipe.compose is None


class Augmenter:
    """Augments training images by a recipe; may be called from several threads.

    `augmenter(pixels, seed)` takes the prepared pixels (or, where `takes_whole_image`, the decoded image) as uint8
    (height, width, channels) and gives uint8 of the recipe's size and channels. Steps that need the epoch or other
    images are left to `batch.alternate` and `batch.blend`, for whole batches.
    """

    def __init__(self, recipe: PreprocessConfig) -> None:
        self._recipe = recipe
        self._local = threading.local()  # a pipeline holds its generator: one a thread

    def __call__(self, pixels: Pixels, seed: int) -> Pixels:
        """Augment one image with the randomness of `seed` (0 to 2^32 - 1)."""
        recipe = self._recipe
        if recipe.compose is None and not recipe.steps:
            return pixels
        pipeline = getattr(self._local, "pipeline", None)
        if pipeline is None:
            pipeline = self._local.pipeline = _pipeline(recipe)
        pipeline.set_random_seed(seed)
        result = pipeline(image=np.ascontiguousarray(to_channels(pixels, recipe.channels)))["image"]
        if result.ndim == 2:
            result = result[..., None]
        _check_result(result, recipe)
        return np.ascontiguousarray(result)


def compose_to_dict(compose: Any) -> Mapping[str, Any]:
    """A user's `A.Compose` as JSON values, to be stored with the model; what cannot be stored is a `ConfigError`."""
    library = _library()
    if not isinstance(compose, library.Compose):
        raise ConfigError(f"augment is {type(compose).__name__}; allowed: a preset's name or an albumentations.Compose")
    try:
        stored: Mapping[str, Any] = library.to_dict(compose)
        library.from_dict(stored)
    except Exception as error:
        raise ConfigError(f"this albumentations pipeline cannot be stored with the model: {error}") from error
    return stored


def _check_result(result: Any, recipe: PreprocessConfig) -> None:
    expected = (*recipe.size, recipe.channels)
    if not isinstance(result, np.ndarray) or result.dtype != np.uint8 or result.shape != expected:
        got = f"{getattr(result, 'dtype', type(result).__name__)} {tuple(getattr(result, 'shape', ()))}"
        raise ConfigError(
            f"the augmentation pipeline must give uint8 pixels of shape {expected}, it gave {got}; "
            "leave out Normalize and ToTensorV2 (imgclf normalizes by itself), and end on the size of the model"
        )


def _pipeline(recipe: PreprocessConfig) -> Any:
    library = _library()
    if recipe.compose is not None:
        return library.from_dict(recipe.compose)
    steps = [step for step in recipe.steps if step.op in _OPS]
    return library.Compose([transform for step in steps for transform in run_step(_OPS, step, library, recipe)])


def run_step(functions: Mapping[str, Callable[..., T]], step: AugmentStep, *arguments: Any) -> T:
    """What a step's function gives for the arguments and the step's parameters; `ConfigError` if it takes others."""
    try:
        return functions[step.op](*arguments, **step.params)
    except TypeError as error:
        raise ConfigError(f"step {step.op!r} does not take {dict(step.params)!r}: {error}") from error


def _resized_crop(library: Any, recipe: PreprocessConfig, scale: Any, ratio: Any) -> list[Any]:
    import cv2

    crop = library.RandomResizedCrop(
        size=recipe.size, scale=tuple(scale), ratio=tuple(ratio), interpolation=cv2.INTER_AREA, p=1
    )
    return [crop]


def check_border(border: str) -> None:
    """Raise `ConfigError` for what no frame is filled with."""
    if border not in BORDERS:
        raise ConfigError(f"the border of random_crop is {border!r}; allowed: {', '.join(BORDERS)}")


def _random_crop(library: Any, recipe: PreprocessConfig, padding: int, border: str = BORDERS[0]) -> list[Any]:
    import cv2

    check_border(border)
    mode = cv2.BORDER_REFLECT_101 if border == "reflect" else cv2.BORDER_CONSTANT
    return [library.Pad(padding=padding, fill=0, border_mode=mode), library.RandomCrop(*recipe.size)]


def _affine(library: Any, recipe: PreprocessConfig, shift: float, rotate: float, scale: Any) -> list[Any]:
    import cv2

    affine = library.Affine(
        translate_percent={"x": (-shift, shift), "y": (-shift, shift)},
        rotate=(-rotate, rotate),
        scale=tuple(scale),
        border_mode=cv2.BORDER_REPLICATE,
        p=1,
    )
    return [affine]


def _flip(library: Any, recipe: PreprocessConfig, p: float) -> list[Any]:
    return [library.HorizontalFlip(p=p)]


def _color_jitter(
    library: Any, recipe: PreprocessConfig, brightness: float, contrast: float, saturation: float, hue: float
) -> list[Any]:
    if recipe.channels != 3:  # there is no color to change
        return [library.RandomBrightnessContrast(brightness, contrast, p=1)]
    ranges = [(max(1 - part, 0), 1 + part) for part in (brightness, contrast, saturation)]
    return [library.ColorJitter(*ranges, (-hue, hue), p=1)]


def _erase(library: Any, recipe: PreprocessConfig, scale: Any, p: float) -> list[Any]:
    return [library.Erasing(scale=tuple(scale), fill="random_uniform", p=p)]


@lru_cache(maxsize=1)
def _trivial_transform() -> Any:
    """The class of our own transform: what it derives from is there only when the library is."""

    class Trivial(_library().ImageOnlyTransform):  # type: ignore[misc]  # it has no types
        def __init__(self, space: Space) -> None:
            super().__init__(p=1)
            self._space = space

        def get_params(self) -> dict[str, Any]:
            """The numbers of one image."""
            return {"numbers": self.random_generator.random((DRAWS, 1))}

        def apply(self, img: Pixels, numbers: Numbers, **params: Any) -> Pixels:
            """The image by the same operations as whole batches."""
            batch = torch.from_numpy(np.array(img, order="C")).reshape(1, *img.shape[:2], -1)  # may be read-only
            altered: Pixels = alter(ops_cpu, batch, numbers, self._space).numpy().reshape(img.shape)
            return altered

    return Trivial


def _trivial(library: Any, recipe: PreprocessConfig, **space: Any) -> list[Any]:
    return [_trivial_transform()(Space(**space))]


_OPS: dict[str, Callable[..., list[Any]]] = {
    "resized_crop": _resized_crop,
    "random_crop": _random_crop,
    "affine": _affine,
    "flip": _flip,
    "color_jitter": _color_jitter,
    "erase": _erase,
    "trivial": _trivial,
}

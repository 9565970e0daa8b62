"""A user's own albumentations pipeline, run one image at a time. The only module that knows albumentations.

Presets run on whole batches: `batch.py`.

The library opens a network connection when it is imported unless a variable forbids it, and its pipelines draw from a
generator of their own, which every worker and every epoch repeats. So the variable is set before the import, and the
pipeline is reseeded for each image: the same seed gives the same pixels whatever thread or process runs it.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np

from imgclf.core.config import PreprocessConfig
from imgclf.core.errors import ConfigError
from imgclf.transforms.preprocess import Pixels


@lru_cache(maxsize=1)
def _library() -> Any:
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
    import albumentations

    return albumentations


class Augmenter:
    """Augments training images by the user's own pipeline (`compose`); may be called from several threads.

    `augmenter(pixels, seed)` takes the prepared pixels as uint8 (height, width, channels) and gives as many.
    """

    def __init__(self, preprocess: PreprocessConfig) -> None:
        self._preprocess = preprocess
        self._local = threading.local()  # a pipeline holds its generator: one a thread

    def __call__(self, pixels: Pixels, seed: int) -> Pixels:
        """Augment one image with the randomness of `seed` (0 to 2^32 - 1)."""
        pipeline = getattr(self._local, "pipeline", None)
        if pipeline is None:
            pipeline = self._local.pipeline = _library().from_dict(self._preprocess.compose)
        pipeline.set_random_seed(seed)
        result = pipeline(image=np.ascontiguousarray(pixels))["image"]
        if result.ndim == 2:
            result = result[..., None]
        _check_result(result, self._preprocess)
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


def _check_result(result: Any, preprocess: PreprocessConfig) -> None:
    expected = (*preprocess.size, preprocess.channels)
    if not isinstance(result, np.ndarray) or result.dtype != np.uint8 or result.shape != expected:
        got = f"{getattr(result, 'dtype', type(result).__name__)} {tuple(getattr(result, 'shape', ()))}"
        raise ConfigError(
            f"the augmentation pipeline must return uint8 pixels of shape {expected}, it returned {got}; "
            "leave out Normalize and ToTensorV2 (imgclf normalizes by itself), and end with the input size of the model"
        )

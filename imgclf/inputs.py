"""What `predict` accepts: paths, folders, PIL images, arrays, or a list of these, as an unlabelled source."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from imgclf.data.images import image_pixels, is_image_name, read_image
from imgclf.data.source import Pixels, Sample, Source
from imgclf.errors import DataError

Item = Path | Image.Image | Pixels


class InputReader:
    """Opens paths, PIL images and arrays by their position; the same steps for each as in training."""

    def __init__(self, items: dict[str, Item]) -> None:
        self._items = items

    def open(self, ref: str, at_least: tuple[int, int] | None = None) -> Pixels:
        """The pixels of one input; see `Reader.open`."""
        item = self._items[ref]
        if isinstance(item, Path):
            return read_image(item, at_least=at_least)
        return image_pixels(item) if isinstance(item, Image.Image) else item

    def digest(self, ref: str) -> str:
        """The sha256 of the pixels."""
        return sha256(self.open(ref).tobytes()).hexdigest()


def inputs_source(images: Any) -> Source:
    """An unlabelled source of the images, in their order; a folder gives the images below it, sorted.

    A path is tried whatever it is called. Raises `DataError` for what is no image at all, an empty list or a folder
    without images.
    """
    if isinstance(images, Source):
        return images
    names: list[str] = []
    items: dict[str, Item] = {}
    for given, item in _flatten(images):
        name = given
        while name in items and not _same(item, items[name]):
            name += "'"  # a file may be called like an image that has no name
        names.append(name)
        items[name] = item
    if not names:
        raise DataError("there are no images to predict")
    return Source("input", (), tuple(Sample(name, "") for name in names), InputReader(items))


def _same(one: Item, other: Item) -> bool:
    return one is other or (isinstance(one, Path) and isinstance(other, Path) and one == other)


def _flatten(images: Any) -> Iterator[tuple[str, Item]]:
    one = isinstance(images, str | os.PathLike | Image.Image | np.ndarray) or not isinstance(images, Iterable)
    for index, item in enumerate([images] if one else images):
        if isinstance(item, str | os.PathLike):
            yield from _paths(Path(item))
        elif isinstance(item, Image.Image):
            yield f"image {index}", item
        elif isinstance(item, np.ndarray):
            yield f"image {index}", _checked(item, index)
        else:
            kinds = "a path, a PIL image or a uint8 array"
            raise DataError(f"image {index} is {type(item).__name__}; expected {kinds}")


def _checked(array: Any, index: int) -> Pixels:
    pixels = array[..., None] if array.ndim == 2 else array
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or 0 in pixels.shape:
        raise DataError(
            f"image {index} is an array of {array.dtype} and shape {array.shape}; "
            "expected uint8 of (height, width) or (height, width, channels)"
        )
    return np.ascontiguousarray(pixels)


def _paths(path: Path) -> Iterable[tuple[str, Path]]:
    if not path.is_dir():
        return [(str(path), path)]
    found = sorted(_images_below(path), key=os.fsencode)
    if not found:
        raise DataError(f"{path} holds no images")
    return [(str(item), item) for item in found]


def _images_below(folder: Path) -> Iterator[Path]:
    for root, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".") and name != "__MACOSX"]
        yield from (Path(root, name) for name in files if not name.startswith(".") and is_image_name(name))

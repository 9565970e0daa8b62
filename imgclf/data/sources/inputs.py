"""What `predict` accepts: paths, folders, PIL images, arrays, or a list of these, as an unlabeled source."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from hashlib import sha256
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image

from imgclf.core.config import Levels
from imgclf.core.errors import DataError
from imgclf.core.text import plural
from imgclf.data.dataset import AtLeast, Pixels, Sample, Source
from imgclf.data.images import MAX_PIXELS, BadImage, image_pixels, read_image, read_open
from imgclf.data.jpeg import is_far
from imgclf.data.sources.folder import image_files

Item = str | bytes | Image.Image | Pixels | BadImage  # the last for a folder that is known to give no image
KINDS = "a path, a PIL image, the bytes of an image file or a uint8 array"


@dataclass(eq=False, repr=False)
class InputReader:
    """Opens paths, PIL images and arrays by their position; the same steps for each as in training.

    `far` are the images whose values lie far beyond the levels, and where; readers at other levels share it.
    """

    _items: dict[str, Item]
    _max_pixels: int
    _levels: tuple[Levels, ...] = ()
    far: dict[str, Levels] = field(default_factory=dict)

    def at_levels(self, levels: tuple[Levels, ...]) -> InputReader:
        """See `DeepReader`."""
        return replace(self, _levels=levels)

    def open(self, ref: str, at_least: AtLeast = None) -> Pixels:
        """The pixels of one input; see `Reader.open`."""
        item, found = self._items[ref], partial(self._found, ref)
        if isinstance(item, BadImage):
            raise BadImage(item.reason, ref)
        if isinstance(item, bytes):
            return read_open(BytesIO(item), ref, at_least, self._max_pixels, self._levels, found)
        if isinstance(item, str):
            return read_image(item, at_least=at_least, max_pixels=self._max_pixels, levels=self._levels, found=found)
        return image_pixels(item, self._levels, found) if isinstance(item, Image.Image) else item

    def _found(self, ref: str, levels: Levels) -> None:
        if is_far(levels, self._levels):
            self.far[ref] = levels

    def digest(self, ref: str) -> str:
        """The sha256 of the pixels."""
        return sha256(self.open(ref).tobytes()).hexdigest()


def inputs_source(images: Any, *, max_pixels: int = MAX_PIXELS) -> Source:
    """An unlabeled source of the images, in their order; a folder gives the images below it, sorted.

    A path is tried whatever it is called, and is the sample's `ref` exactly as it was given. A folder without images,
    or one that can't be read, is a sample that raises `BadImage` when it is opened, as is a file of more than
    `max_pixels`. Raises `DataError` for what is no image at all, and for an empty list.
    """
    if isinstance(images, Source):
        return images
    found = list(_flatten(images))
    if not found:
        raise DataError("no images to predict: the list is empty")
    paths = {name for name, item in found if _is_path(item)}
    names: list[str] = []
    items: dict[str, Item] = {}
    for name, item in found:
        while name in paths and not _is_path(item):
            name += "'"  # a file may be called like an image that has no name
        names.append(name)
        items[name] = item
    return Source("input", (), tuple(Sample(name, "") for name in names), InputReader(items, max_pixels))


def far_values(source: Source, samples: Iterable[Sample], levels: tuple[Levels, ...]) -> str:
    """What to say where images that were read hold values far beyond those of training, `levels`; else nothing."""
    known = source.reader.far.values() if isinstance(source.reader, InputReader) else (s.levels for s in samples)
    far = [one for one in known if one is not None and is_far(one, levels)]
    if not far:
        return ""
    values = f"{min(one.low for one in far):g} to {max(one.high for one in far):g}"
    trained = ", ".join(map(str, levels)) or "0 to 255"
    images = f"{plural(len(far), 'image')} {'holds' if len(far) == 1 else 'hold'}"
    return f"{images} values of {values}, but training saw {trained}: predictions may be wrong"


def _is_path(item: Item) -> bool:
    return isinstance(item, str | BadImage)


def _flatten(images: Any) -> Iterator[tuple[str, Item]]:
    several = isinstance(images, Iterable) and not _is_one(images)
    for index, item in enumerate(images if several else [images]):
        if isinstance(item, str | os.PathLike):
            yield from _paths(os.fsdecode(item))
        elif isinstance(item, Image.Image):
            yield f"image {index}", item
        elif isinstance(item, bytes | bytearray | memoryview):
            yield f"image {index}", bytes(item)
        elif isinstance(item, np.ndarray):
            yield f"image {index}", _checked(item, index)
        else:
            one = f"image {index} is" if several else "the images are"
            raise DataError(f"{one} {type(item).__name__}; expected {KINDS}, or a list of these")


def _is_one(images: Any) -> bool:
    """Whether this is one thing and no list of things, whatever it gives when it is iterated over: the columns of a
    table, the rows of an array, the lines of a file, the keys of a mapping."""
    if isinstance(images, str | bytes | bytearray | memoryview | os.PathLike | Image.Image | Mapping):
        return True
    return any(hasattr(images, name) for name in ("__array__", "read"))


def _checked(array: Any, index: int) -> Pixels:
    pixels = array[..., None] if array.ndim == 2 else array
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or 0 in pixels.shape:
        raise DataError(
            f"image {index} is an array of {array.dtype} and shape {array.shape}; "
            "expected uint8 of (height, width) or (height, width, channels)"
        )
    return np.ascontiguousarray(pixels)


def _paths(path: str) -> Iterator[tuple[str, Item]]:
    if not os.path.isdir(path):
        yield path, path
        return
    files, unreadable = image_files(path)
    for file in (os.path.join(path, file) for file in files):
        yield file, file
    for folder, reason in unreadable:
        yield os.path.join(path, folder) if folder else path, BadImage(reason)
    if not files and not unreadable:
        yield path, BadImage("contains no images")

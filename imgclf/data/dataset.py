"""What images exist: samples with labels, and a reader that opens one. The only thing in which data sets differ."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from imgclf.core.config import Levels, PreprocessConfig
from imgclf.core.errors import DataError
from imgclf.core.text import nfc
from imgclf.transforms.preprocess import decode_size, prepare

Pixels = NDArray[np.uint8]
Sides = tuple[int, int]  # (height, width)
SPLIT_NAMES = ("train", "valid", "test")


@dataclass(frozen=True)
class Draft:
    """A smaller decoding whose size depends on the image, as for a crop or a small copy of it.

    `needed` is called with the image's own (height, width), where the size can be chosen, and returns the sides
    below which it must not be decoded. Unless they are to be `smooth`, colors that a JPEG stores at half its size may
    be doubled, which is quicker.
    """

    needed: Callable[[Sides], Sides]
    smooth: bool = False


AtLeast = Sides | Draft | None


class Reader(Protocol):
    """Opens the images of a source; safe to call from several threads."""

    def open(self, ref: str, at_least: AtLeast = None) -> Pixels:
        """The pixels of one image as uint8 of shape (height, width, channels).

        `at_least` (height, width) allows a smaller decoding, never below these sides where the image has them; a
        `Draft` one that depends on the image.
        """

    def digest(self, ref: str) -> str:
        """The sha256 (hex) of the image's content: the bytes of its file, or of its pixels."""


@runtime_checkable
class DeepReader(Reader, Protocol):
    """A reader whose images may have more than 8 bits."""

    def at_levels(self, levels: tuple[Levels, ...]) -> Reader:
        """The same reader, which turns deeper images into uint8 by these levels."""


@dataclass(frozen=True)
class Sample:
    """One image: `ref` is its path relative to the source's root (or its key), `label` its class, "" if unknown.

    `split` is where the data set itself puts it, or None; samples of one `group` never part. The audit fills in the
    `sha256` of its bytes, the `levels` of an image of more than 8 bits, between which its values lie, and a digest of
    its `pixels` where another file may hold the same image.
    """

    ref: str
    label: str
    group: str | None = None
    split: str | None = None
    sha256: str = ""
    pixels: str = ""
    levels: Levels | None = None


@dataclass(frozen=True)
class Source:
    """A labeled set of images: classes in a fixed order, samples, and the reader that opens them.

    `location` is the folder or file it was read from, "" for a set that lies in memory. `skipped` lists what was passed
    over while scanning, as "path: reason"; `notes` what was assumed. `mirror` says whether a mirrored image keeps its
    label (digits do not); `default_recipe` names the experiment that suits the set.
    """

    name: str
    classes: tuple[str, ...]
    samples: tuple[Sample, ...]
    reader: Reader = field(repr=False)
    location: str = ""
    skipped: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    mirror: bool = True
    default_recipe: str | None = None

    def __post_init__(self) -> None:
        names = [nfc(name) for name in self.classes]
        if len(set(names)) != len(names):
            raise DataError(f"{self.name}: duplicate class names", sorted({c for c in names if names.count(c) > 1}))
        known = set(self.classes)
        unknown_classes = sorted({sample.label for sample in self.samples} - known - {""})
        if unknown_classes:
            raise DataError(f"{self.name}: labels that are not among its classes", unknown_classes)

    def __len__(self) -> int:
        return len(self.samples)

    def open(self, ref: str, at_least: AtLeast = None) -> Pixels:
        """The pixels of one image; see `Reader.open`."""
        return self.reader.open(ref, at_least)

    def counts(self) -> dict[str, int]:
        """How many samples each class has, in the order of the classes."""
        counts = Counter(sample.label for sample in self.samples)
        return {name: counts[name] for name in self.classes}

    def with_samples(self, samples: Iterable[Sample]) -> Source:
        """The same source with other samples."""
        return replace(self, samples=tuple(samples))

    def at_levels(self, levels: tuple[Levels, ...]) -> Source:
        """The same source, whose images of more than 8 bits are read by these levels."""
        if not levels or not isinstance(self.reader, DeepReader):
            return self
        return replace(self, reader=self.reader.at_levels(levels))


def open_measured(
    source: Source, ref: str, needed: Callable[[Sides], Sides], *, smooth: bool = False
) -> tuple[Pixels, Sides]:
    """The pixels of an image, no side of them below what it `needed` where the image has it, and its (height, width).

    See `Draft` for `needed` and `smooth`.
    """
    told: list[Sides] = []

    def asked(shape: Sides) -> Sides:
        told.append(shape)
        return needed(shape)

    pixels = source.open(ref, Draft(asked, smooth))
    return pixels, told[0] if told else (pixels.shape[0], pixels.shape[1])


def open_prepared(source: Source, ref: str, preprocess: PreprocessConfig) -> Pixels:
    """The evaluation pixels of an image, which is decoded no larger than that takes."""
    pixels, shape = open_measured(source, ref, lambda _: decode_size(preprocess), smooth=True)
    return prepare(pixels, preprocess, shape)


class ArrayReader:
    """Reads a set that lies in memory: `arrays` maps the first part of a ref ("train/00012") to uint8 (n, h, w, c)."""

    def __init__(self, arrays: Mapping[str, Pixels]) -> None:
        self.arrays = dict(arrays)

    def open(self, ref: str, at_least: AtLeast = None) -> Pixels:
        """The pixels of one image; `at_least` changes nothing, since there is nothing to decode."""
        key, _, index = ref.rpartition("/")
        return np.asarray(self.arrays[key][int(index)])

    def digest(self, ref: str) -> str:
        """The sha256 of the image's shape and pixels."""
        pixels = np.ascontiguousarray(self.open(ref))
        return sha256(str(pixels.shape).encode() + pixels.tobytes()).hexdigest()

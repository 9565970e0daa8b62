"""Accuracy on parts of the images: by their size, their shape, their brightness and the folder they come from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from imgclf.evaluation.intervals import wilson_interval
from imgclf.report.view import Look

SQUARE = 1.1  # sides that differ by less look square
MAX_FOLDERS = 12


@dataclass(frozen=True)
class Slice:
    """Accuracy on some of the images, with its 95% interval. `odd` is -1 or 1 where it is lower or higher than on the
    others by more than chance explains: the intervals do not meet."""

    name: str
    n: int
    right: int
    interval: tuple[float, float]
    odd: int


@dataclass(frozen=True)
class Slicing:
    """One way to divide the images; `note` says why where there are no slices."""

    title: str
    slices: tuple[Slice, ...]
    note: str


def slice_images(
    refs: Sequence[str], labels: Sequence[str], right: NDArray[np.bool_], looks: Mapping[str, Look]
) -> list[Slicing]:
    """Accuracy by size, shape and brightness, and by source folder.

    Args:
        refs: The names (n) of the images in their source.
        labels: Their true classes (n).
        right: Whether each was classified correctly, bool (n,).
        looks: Size and brightness by ref; images without are left out of the first three.
    """
    seen = [i for i, ref in enumerate(refs) if ref in looks]
    found, hits = [looks[refs[i]] for i in seen], right[seen]
    sides = np.array([min(look.sides) for look in found], dtype=np.float64)
    light = np.array([look.brightness / 2.55 for look in found])
    shapes = [_shape(look.sides) for look in found]
    folders = [_folder(ref, label) for ref, label in zip(refs, labels, strict=True)]
    same = "the same for all images" if seen else "the images could not be opened"
    return [
        Slicing("Shorter side, pixels", _thirds(sides, hits), same),
        Slicing("Shape", _named(shapes, hits), same),
        Slicing("Brightness, % of white", _thirds(light, hits), same),
        _by_folder(folders, right),
    ]


def _shape(sides: tuple[int, int]) -> str:
    height, width = sides
    if max(sides) < SQUARE * min(sides):
        return "about square"
    return "wider than tall" if width > height else "taller than wide"


def _folder(ref: str, label: str) -> str:
    """The folder of an image without the parts that name its class."""
    parts, own = ref.replace("\\", "/").split("/")[:-1], label.split("/")
    start = next((i for i in range(len(parts)) if parts[i : i + len(own)] == own), len(parts))
    return "/".join(parts[:start] + parts[start + len(own) :])


def _by_folder(folders: list[str], right: NDArray[np.bool_]) -> Slicing:
    names = set(folders)
    if len(names) > MAX_FOLDERS:
        common = {name for name, _ in Counter(folders).most_common(MAX_FOLDERS - 1)}
        folders = [name if name in common else f"{len(names) - len(common)} other folders" for name in folders]
    note = "all images are in the same folder, apart from the folders of the classes"
    return Slicing("Source folder", _named([name or "(no subfolder)" for name in folders], right), note)


def _thirds(values: NDArray[np.float64], right: NDArray[np.bool_]) -> tuple[Slice, ...]:
    """Three slices of about as many images each, or fewer where many values are equal."""
    if not len(values):
        return ()
    edges = np.unique(np.quantile(values, [1 / 3, 2 / 3], method="nearest"))
    place = np.searchsorted(edges, values, side="left")
    names, members = [], []
    for third in np.unique(place):
        inside = place == third
        low, high = values[inside].min(), values[inside].max()
        names.append(f"{low:,.0f}" if round(low) == round(high) else f"{low:,.0f} – {high:,.0f}")
        members.append(inside)
    return _slices(names, members, right)


def _named(names: Sequence[str], right: NDArray[np.bool_]) -> tuple[Slice, ...]:
    labels = np.array(names, dtype=object)
    different = sorted(set(names))
    return _slices(different, [labels == name for name in different], right)


def _slices(names: Sequence[str], members: Sequence[NDArray[np.bool_]], right: NDArray[np.bool_]) -> tuple[Slice, ...]:
    if len(members) < 2:
        return ()
    found = []
    for name, inside in zip(names, members, strict=True):
        n, hits = int(inside.sum()), int(right[inside].sum())
        low, high = wilson_interval(hits, n)
        others = wilson_interval(int(right[~inside].sum()), int((~inside).sum()))
        found.append(Slice(name, n, hits, (low, high), -1 if high < others[0] else 1 if low > others[1] else 0))
    return tuple(found)

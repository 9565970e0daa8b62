"""Images written out: a prepared copy of a data set (the resizing step of lab 10-4), and single samples."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from imgclf.data.source import Pixels, Sample, Source
from imgclf.errors import DataError
from imgclf.specs import Recipe
from imgclf.transforms.pixels import decode_size, prepare

JPEG_QUALITY = 95
FORMATS = {"jpg": "JPEG", "png": "PNG"}


def prepare_folder(
    source: Source,
    out: Path,
    recipe: Recipe,
    kind: str = "jpg",
    progress: Callable[[int, int], None] | None = None,
) -> int:
    """Write every image of a source at the recipe's size into `out`, with the same classes and splits; how many.

    `kind` is jpg (quality 95) or png. The folder appears under its name only when it is whole. Raises `DataError`
    where it exists, or lies inside the data.
    """
    inside = source.location and Path(source.location).resolve() in (out.resolve(), *out.resolve().parents)
    if inside or out.exists():
        problem = "lies inside the data, which are never written to" if inside else "is there already"
        raise DataError(f"{out} {problem}; name a new folder")
    partial = out.with_name(f".{out.name}.partial-{os.getpid()}")
    try:
        for done, sample in enumerate(source.samples):
            pixels = prepare(source.open(sample.ref, decode_size(recipe)), recipe)
            write_image(_unused(partial / sample.ref, sample, kind), pixels)
            if progress is not None:
                progress(done + 1, len(source.samples))
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return len(source.samples)


def _unused(path: Path, sample: Sample, kind: str) -> Path:
    """The new path of an image; `a.png` and `a.jpg` of one folder must not become the same file."""
    if path.parent.name != sample.label and sample.label not in path.parts:
        path = path.parent / sample.label / path.name
    new = path.with_suffix(f".{kind}")
    return new if not new.exists() else path.with_name(f"{path.name}.{kind}")


def save_samples(source: Source, samples: Sequence[Sample], folder: Path, most: int = 8) -> Path:
    """Write the first sample of each class, up to `most`, as PNG files named after their class; the folder."""
    seen: dict[str, Sample] = {}
    for sample in samples:
        seen.setdefault(sample.label, sample)
    for sample in sorted(seen.values(), key=lambda sample: sample.label)[:most]:
        name = "".join(c if c.isalnum() or c in "-_" else "-" for c in sample.label) or "image"
        write_image(folder / f"{name}.png", source.open(sample.ref))
    return folder


def write_image(path: Path, pixels: Pixels) -> None:
    """Write uint8 pixels (height, width, 1 or 3) as PNG or JPEG, by the suffix; folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.ascontiguousarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels))
    image.save(path, FORMATS[path.suffix[1:]], quality=JPEG_QUALITY)

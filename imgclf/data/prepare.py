"""Images written out: a prepared copy of a data set (the resizing step of lab 10-4), and single samples."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path, PurePath

import numpy as np
from PIL import Image

from imgclf._files import printable
from imgclf.data.folder import SPLIT_WORDS
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
    require_outside(out, source)
    if out.exists():
        raise DataError(f"{out} is there already; name a new folder")
    nameless = [printable(label) for label in source.classes if Path(label).name != label or label == ".."]
    if nameless:
        raise DataError("a class becomes a folder, and these names can't be one; rename them", nameless)
    partial = out.with_name(f".{out.name}.partial-{os.getpid()}")
    in_folders = bool(source.location) and os.path.isdir(source.location)
    used: Counter[Path] = Counter()
    try:
        for done, sample in enumerate(source.samples):
            pixels = prepare(source.open(sample.ref, decode_size(recipe)), recipe)
            write_image(_unused(partial / _place(sample, in_folders), kind, used), pixels)
            if progress is not None:
                progress(done + 1, len(source.samples))
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return len(source.samples)


def require_outside(path: Path, source: Source) -> None:
    """Raise `DataError` for a path that lies inside the folder of a source: data are never written to."""
    if source.location and Path(source.location).resolve() in (path.resolve(), *path.resolve().parents):
        raise DataError(f"{printable(str(path))} lies inside the data, which are never written to; name another place")


def _place(sample: Sample, in_folders: bool) -> Path:
    """Where an image goes in a folder of classes: where it was, if it comes from one, else below its split and class.

    A CSV file may name images anywhere, also by absolute paths; none of them may lead out of the new folder.
    """
    parts = list(PurePath(sample.ref).parts)
    top, found = [sample.label], parts[:1]
    if sample.split is not None:
        top, found = [sample.split, sample.label], [SPLIT_WORDS.get(parts[0].lower(), ""), *parts[1:2]]
    if in_folders and found == top and len(parts) > len(top) and ".." not in parts:
        return Path(*parts)
    return Path(*top, parts[-1])


def _unused(path: Path, kind: str, used: Counter[Path]) -> Path:
    """The new path of an image; of those that would become the same file, the second gets `-2`, and so on."""
    plain = path.with_name(path.stem)
    while True:
        used[plain] += 1
        number = "" if used[plain] == 1 else f"-{used[plain]}"
        new = path.with_name(f"{path.stem}{number}.{kind}")
        if not new.exists():
            return new


def save_samples(source: Source, samples: Sequence[Sample], folder: Path, most: int = 20) -> Path:
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

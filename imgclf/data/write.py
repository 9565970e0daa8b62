"""Images written out: a prepared copy of a data set (the resizing step of lab 10-4), tar shards, single samples."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from itertools import chain, count
from math import inf
from pathlib import Path, PurePath
from typing import NamedTuple

import numpy as np
from PIL import Image

from imgclf.core.config import PreprocessConfig
from imgclf.core.errors import ConfigError, DataError, MissingExtra
from imgclf.core.files import require_writable, write_text
from imgclf.core.text import printable
from imgclf.data.dataset import SPLIT_NAMES, Pixels, Sample, Source, open_prepared
from imgclf.data.images import is_image_name
from imgclf.data.sources.folder import FileReader
from imgclf.data.sources.split_names import split_meant
from imgclf.data.sources.tar_shards import EXTRA, ShardReader, write_index

JPEG_QUALITY = 95
FORMATS = {"jpg": "JPEG", "png": "PNG"}
UNITS = {"KB": 1e3, "MB": 1e6, "GB": 1e9}
# What every reader of shards knows; other formats are written as PNG. WebP: RIFF, its length, WEBP.
_MAGIC = {"jpg": rb"\xff\xd8\xff", "png": rb"\x89PNG\r\n\x1a\n", "webp": rb"RIFF....WEBP"}
_MAGIC_BYTES = 12


class ShardSize(NamedTuple):
    """How large a shard gets: it ends with the image that reaches one of these."""

    bytes: float = 256e6
    images: float = inf


SHARD_SIZE = ShardSize()


def parse_shard_size(text: str) -> ShardSize:
    """`256MB` (KB, MB, GB are 10^3, 10^6, 10^9 bytes) or a number of images. Raises `ConfigError`."""
    found = re.fullmatch(r"([0-9]+)(KB|MB|GB)?", text.strip().upper())
    if found is None or int(found[1]) == 0:
        raise ConfigError(f"shard size is {text!r}; allowed: bytes, as in 256MB or 1GB, or a number of images")
    return ShardSize(int(found[1]) * UNITS[found[2]]) if found[2] else ShardSize(inf, int(found[1]))


def prepare_folder(
    source: Source,
    out: Path,
    preprocess: PreprocessConfig,
    kind: str = "jpg",
    progress: Callable[[int, int], None] | None = None,
) -> int:
    """Write every image of a source at the size of `preprocess` into `out`, with the same classes and splits; how many.

    `kind` is jpg (quality 95) or png. The folder appears under its name only when it is whole. Raises `DataError`
    where it exists, or lies inside the data.
    """
    nameless = [printable(label) for label in source.classes if Path(label).name != label or label == ".."]
    if nameless:
        raise DataError("classes become folders, but these names can't be folder names; rename them", nameless)
    in_folders = bool(source.location) and os.path.isdir(source.location)
    used: Counter[Path] = Counter()
    with _new_folder(out, source) as partial:
        for done, sample in enumerate(source.samples):
            pixels = open_prepared(source, sample.ref, preprocess)
            write_image(_unused(partial / _place(sample, in_folders), kind, used), pixels)
            if progress is not None:
                progress(done + 1, len(source.samples))
    return len(source.samples)


def prepare_shards(
    source: Source,
    out: Path,
    preprocess: PreprocessConfig | None = None,
    kind: str = "jpg",
    size: ShardSize = SHARD_SIZE,
    progress: Callable[[int, int], None] | None = None,
) -> int:
    """Write every image of a source into tar shards of WebDataset in `out`, each with its index; how many images.

    JPEG, PNG and WebP files go in byte by byte, others as PNG; with a `preprocess` all get its size, as `kind`.
    The shards are called after their split (`train-000000.tar`), or `shard`; KEY.cls is the position in classes.json,
    and a group stands in KEY.json. The order is that of the images' sha256, so each shard is a random part. The folder
    appears under its name only when it is whole and every image in it decodes. Raises `DataError`, and `MissingExtra`.
    """
    number = {label: index for index, label in enumerate(source.classes)}
    keys, done = count(), count(1)

    def members(samples: list[Sample]) -> Iterator[dict[str, str | bytes]]:
        for sample in sorted(samples, key=lambda sample: (sample.sha256, sample.ref)):
            member: dict[str, str | bytes] = {"__key__": f"{next(keys):09d}", "cls": str(number[sample.label])}
            if sample.group is not None:
                member["json"] = json.dumps({"group": sample.group})
            yield {**member, **_image(source, sample, preprocess, kind)}
            if progress is not None:
                progress(next(done), len(source.samples))

    with _new_folder(out, source) as partial:
        write_text(partial / "classes.json", json.dumps(source.classes))
        for split in (None, *SPLIT_NAMES):
            _write_shards(members([s for s in source.samples if s.split == split]), partial, split or "shard", size)
    return len(source.samples)


def _write_shards(members: Iterator[dict[str, str | bytes]], folder: Path, name: str, size: ShardSize) -> None:
    """Write the members into NAME-000000.tar and so on, and read each tar once for its index."""
    try:
        from webdataset import TarWriter
    except ImportError:
        raise MissingExtra(EXTRA, "tar shards") from None
    for number in count():
        first = next(members, None)
        if first is None:
            return
        path, images = folder / f"{name}-{number:06d}.tar", 0
        with open(path, "xb") as file, TarWriter(file, mtime=0) as tar:
            for images, member in enumerate(chain([first], members), 1):
                tar.write(member)
                if images >= size.images or file.tell() >= size.bytes:
                    break
        index = write_index(path)
        bad = [f"{printable(entry.name)}: {entry.facts.reason}" for entry in index.entries if entry.facts.reason]
        if bad or len(index.entries) != images:
            raise DataError(f"{path.name}: {len(index.entries) - len(bad)} of {images} images can be read back", bad)


def _image(source: Source, sample: Sample, preprocess: PreprocessConfig | None, kind: str) -> dict[str, bytes]:
    """One image as {extension: bytes of the file}."""
    if preprocess is not None:
        return {kind: _encoded(open_prepared(source, sample.ref, preprocess), kind)}
    data = _file_bytes(source, sample.ref)
    known = _known_kind(data)
    return {known: data} if known else {"png": _encoded(source.open(sample.ref), "png")}


def is_copied(source: Source, sample: Sample) -> bool:
    """Whether the file of an image goes into shards byte by byte, where these have no size of their own."""
    return _known_kind(_file_bytes(source, sample.ref, _MAGIC_BYTES)) is not None


def _known_kind(data: bytes) -> str | None:
    return next((kind for kind, magic in _MAGIC.items() if re.match(magic, data, re.DOTALL)), None)


def _file_bytes(source: Source, ref: str, most: int = -1) -> bytes:
    """The file of an image as it is, or `most` bytes of it at least; b"" for a source that has no files."""
    if isinstance(source.reader, ShardReader):
        return source.reader.read(ref)
    if not isinstance(source.reader, FileReader):
        return b""
    with source.reader.opened(ref) as file:
        return file.read(most)


@contextmanager
def _new_folder(out: Path, source: Source) -> Iterator[Path]:
    """A folder to fill, renamed to `out` at the end and removed after an error. Raises `DataError`."""
    require_new_folder(out, source)
    partial = out.with_name(f".{out.name}.partial-{os.getpid()}")
    try:
        partial.mkdir(parents=True)
        yield partial
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def require_new_folder(out: Path, source: Source) -> None:
    """Raise `DataError` where the folder `out` exists, can't be made, or lies inside the data."""
    require_outside(out, source)
    if os.path.lexists(out):
        raise DataError(f"{printable(str(out))} already exists; choose a new folder")
    try:
        require_writable(out)
    except OSError as error:
        raise DataError(f"{printable(str(out))} can't be created: {error.strerror}; choose another folder") from None


def require_outside(path: Path, source: Source) -> None:
    """Raise `DataError` for a path within a source: in its folder, or one of its files."""
    require_apart(path, [source.location])
    if path.exists() and isinstance(source.reader, FileReader):
        images = {os.path.realpath(source.reader.path(sample.ref)) for sample in source.samples}
        if os.path.realpath(path) in images:
            raise DataError(f"{printable(str(path))} is one of the images, which are never overwritten")


def require_apart(path: Path, places: Collection[str]) -> None:
    """Raise `DataError` for a path that is one of these places, or lies in one of them: data are never written to.

    An image file, as a place, stands also for the folder of classes that it comes from, if it does.
    """
    whole = path.resolve()
    images = {place for place in places if is_image_name(place) and not os.path.isdir(place)}
    folders = {os.path.dirname(os.path.abspath(image)) for image in images}
    around = {_data_folder(classes) for classes in set(map(os.path.dirname, folders))}
    data = {Path(place).resolve() for place in (set(places) - images) | around if os.path.exists(place)}
    if data & {whole, *whole.parents} or (whole.exists() and whole in {Path(image).resolve() for image in images}):
        raise DataError(
            f"{printable(str(path))} lies inside the data folder, which is never written to; choose another place"
        )


def _data_folder(classes: str) -> str:
    """The data set that a folder seems to hold the classes of, as most folders in it hold images, or ""."""
    try:
        with os.scandir(classes) as entries:
            folders = [entry.path for entry in entries if entry.is_dir() and not entry.name.startswith(".")]
    except OSError:
        return ""
    holding = sum(map(_holds_images, folders))
    if holding < 2 or 2 * holding <= len(folders):
        return ""
    return os.path.dirname(classes) if split_meant(os.path.basename(classes)) else classes


def _holds_images(folder: str) -> bool:
    try:
        with os.scandir(folder) as entries:
            return any(is_image_name(entry.name) for entry in entries)
    except OSError:
        return False


def _place(sample: Sample, in_folders: bool) -> Path:
    """Where an image goes in a folder of classes: where it was, if it comes from one, else below its split and class.

    A CSV file may name images anywhere, also by absolute paths; none of them may lead out of the new folder.
    """
    parts = list(PurePath(sample.ref).parts)
    top, found = [sample.label], parts[:1]
    if sample.split is not None:
        top, found = [sample.split, sample.label], [split_meant(parts[0]) or "", *parts[1:2]]
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
    first = {sample.label: sample for sample in reversed(samples)}
    for label in sorted(first)[:most]:
        name = "".join(c if c.isalnum() or c in "-_" else "-" for c in label) or "image"
        write_image(folder / f"{name}.png", source.open(first[label].ref))
    return folder


def write_image(path: Path, pixels: Pixels) -> None:
    """Write uint8 pixels (height, width, 1 or 3) as PNG or JPEG, by the suffix; folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(_encoded(pixels, path.suffix[1:]))


def _encoded(pixels: Pixels, kind: str) -> bytes:
    buffer = BytesIO()
    image = Image.fromarray(np.ascontiguousarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels))
    image.save(buffer, FORMATS[kind], quality=JPEG_QUALITY)
    return buffer.getvalue()

"""Tar shards by the conventions of WebDataset, near or far: read by position, so a `Source` like any other.

A tar is passed through once. What that finds is its index (`imgclf.data.sources.tar_index`), which lies beside the tar
or is kept in the cache folder; from then on an image is one read of its bytes.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from hashlib import sha256
from io import BytesIO
from itertools import takewhile
from pathlib import Path
from typing import Any

import PIL

from imgclf.core.config import Levels
from imgclf.core.errors import DataError, MissingExtra
from imgclf.core.files import cache_folder, write_atomic
from imgclf.core.text import nfc, one_line, printable
from imgclf.data.classes import class_problems, in_one_form
from imgclf.data.dataset import AtLeast, Pixels, Sample, Source
from imgclf.data.images import MAX_PIXELS, BadImage, ImageFacts, digest_pixels, read_open
from imgclf.data.sources.split_names import split_meant
from imgclf.data.sources.tar_index import (
    CLASS_FILES,
    Entry,
    ShardIndex,
    index_tar,
    pack_index,
    parse_classes,
    unpack_index,
)

EXTRA = "webdataset"
INDEX_SUFFIX = ".index.json"
_THREADS = 8
_COMPRESSED = (".tar.gz", ".tgz")
_STAMPS = ("size", "mtime", "ino", "created", "ETag", "etag", "LastModified", "last_modified", "generation")


@dataclass(frozen=True)
class Tar:
    """A tar behind an fsspec file system; the refs of its images begin with `name`. `stamp` changes when it does."""

    name: str
    path: str
    files: Any
    size: int = 0
    stamp: str = ""


@dataclass(eq=False, repr=False)
class ShardReader:
    """Reads images by their position in a tar; what comes is checked against the sha256 in the index."""

    _places: Mapping[str, tuple[Tar, Entry]]
    _max_pixels: int
    _levels: tuple[Levels, ...] = ()

    def at_levels(self, levels: tuple[Levels, ...]) -> ShardReader:
        """See `DeepReader`."""
        return replace(self, _levels=levels)

    def open(self, ref: str, at_least: AtLeast = None) -> Pixels:
        """The pixels of one image as uint8 (height, width, 1 or 3). Raises `BadImage`."""
        return read_open(BytesIO(self.read(ref)), ref, at_least, self._max_pixels, self._levels)

    def read(self, ref: str) -> bytes:
        """The bytes of one image's file. Raises `BadImage` where they can't be had, or aren't those of the index."""
        tar, entry = self._places[ref]
        if not entry.facts.sha256:
            raise BadImage(entry.facts.reason, ref)
        try:
            data: bytes = tar.files.cat_file(tar.path, entry.offset, entry.offset + entry.size)
        except Exception as error:  # each file system has its own
            raise BadImage(f"cannot be read: {one_line(error)}", ref) from error
        if sha256(data).hexdigest() != entry.facts.sha256:
            raise BadImage(f"{printable(tar.name)} has changed since it was indexed", ref)
        return data

    def facts(self, ref: str) -> ImageFacts:
        """What the index says of one image."""
        return self._places[ref][1].facts

    def digest(self, ref: str) -> str:
        """The sha256 (hex) of the bytes of the image's file, from the index."""
        return self.facts(ref).sha256

    def digest_pixels(self, ref: str) -> str:
        """See `images.digest_pixels`."""
        return digest_pixels(self.read(ref), max_pixels=self._max_pixels)


def names_shards(text: str) -> bool:
    """Whether a text names tar shards: a URL, a tar or a pattern of tars, or a folder of tars without any folder."""
    if os.path.isdir(text):
        return bool(_tars_in(text))
    return "://" in text or text.lower().endswith((".tar", ".tar.gz", ".tgz"))


def open_shards(
    pattern: str,
    *,
    max_pixels: int = MAX_PIXELS,
    strict: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> Source:
    """The images in tar shards, as `Source`: `shards-{0000..0099}.tar`, a folder of tars, or a URL that fsspec knows.

    An image is KEY.jpg (.png, .webp, …); its label is KEY.cls (a number or a name), "label" in KEY.json, KEY.txt, or
    the first folder in KEY. Numbers are named by a classes.json (a list) or classes.txt (a line each) beside the first
    tar or in it. A split word in the name of a tar (`train-0000.tar`) is its split; "group" in KEY.json keeps images
    together. A tar without an index is read through once; `progress` is called with the number of tars done and of all.

    `strict=False`, for evaluation, accepts a single class and single images. Raises one `DataError` that lists all
    problems, and `MissingExtra`.
    """
    tars = _look(_locate(pattern), pattern)
    indices = _indices(tars, max_pixels, progress or (lambda done, total: None))
    names = _class_names(tars[0], indices[0])
    rows = [(tar, entry) for tar, index in zip(tars, indices, strict=True) for entry in index.entries]
    samples, problems = _samples(rows, names)
    samples, spelling = in_one_form(samples)
    problems = [*(problem for index in indices for problem in index.problems), *problems]
    if not rows and not problems:
        problems = ["they contain no images"]
    if strict and not problems:
        problems = _split_problems(samples) + class_problems(samples)
    if problems:
        raise DataError(f"{printable(pattern)}: these shards can't be used", problems)
    numbered = all(isinstance(entry.label, int) for _, entry in rows)
    passed = sum((Counter(index.passed_over) for index in indices), Counter[str]())
    return Source(
        name=_name(pattern),
        classes=_ordered({sample.label for sample in samples}, names, numbered=numbered),
        samples=tuple(samples),
        reader=ShardReader({sample.ref: row for sample, row in zip(samples, rows, strict=True)}, max_pixels),
        location=pattern,
        skipped=tuple(f"{count:,} {what}" for what, count in sorted(passed.items())),
        notes=(*_notes(tars, unnamed=numbered and not names), *spelling),
    )


def write_index(path: Path, max_pixels: int = MAX_PIXELS) -> ShardIndex:
    """Read a local tar through and write its index beside it, as NAME.index.json. Raises `DataError`."""
    [tar] = _look(_locate(str(path)), str(path))
    index = _pass_through(tar, max_pixels)
    write_atomic(path.with_name(path.name.removesuffix(".tar") + INDEX_SUFFIX), pack_index(index, tar.size, max_pixels))
    return index


def _tars_in(folder: str) -> list[str]:
    """The tars in a folder of nothing but files, sorted; none where it holds a folder: that is a class then."""
    try:
        with os.scandir(folder) as entries:
            seen = [entry for entry in entries if not entry.name.startswith(".")]
            if any(entry.is_dir() for entry in seen):
                return []
    except OSError:  # whoever reads the folder says so
        return []
    return sorted(entry.name for entry in seen if entry.name.lower().endswith(".tar"))


def _locate(pattern: str) -> list[tuple[Any, str]]:
    """The tars that a pattern names, each as a file system and a path in it. What exists is no pattern."""
    try:
        from braceexpand import braceexpand
        from fsspec import filesystem
        from fsspec.core import url_to_fs
    except ImportError:
        raise MissingExtra(EXTRA, "tar shards") from None
    if pattern.lower().endswith(_COMPRESSED):
        raise DataError(f"{printable(pattern)} is compressed, so its images can't be read one by one: decompress it")
    near = filesystem("file")
    if os.path.isdir(pattern):
        return [(near, Path(os.path.abspath(pattern), name).as_posix()) for name in _tars_in(pattern)]
    found: list[tuple[Any, str]] = []
    try:
        for url in [pattern] if os.path.exists(pattern) else braceexpand(pattern, escape=False):
            far, path = url_to_fs(url) if "://" in url else (near, Path(os.path.abspath(url)).as_posix())
            folder = ".tar" not in path.rpartition("/")[2].lower()
            found += [(far, tar) for tar in (sorted(far.glob(path.rstrip("/") + "/*.tar")) if folder else [path])]
    except Exception as error:  # each file system has its own
        raise DataError(f"{printable(pattern)}: the shards can't be found: {one_line(error)}") from error
    return found


def _look(found: list[tuple[Any, str]], pattern: str) -> list[Tar]:
    """The tars with sizes and stamps. Raises `DataError` where one is missing or named twice, or there is none."""
    levels = zip(*(path.split("/")[:-1] for _, path in found), strict=False)
    above = sum(1 for _ in takewhile(lambda level: len(set(level)) == 1, levels))
    tars = [Tar("/".join(path.split("/")[above:]), path, files) for files, path in found]
    with ThreadPoolExecutor(_THREADS) as pool:
        looks = list(pool.map(_facts, tars))
    names = Counter(tar.name for tar in tars)
    problems = [
        f"{printable(tar.name)}: {look}" for tar, look in zip(tars, looks, strict=True) if isinstance(look, str)
    ]
    problems += [f"{printable(name)}: named {count} times" for name, count in names.items() if count > 1]
    if problems or not tars:
        problems = problems or ["no tar files found"]
        raise DataError(f"{printable(pattern)}: expected tar shards, e.g. shards-{{0000..0099}}.tar", problems)
    return [look for look in looks if isinstance(look, Tar)]


def _facts(tar: Tar) -> Tar | str:
    """The tar with its size and stamp, or what is wrong with it."""
    try:
        info = tar.files.info(tar.path)
    except FileNotFoundError:
        return "no such file"
    except Exception as error:  # each file system has its own
        return f"can't be opened: {one_line(error)}"
    if info.get("type") != "file":
        return "not a regular file"
    if not isinstance(info.get("size"), int):
        return "its size is unknown, so it can't be read by position"
    stamp = "; ".join(f"{key} {info[key]}" for key in _STAMPS if key in info)
    return replace(tar, size=info["size"], stamp=stamp)


def _indices(tars: list[Tar], max_pixels: int, progress: Callable[[int, int], None]) -> list[ShardIndex]:
    indices: list[ShardIndex] = []
    with ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as pool:
        for index in pool.map(lambda tar: _index(tar, max_pixels), tars):
            indices.append(index)
            progress(len(indices), len(tars))
    return indices


def _index(tar: Tar, max_pixels: int) -> ShardIndex:
    """The index of a tar: from the cache, from beside it, or from a pass over it; damage is one of its problems."""
    url = str(tar.files.unstrip_protocol(tar.path))
    key = "\0".join((url, str(max_pixels), PIL.__version__))  # a verdict on an image depends on Pillow
    cache = cache_folder() / "shards" / f"{sha256(os.fsencode(key)).hexdigest()[:24]}.json"
    try:
        known = unpack_index(cache.read_bytes(), tar.size, max_pixels, tar.stamp)
    except OSError:
        known = None
    if known is not None:
        return known
    try:
        index = _beside(tar, max_pixels) or _pass_through(tar, max_pixels)
    except DataError as error:
        return ShardIndex(problems=(str(error),))
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(cache, pack_index(index, tar.size, max_pixels, tar.stamp))
    except OSError:  # a full or read-only disk costs the next run some time, no more
        pass
    return index


def _beside(tar: Tar, max_pixels: int) -> ShardIndex | None:
    """The index that `write_index` left beside a tar, if it fits; images are checked against it as they are read."""
    try:
        data = tar.files.cat_file(tar.path.removesuffix(".tar") + INDEX_SUFFIX)
    except Exception:  # how a file is missing differs between file systems; without it the tar is read, or says why not
        return None
    return unpack_index(data, tar.size, max_pixels)


def _pass_through(tar: Tar, max_pixels: int) -> ShardIndex:
    try:
        with tar.files.open(tar.path, "rb") as file:
            return index_tar(file, tar.name, tar.size, max_pixels)
    except (DataError, MemoryError):
        raise
    except Exception as error:  # each file system has its own
        raise DataError(f"{printable(tar.name)} can't be opened: {one_line(error)}") from error


def _class_names(tar: Tar, index: ShardIndex) -> tuple[str, ...]:
    """The names of numbered classes: from beside the first tar, else from in it; () where there are none."""
    folder = tar.path.rpartition("/")[0]
    for name in CLASS_FILES:
        try:
            return parse_classes(name, tar.files.cat_file(f"{folder}/{name}"))
        except (FileNotFoundError, PermissionError):  # some stores forbid what is not there
            continue
        except Exception as error:  # each file system has its own
            raise DataError(f"{printable(name)} beside {printable(tar.name)}: {one_line(error)}") from error
    return index.classes


def _samples(rows: Iterable[tuple[Tar, Entry]], names: tuple[str, ...]) -> tuple[list[Sample], list[str]]:
    """A sample for each image, its class by its name; and what is wrong with the labels."""
    samples: list[Sample] = []
    problems: list[str] = []
    known = {nfc(name): name for name in names}
    for tar, entry in rows:
        ref, label = f"{tar.name}/{entry.name}", entry.label
        label = known.get(nfc(label), label) if isinstance(label, str) else label
        if isinstance(label, str) and names and nfc(label) not in known:
            problems.append(
                f"{printable(ref)}: the label {printable(label)!r} is not one of the {len(names)} named classes"
            )
        elif isinstance(label, int) and not 0 <= label < (len(names) or label + 1):
            problems.append(f"{printable(ref)}: the label is {label}; expected 0 to {len(names) - 1 if names else '…'}")
        else:
            name = label if isinstance(label, str) else names[label] if names else str(label)
            samples.append(Sample(ref, name, entry.group, _split(tar.name)))
    return samples, problems


def _split(name: str) -> str | None:
    """The split that one word in the name of a tar says: `imagenet-validation-07.tar`."""
    found = {split for word in re.split("[^a-z]+", name.lower()) if (split := split_meant(word))}
    return found.pop() if len(found) == 1 else None


def _split_problems(samples: list[Sample]) -> list[str]:
    given = {sample.split for sample in samples}
    without = next((sample.ref for sample in samples if sample.split is None), None)
    if given == {None} or not given:
        return []
    if without is not None:
        return [f"some tars have a split in their name, but not that of {printable(without)}"]
    return [] if "train" in given else ["no tar has train in its name"]


def _ordered(labels: set[str], names: tuple[str, ...], *, numbered: bool) -> tuple[str, ...]:
    """The classes that have images: as they are named, by their numbers, or by the bytes of their names."""
    if names:
        return tuple(name for name in names if name in labels)
    return tuple(sorted(labels, key=int) if numbered else sorted(labels, key=os.fsencode))


def _notes(tars: list[Tar], *, unnamed: bool) -> tuple[str, ...]:
    count = f"{len(tars):,} shard{'' if len(tars) == 1 else 's'}"
    return (count, f"no {' or '.join(CLASS_FILES)}: classes are named by their numbers") if unnamed else (count,)


def _name(pattern: str) -> str:
    """What a set of shards is called: the name of its folder, or that of its tars up to the number."""
    if os.path.isdir(pattern):
        return os.path.basename(os.path.abspath(pattern))
    return re.split(r"[{]|\.tar", pattern.rstrip("/").rpartition("/")[2])[0].strip("-_. ") or "shards"

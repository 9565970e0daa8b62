"""Folders of images: one sub-folder a class, or train, valid and test folders that hold such sub-folders."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from hashlib import file_digest
from io import BufferedReader
from typing import BinaryIO, NamedTuple

from imgclf.core.config import Levels
from imgclf.core.errors import DataError
from imgclf.core.text import natural, printable
from imgclf.data.classes import class_problems, in_one_form
from imgclf.data.dataset import SPLIT_NAMES, AtLeast, Pixels, Sample, Source
from imgclf.data.images import (
    CHANGED,
    MAX_PIXELS,
    BadImage,
    digest_pixels,
    file_kind,
    file_stamp,
    has_image_magic,
    is_image_name,
    open_regular,
    read_open,
)
from imgclf.data.sources.split_names import named_like_splits, split_meant

_JUNK = frozenset(
    ("__macosx", "thumbs.db", "desktop.ini", "@eadir", "lost+found", "$recycle.bin", "system volume information")
)
_NOT_AN_IMAGE = "not a supported image type"
_UNSUPPORTED = {
    **dict.fromkeys((".heic", ".heif"), "HEIC can't be read here: export the photos as JPEG"),
    **dict.fromkeys((".avi", ".m4v", ".mkv", ".mov", ".mp4", ".webm"), "a video: save its frames as images"),
}
_NO_CLASS = "not inside a class folder"
_AS_CSV = "list the images in a CSV (columns path and label)"


class Known(NamedTuple):
    """What an image file is held to: the sha256 of its bytes, and the stamp that it had when they were read."""

    sha256: str
    stamp: str


@dataclass(eq=False, repr=False)
class FileReader:
    """Reads images by their path below `root`; an absolute ref stays as it is. See `images.read_image`.

    What is `known` of a file by its ref, or was found by `digest`, has to stay: a file that changed is refused. Only
    one whose stamp is another is read for that.
    """

    root: str
    max_pixels: int = MAX_PIXELS
    _levels: tuple[Levels, ...] = ()
    _known: dict[str, Known] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.root = os.path.abspath(self.root)

    def at_levels(self, levels: tuple[Levels, ...]) -> FileReader:
        """See `DeepReader`."""
        return replace(self, _levels=levels)

    def holding(self, known: dict[str, Known]) -> FileReader:
        """The same, with other things known of its files, by their refs."""
        return replace(self, _known=known)

    def path(self, ref: str) -> str:
        """The file behind `ref`."""
        return os.path.join(self.root, ref)

    def open(self, ref: str, at_least: AtLeast = None) -> Pixels:
        """The pixels of one image as uint8 (height, width, 1 or 3). Raises `BadImage`."""
        with self.opened(ref) as file:
            return read_open(file, self.path(ref), at_least, self.max_pixels, self._levels)

    @contextmanager
    def opened(self, ref: str) -> Iterator[BinaryIO]:
        """The file of one image, to be read within. Raises `BadImage` where it can't be opened, or has changed."""
        with open_regular(self.path(ref)) as file:
            self._require_known(ref, file)
            yield file
            self._require_known(ref, file)  # it may be changing just now

    def _require_known(self, ref: str, file: BufferedReader) -> None:
        known, stamp = self._known.get(ref), file_stamp(os.fstat(file.fileno()))
        if known is None or known.stamp == stamp:
            return
        file.seek(0)
        if file_digest(file, "sha256").hexdigest() != known.sha256:
            raise BadImage(CHANGED, self.path(ref))
        file.seek(0)
        self._known[ref] = Known(known.sha256, stamp)

    def digest(self, ref: str) -> str:
        """The sha256 (hex) of the file's bytes, which it is held to from now on. Raises `BadImage`."""
        path = self.path(ref)
        with open_regular(path) as file:
            known, stamp = self._known.get(ref), file_stamp(os.fstat(file.fileno()))
            if known is not None and known.stamp == stamp:
                return known.sha256
            found = file_digest(file, "sha256").hexdigest()
        self._known.setdefault(ref, Known(found, stamp))
        return found

    def digest_pixels(self, ref: str) -> str:
        """See `images.digest_pixels`."""
        with self.opened(ref) as file:
            return digest_pixels(file.read(), os.path.splitext(ref)[1], self.max_pixels)


def open_folder(path: str | os.PathLike[str], *, max_pixels: int = MAX_PIXELS, strict: bool = True) -> Source:
    """The labeled images below a folder, as `Source`; nothing is decoded yet and nothing is written.

    Each sub-folder is a class, and the images anywhere below belong to it. Where `path` holds a train folder (and
    valid or test folders) with class folders in it, or each class folder holds such splits, each sample carries that
    split. Classes whose names are equal in NFC are one. `strict=False` is for evaluation: one class, a valid or test
    folder without a train folder, and folders that may be splits or classes will do.

    Raises one `DataError` that lists all problems.
    """
    root = os.fspath(path)
    shown = printable(root)
    if not os.path.isdir(root):
        problem = "it is a file" if os.path.exists(root) else "it does not exist"
        raise DataError(f"{shown}: expected a folder with one sub-folder of images per class; {problem}")
    scan = _Scan(root)
    layout = _split_folders(scan, strict=strict)
    samples, spelling = in_one_form(scan.samples(layout))
    if layout is not None:
        splits = {s.split for s in samples}
        used = sorted((ref for ref in layout if layout[ref] in splits), key=lambda ref: SPLIT_NAMES.index(layout[ref]))
        found = [f"{_some(used)} found"] if used else []
    else:
        samples, found = _splits_below(samples)
        scan.problems.extend(_unclear(samples) if strict and not scan.problems and not found else [])
    classes, notes = _judge_classes(samples, scan.problems, strict=strict)
    if strict:
        notes += _beside(root)
        scan.problems.extend(_deeper(samples, root) if len(classes) == 1 else [])
    if not samples:
        scan.problems.extend(f"skipped {item}" for item in _grouped(scan.skipped))
    closed = [f"{printable(ref) or 'the folder'} {reason}" for ref, reason in scan.unreadable]
    if scan.problems or closed:
        expected = ": expected one sub-folder of images per class" if len(classes) < 2 else ""
        raise DataError(f"{shown} can't be used{expected}", closed + scan.problems)
    return Source(
        name=os.path.basename(os.path.abspath(root)),
        classes=tuple(classes),
        samples=tuple(samples),
        reader=FileReader(root, max_pixels),
        location=root,
        skipped=_grouped(scan.skipped),
        notes=(*found, *spelling, *notes),
    )


def image_files(folder: str | os.PathLike[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """The image files anywhere below a folder, by the rules of `open_folder`, in natural order (2.png before 10.png);
    and the folders that can't be read, each with the reason. All paths are relative to `folder`, which itself is "".
    """
    scan = _Scan(os.fspath(folder))
    files = [*scan.top[1], *(sample.ref for sample in scan.samples(None))]
    return sorted(files, key=natural), scan.unreadable


@dataclass
class _Scan:
    """One walk through a data folder: what was passed over, what is wrong, and which folders have been seen."""

    root: str
    skipped: list[tuple[str, str]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    unreadable: list[tuple[str, str]] = field(default_factory=list)
    seen: set[tuple[int, int]] = field(default_factory=set)
    top: tuple[list[str], list[str]] = field(init=False)

    def __post_init__(self) -> None:
        self.claim("")
        self.top = self.listing("")

    def claim(self, ref: str) -> bool:
        """Whether this folder has not been walked before, by whatever name."""
        try:
            found = os.stat(os.path.join(self.root, ref))
        except OSError:  # named when it is listed
            return True
        new = (found.st_dev, found.st_ino) not in self.seen
        self.seen.add((found.st_dev, found.st_ino))
        return new

    def listing(self, ref: str) -> tuple[list[str], list[str]]:
        """The refs of the folders and of the image files in a folder, each sorted by bytes; the rest is ignored."""
        folders: list[str] = []
        files: list[str] = []
        try:
            with os.scandir(os.path.join(self.root, ref)) as entries:
                ordered = sorted(entries, key=lambda entry: os.fsencode(entry.name))
        except OSError as error:
            self.unreadable.append((ref, f"can't be read: {(error.strerror or str(error)).lower()}"))
            return [], []
        for entry in ordered:
            below = f"{ref}/{entry.name}" if ref else entry.name
            reason = _why_not(entry)
            if reason:
                self.skipped.append((below + "/" * _is_dir(entry), reason))
            else:
                (folders if _is_dir(entry) else files).append(below)
        return folders, files

    def walk(self, ref: str, links: list[str]) -> list[str]:
        """The image files anywhere below a folder; linked folders are put off into `links`."""
        files: list[str] = []
        pending = [ref]
        while pending:
            folder = pending.pop()
            if not self.claim(folder):
                self.skipped.append((f"{folder}/", "a link to a folder that was read already"))
                continue
            inner, found = self.listing(folder)
            files += found
            for below in inner:
                (links if self.is_link(below) else pending).append(below)
        return files

    def is_link(self, ref: str) -> bool:
        """Whether a ref is a symbolic link."""
        return os.path.islink(os.path.join(self.root, ref))

    def samples(self, layout: dict[str, str] | None) -> list[Sample]:
        """All images with their class and split, sorted by the bytes of their path."""
        tops = self._class_folders(layout)
        found: list[Sample] = []
        # Real folders first: an image is known by its own path, and a link into another class must not take it away.
        pending = sorted(tops, key=self.is_link)
        owner = {ref: ref for ref in pending}
        for ref in pending:
            links: list[str] = []
            label, split = tops[owner[ref]]
            files = self.walk(ref, links)
            if not files and not links and ref in tops:
                self.skipped.append((f"{ref}/", "a folder without images"))
            found.extend(Sample(file, label, split=split) for file in files)
            owner.update((link, owner[ref]) for link in links)
            pending.extend(links)
        return sorted(found, key=lambda sample: os.fsencode(sample.ref))

    def _class_folders(self, layout: dict[str, str] | None) -> dict[str, tuple[str, str | None]]:
        """The folder of each class (in each split), with the class's name and the split."""
        folders, files = self.top
        self.skipped.extend((file, _NO_CLASS) for file in files)
        if layout is None:
            return {ref: (ref, None) for ref in folders}
        used = {ref.partition("/")[0] for ref in layout}
        self.skipped.extend((f"{ref}/", "beside the split folders") for ref in folders if ref not in used)
        tops: dict[str, tuple[str, str | None]] = {}
        for ref, split in layout.items():
            inner, stray = self.listing(ref)
            self.skipped.extend((file, _NO_CLASS) for file in stray)
            self.skipped.extend([] if inner else [(f"{ref}/", "a split folder without class folders")])
            tops.update((folder, (os.path.basename(folder), split)) for folder in inner)
        return tops

    def has_images(self, ref: str) -> bool:
        """Whether there is an image anywhere below a folder; linked folders in it are left aside."""
        pending = [os.path.join(self.root, ref)]
        while pending:
            entries = _entries(pending.pop())
            if not all(map(_is_dir, entries)):
                return True
            pending += [entry.path for entry in entries if not entry.is_symlink()]
        return False


def _entries(path: str) -> list[os.DirEntry[str]]:
    """The folders and images in a folder, in no order; none where it can't be read, which is said when it is walked."""
    try:
        with os.scandir(path) as entries:
            return [entry for entry in entries if not _why_not(entry)]
    except OSError:
        return []


def _is_dir(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads in a circle
        return False


def _why_not(entry: os.DirEntry[str]) -> str | None:
    """Why an entry is passed over; None for folders and images."""
    if entry.name.startswith("."):
        return "hidden"
    if entry.name.lower() in _JUNK:
        return "left by an operating system"
    if _is_dir(entry):
        return None
    try:
        if not entry.is_file():
            return f"{file_kind(entry.stat().st_mode)}, not a regular file"
    except OSError:
        return "a broken link"
    suffix = os.path.splitext(entry.name)[1].lower()
    if is_image_name(entry.name) or (not suffix and has_image_magic(entry.path)):
        return None
    return _UNSUPPORTED.get(suffix, _NOT_AN_IMAGE)


def _split_folders(scan: _Scan, *, strict: bool) -> dict[str, str] | None:
    """Which of the top folders are splits; None where the top folders are classes, or (when `strict`, a problem) may be
    either.
    """
    folders = scan.top[0]
    named = {ref: split for ref in folders if (split := split_meant(ref))}
    holding = [ref for ref in named if any(map(_is_dir, _entries(os.path.join(scan.root, ref))))]
    if not holding:
        return None
    beside = [ref for ref in folders if ref not in named and scan.has_images(ref)]
    train = [ref for ref in holding if named[ref] == "train"]
    if beside and not (train and len(named) > 1):
        if strict:
            scan.problems.append(_either(scan, (train or holding)[0], beside))
        return None
    by_split: dict[str, list[str]] = defaultdict(list)
    for ref, split in named.items():
        if ref in holding or scan.has_images(ref):
            by_split[split].append(f"{ref}/")
    scan.problems.extend(
        f"{' and '.join(printable(ref) for ref in refs)} both mean {split}: keep one"
        for split, refs in by_split.items()
        if len(refs) > 1
    )
    return {_unwrapped(scan, ref, split): split for ref, split in named.items()}


def _either(scan: _Scan, ref: str, beside: list[str]) -> str:
    """The problem with a folder that is named like a split, holds folders, and has class folders beside it."""
    inside = sorted(entry.name for entry in _entries(os.path.join(scan.root, ref)) if _is_dir(entry))
    return (
        f"{printable(ref)}/ may be a split or a class: it holds folders ({_some(inside, '')}), and {_some(beside)} "
        f"{'is' if len(beside) == 1 else 'are'} beside it. Move what does not belong to the splits elsewhere or, if "
        f"it is a class, {_AS_CSV}"
    )


def _unwrapped(scan: _Scan, ref: str, split: str) -> str:
    """The folder with the classes of a split: the one of the same name in it, where there is nothing else."""
    while True:
        entries = _entries(os.path.join(scan.root, ref))
        if len(entries) != 1 or not _is_dir(entries[0]) or split_meant(entries[0].name) != split:
            return ref
        scan.listing(ref)  # for what is passed over
        ref = f"{ref}/{entries[0].name}"


def _inside(samples: list[Sample]) -> dict[str, set[str]]:
    """What folders with images each top folder holds, directly; "" where images lie in itself."""
    inside: dict[str, set[str]] = defaultdict(set)
    for folder in sorted({sample.ref.rpartition("/")[0] for sample in samples}):
        top, _, below = folder.partition("/")
        inside[top].add(below.partition("/")[0])
    return inside


def _splits_below(samples: list[Sample]) -> tuple[list[Sample], list[str]]:
    """The samples with their splits where every class folder holds split folders (`cat/train/`), and a note on it."""
    splits = {name: split_meant(name) for names in _inside(samples).values() for name in names}
    if "train" not in splits.values() or None in splits.values():
        return samples, []
    divided = [replace(sample, split=splits[sample.ref.split("/")[1]]) for sample in samples]
    ordered = sorted(splits, key=lambda name: (SPLIT_NAMES.index(str(splits[name])), name))
    return divided, [f"{_some(ordered)} found below each class"]


def _unclear(samples: list[Sample]) -> list[str]:
    """Why the top folders may be no classes: by their names, or by what is in them."""
    inside = _inside(samples)
    splits = named_like_splits(inside)
    if splits:
        return [
            f"{_some(splits)} are named like splits, not like classes: call them train/, val/ and test/, with one "
            f"folder per class in each. If they are classes, {_AS_CSV}"
        ]
    for top, names in inside.items():
        parts = sorted(filter(split_meant, names))
        if len({split_meant(name) for name in parts}) > 1:
            return [
                f"{printable(top)}/ holds {_some(parts)}, and not every class folder holds such splits alone: move the "
                f"splits to the top (train/{printable(top)}/), or list the images in a CSV (columns path, label, split)"
            ]
    shared = set.intersection(*inside.values()) if len(inside) > 1 else set()
    if len(shared) > 1 and not any("" in names for names in inside.values()):
        return [
            f"{_some(list(inside))} all hold {_some(sorted(shared))}: if those are the classes, call the outer folders "
            f"train/, val/ and test/, or train on one of them; if the outer ones are, {_AS_CSV}"
        ]
    return []


def _some(refs: list[str], mark: str = "/", most: int = 3) -> str:
    """The first few of some folders, as "a/, b/ and c/"."""
    shown = [f"{printable(ref)}{mark}" for ref in refs[:most]]
    if len(refs) > most:
        return ", ".join([*shown, "…"])
    *before, last = shown
    return f"{', '.join(before)} and {last}" if before else last


def _judge_classes(samples: list[Sample], problems: list[str], *, strict: bool) -> tuple[list[str], list[str]]:
    """The classes in the order of their bytes, and notes on them; what is wrong is added to `problems`."""
    given = {s.split for s in samples} - {None}
    own = {s.label for s in samples if not (strict and given) or s.split == "train"}
    classes = sorted(own, key=os.fsencode)
    notes: list[str] = []
    if not samples:
        problems.append("no images found in its sub-folders")
        return classes, notes
    if strict and not classes:
        problems.append("there is no train folder with images beside the valid or test folder")
        return classes, notes
    for split in SPLIT_NAMES[1:]:
        there = {s.label for s in samples if s.split == split}
        missing = sorted(own - there, key=os.fsencode)
        if there and missing:
            notes.append(f"{split} holds no image of {', '.join(map(printable, missing))}")
    if strict:
        problems.extend(class_problems(samples))
    return classes, notes


def _deeper(samples: list[Sample], root: str) -> list[str]:
    """The hint that the folder meant is the only one in this one, where that holds folders and no images."""
    inside = _inside(samples)
    (top, names), *others = inside.items()
    if others or len(names) < 2 or "" in names:
        return []
    return [f"did you mean {printable(os.path.join(root, top))}?"]


def _beside(root: str) -> list[str]:
    """A note where the folder is the train folder of a split one, whose other parts are left out."""
    parent, name = os.path.split(os.path.abspath(root))
    if split_meant(name) != "train":
        return []
    others = sorted(entry.name for entry in _entries(parent) if _is_dir(entry))
    others = [other for other in others if split_meant(other) in SPLIT_NAMES[1:]]
    if not others:
        return []
    return [
        f"{_some(others)} beside it {'is' if len(others) == 1 else 'are'} not used: for that, name {printable(parent)}"
    ]


def _grouped(skipped: list[tuple[str, str]]) -> tuple[str, ...]:
    """What was passed over as "path: reason"; many of one kind in one line, as "12 files ending .txt: reason"."""
    groups: dict[tuple[str, str], list[str]] = defaultdict(list)
    for ref, reason in skipped:
        name = os.path.basename(ref.rstrip("/"))
        suffix = os.path.splitext(name)[1].lower()
        kind = f"files ending {printable(suffix)}" if suffix else f"files named {printable(name)}"
        if ref.endswith("/"):
            kind = f"folders named {printable(name)}"
        groups[kind, reason].append(ref)
    return tuple(
        f"{printable(refs[0])}: {reason}" if len(refs) == 1 else f"{len(refs)} {kind}: {reason}"
        for (kind, reason), refs in groups.items()
    )

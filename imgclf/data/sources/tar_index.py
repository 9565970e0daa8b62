"""What lies in a tar by the conventions of WebDataset: one pass over it gives its index.

Nothing is ever unpacked, and no name in a tar is used as a path.
"""

from __future__ import annotations

import json
import posixpath
import re
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import astuple, dataclass, field, replace
from hashlib import sha256
from typing import Any, BinaryIO

from imgclf.core.errors import DataError
from imgclf.core.files import seal, unseal
from imgclf.core.text import nfc, one_line, printable
from imgclf.data.images import MAX_PIXELS, BadImage, ImageFacts, check_image, is_image_name

CLASS_FILES = ("classes.json", "classes.txt")
LABELS = ("cls", "json", "txt")  # the first that a key has decides
MAX_HEADER = 2**20
MAX_LABEL = 2**20
MAX_IMAGE = 2**30
_FORMAT = 8
_BLOCK = 512
_TAIL = 2**16
# The first dot in a file's name ends its key: webdataset.tariterators.base_plus_ext.
_KEY = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]*)", re.DOTALL)


@dataclass(frozen=True)
class Entry:
    """One image in a tar: where its bytes lie, its raw label (an int is a number of a class), and what a look found."""

    name: str
    offset: int
    size: int
    label: str | int
    group: str | None
    facts: ImageFacts


@dataclass(frozen=True)
class ShardIndex:
    """What one pass over a tar found: its images, the names of classes it brings, what was passed over, problems."""

    entries: tuple[Entry, ...] = ()
    classes: tuple[str, ...] = ()
    passed_over: Mapping[str, int] = field(default_factory=dict)
    problems: tuple[str, ...] = ()


def index_tar(file: BinaryIO, name: str, size: int, max_pixels: int = MAX_PIXELS) -> ShardIndex:
    """Read a tar of `size` bytes through once, from beginning to end; `name` is what messages call it.

    Raises `DataError` where it can't be read, is damaged, or ends too early.
    """
    scan = _Scan(name, max_pixels)
    try:
        for member in _members(file, size):
            scan.take(member, file)
    except MemoryError:
        raise
    except Exception as error:  # each file system has its own; tarfile fails on hostile headers in many ways
        raise DataError(f"{printable(name)} can't be read as a tar: {one_line(error)}") from error
    return scan.index()


def pack_index(index: ShardIndex, size: int, max_pixels: int, stamp: str = "") -> bytes:
    """An index as JSON, with what it holds for: a tar of `size` bytes, a limit on pixels, a stamp of the file. A seal
    follows, by which damage is known (`imgclf.core.files`)."""
    content = {
        **_header(size, max_pixels, stamp),
        "classes": index.classes,
        "passed_over": index.passed_over,
        "problems": index.problems,
        "images": [astuple(entry) for entry in index.entries],
    }
    data = json.dumps(content, separators=(",", ":")).encode()
    return data + seal(data)


def unpack_index(data: bytes, size: int, max_pixels: int, stamp: str = "") -> ShardIndex | None:
    """The index that `pack_index` gave; None where it is none, is damaged, or holds for another file or limit."""
    try:
        content = json.loads(bytes(unseal(data)))
        if {key: content[key] for key in _header(0, 0, "")} != _header(size, max_pixels, stamp):
            return None
        entries = tuple(Entry(*[*place, ImageFacts.from_row(facts)]) for *place, facts in content["images"])
        classes, problems = (tuple(content[key]) for key in ("classes", "problems"))
        return ShardIndex(entries, classes, content["passed_over"], problems)
    except (ValueError, TypeError, KeyError):
        return None


def parse_classes(name: str, data: bytes) -> tuple[str, ...]:
    """The names in a classes.json (a list) or a classes.txt (a line each). Raises `ValueError`."""
    text = data.decode("utf-8-sig")
    names = json.loads(text) if name.endswith(".json") else [line.strip() for line in text.rstrip().splitlines()]
    if not isinstance(names, list) or not all(isinstance(item, str) and item for item in names):
        raise ValueError("expected a list of class names")
    if len(set(map(nfc, names))) < len(names):
        raise ValueError("it names a class twice")
    return tuple(names)


def _header(size: int, max_pixels: int, stamp: str) -> dict[str, Any]:
    return {"format": _FORMAT, "bytes": size, "max_pixels": max_pixels, "stamp": stamp}


class _Guard:
    """A file as `tarfile` reads its headers: none of them makes it take more than a megabyte of memory."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int) -> bytes:
        if not 0 <= size <= MAX_HEADER:
            raise tarfile.ReadError(f"a header claims {size:,} bytes")
        return self._file.read(size)


def _members(file: BinaryIO, size: int) -> Iterator[tarfile.TarInfo]:
    """The members of a tar of `size` bytes, one by one, none of which reaches beyond it."""
    guard: Any = _Guard(file)
    with tarfile.open(fileobj=guard, mode="r:", encoding="utf-8") as tar:
        while (member := tar.next()) is not None:
            tar.members = []  # type: ignore[attr-defined]  # it would keep them all
            stored = member.size if member.isreg() and not member.issparse() else 0
            if member.size < 0 or member.offset_data + stored > size:
                raise tarfile.ReadError(f"{printable(member.name)} claims {member.size:,} bytes, more than there are")
            yield member
        file.seek(tar.offset)
        tail = file.read(_TAIL)  # `tarfile` takes any wrong header but the first for the end
        if len(tail) < _BLOCK or tail.strip(b"\0"):
            raise tarfile.ReadError(f"it is damaged or truncated at byte {tar.offset:,}")


@dataclass
class _Item:
    """The members of one key."""

    images: list[Entry] = field(default_factory=list)
    labels: dict[str, str | int] = field(default_factory=dict)
    group: str | None = None


class _Scan:
    """One pass over a tar: its members sorted into keys."""

    def __init__(self, tar_name: str, max_pixels: int) -> None:
        self._tar_name = tar_name
        self._max_pixels = max_pixels
        self._items: dict[str, _Item] = {}
        self._passed: Counter[str] = Counter()
        self._problems: list[str] = []
        self._classes: tuple[str, ...] = ()

    def take(self, member: tarfile.TarInfo, file: BinaryIO) -> None:
        """Sort one member in; its bytes are read only where they are an image or a label."""
        parts = [part for part in member.name.split("/") if part not in ("", ".")]
        name = "/".join(parts)
        found = _KEY.fullmatch(name)
        if member.isdir():
            return
        if not member.isreg() or member.issparse():
            self._passed["links, devices and the like: only regular members are read"] += 1
        elif any(part.startswith(".") for part in parts) or name.startswith("__"):
            self._passed["hidden members"] += 1
        elif name in CLASS_FILES:
            self._try(name, lambda: self._name_classes(name, _content(file, member, MAX_LABEL)))
        elif found and is_image_name(name):
            self._items.setdefault(found[1], _Item()).images.append(self._image(name, member, file))
        elif found and (kind := found[2].lower()) in LABELS:
            item = self._items.setdefault(found[1], _Item())
            self._try(name, lambda: _read_label(item, kind, _content(file, member, MAX_LABEL)))
        else:
            suffix = posixpath.splitext(name)[1].lower()
            kind = f"members ending {printable(suffix)}" if suffix else "members without an extension"
            self._passed[f"{kind}: neither image nor label"] += 1

    def index(self) -> ShardIndex:
        """What was found, in the order of the tar."""
        entries = []
        for key, item in self._items.items():
            if not item.images:
                self._passed["keys without an image"] += 1
                continue
            labels = [item.labels[kind] for kind in LABELS if kind in item.labels]
            labels += key.split("/")[:-1][:1]
            if len(item.images) > 1:
                named = ", ".join(printable(image.name) for image in item.images)
                self._problems.append(f"{self._shown(key)} has several images: {named}")
            elif not labels:
                self._problems.append(f"{self._shown(key)} has no label: expected .cls, .txt, or .json with a label")
            else:
                entries.append(replace(item.images[0], label=labels[0], group=item.group))
        return ShardIndex(tuple(entries), self._classes, dict(self._passed), tuple(self._problems))

    def _image(self, name: str, member: tarfile.TarInfo, file: BinaryIO) -> Entry:
        if member.size > MAX_IMAGE:
            facts = ImageFacts(reason=f"a file of {member.size:,} bytes; at most {MAX_IMAGE:,} are read")
        else:
            data = _content(file, member, MAX_IMAGE)
            try:
                facts = check_image(data, max_pixels=self._max_pixels)
            except BadImage as error:
                facts = ImageFacts(reason=error.reason)
            facts = replace(facts, sha256=sha256(data).hexdigest())
        return Entry(name, member.offset_data, member.size, "", None, facts)

    def _name_classes(self, name: str, data: bytes) -> None:
        self._classes = parse_classes(name, data)

    def _try(self, name: str, step: Callable[[], None]) -> None:
        try:
            step()
        except (ValueError, RecursionError) as error:
            self._problems.append(f"{self._shown(name)}: {one_line(error)}")

    def _shown(self, name: str) -> str:
        return printable(f"{self._tar_name}/{name}")


def _content(file: BinaryIO, member: tarfile.TarInfo, most: int) -> bytes:
    if member.size > most:
        raise ValueError(f"{member.size:,} bytes are too many; at most {most:,} are read")
    file.seek(member.offset_data)
    data = file.read(member.size)
    if len(data) < member.size:
        raise tarfile.ReadError(f"it ends within {printable(member.name)}")
    return data


def _read_label(item: _Item, kind: str, data: bytes) -> None:
    """Note the label, and the group, that one member gives. Raises `ValueError`."""
    value: Any = data.decode("utf-8-sig").strip()
    if kind == "json":
        content = json.loads(value)
        content = content if isinstance(content, dict) else {}
        item.group = None if content.get("group") is None else str(content["group"])
        value = content.get("label")
        if value is None:
            return
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise ValueError(f"the label is {value!r}; expected a name or a number")
    numeric = isinstance(value, str) and re.fullmatch(r"-?[0-9]{1,9}", value)
    item.labels[kind] = int(value) if numeric else value

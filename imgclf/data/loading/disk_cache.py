"""Pixels that are decoded once and stay on the disk: memory-mapped files in the user's cache folder.

Each form of pixels has a folder, and in it segments: files that are written once, synced, renamed into place and never
changed. An image is found by the sha256 of its content, so another split, another seed or a folder that has grown
finds what is there. A segment is the pixels one after the other, then the index, then its seal:

    pixels …    uint8 (height, width, channels)
    index       one `ENTRY` an image, little-endian
    seal        the bytes of the index and their CRC-32, see `imgclf.core.files.seal`

A file without a seal, or with an index that does not fit, is passed over; an image is checked by its CRC-32 the
first time it is read. Any number of processes may build one cache: each writes segments of its own.
"""

from __future__ import annotations

import json
import mmap
import os
import secrets
import shutil
import threading
import time
import zlib
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from imgclf.core.errors import ConfigError
from imgclf.core.files import cache_folder, seal, sync_folder, unseal, write_atomic
from imgclf.data.dataset import Pixels

DISK_SHARE = 0.2
SUFFIX = ".pixels"
SETTINGS_FILE = "form.json"
# Other folders of the cache.
OTHER_FOLDERS = {
    "audit": "which files can be read",
    "openvino": "networks compiled for this processor",
    "shards": "what lies in tar shards",
}
ORPHAN_SECONDS = 3600.0
DECODERS = ("pillow", "simplejpeg", "opencv-python-headless")
_FORMAT = 5


class _Entry(NamedTuple):
    """The place of an image in its segment, the shape of its cached pixels, and the sides of the whole image."""

    digest: bytes
    offset: int
    bytes: int
    crc: int
    height: int
    width: int
    channels: int
    full_height: int
    full_width: int


ENTRY = np.dtype(list(zip(_Entry._fields, ("V32", "<u8", "<u8", *["<u4"] * 6), strict=True)))


class CachedImage(NamedTuple):
    """The cached pixels of an image, uint8 (height, width, channels), and the (height, width) of the whole image."""

    pixels: Pixels
    shape: tuple[int, int]


@dataclass(frozen=True)
class CacheEntry:
    """One form of the cache, or what the audit remembers: its name, what it holds, and when it was last used."""

    name: str
    about: str
    images: int | None
    bytes: int
    used: float


def pixel_folder() -> Path:
    """The folder of the pixels of all forms; it may not exist yet."""
    return cache_folder() / "pixels"


def disk_room() -> int:
    """The bytes that may still be written: 20 % of what would be free without the cache, less the cache itself.

    The variable `IMGCLF_CACHE_BUDGET` (bytes) takes the place of the 20 %.
    """
    taken = sum(found.st_size for found in _stats(pixel_folder().glob("*/*")))
    if own := os.environ.get("IMGCLF_CACHE_BUDGET"):
        if not own.isdecimal():
            raise ConfigError(f"IMGCLF_CACHE_BUDGET is {own!r}; expected a number of bytes, like 2000000000")
        return max(0, int(own) - taken)
    there = next(folder for folder in (pixel_folder(), *pixel_folder().parents) if folder.exists())
    return max(0, int((shutil.disk_usage(there).free + taken) * DISK_SHARE) - taken)


def form_key(settings: Mapping[str, object]) -> tuple[str, dict[str, object]]:
    """The name of a form's folder, and all that its pixels depend on: its settings, and who decodes."""
    decoders = {name: _version(name) for name in DECODERS}
    settings = {**settings, "format": _FORMAT, **decoders}
    return sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16], settings


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


class PixelCache:
    """The images of one form on the disk: found by their digest, added while an epoch runs, kept by `seal`.

    `settings` are what the pixels of a form depend on, as JSON values.

    May be used from several threads and by several processes at once. What is not added, because the budget is spent
    or the disk is full, is read again each time.
    """

    def __init__(self, settings: Mapping[str, object]) -> None:
        key, self._settings = form_key(settings)
        self._folder = pixel_folder() / key
        self._room: int | None = None
        self._segments: dict[str, memoryview] = {}
        self._found: dict[bytes, tuple[memoryview, _Entry]] = {}
        self._checked: set[bytes] = set()
        self._writer: _Writer | None = None
        self._lock = threading.Lock()
        self.refresh()

    def holds(self, digests: Iterable[str]) -> int:
        """How many of the digests are cached."""
        return sum(bytes.fromhex(digest) in self._found for digest in digests)

    def refresh(self) -> None:
        """Take in the segments that were sealed since, by this process or by others."""
        with suppress(OSError):
            os.utime(self._folder / SETTINGS_FILE)
        for path in sorted(self._folder.glob(f"*{SUFFIX}")):
            if path.name not in self._segments:
                data, index = _open_segment(path)
                self._segments[path.name] = data
                fresh = {row[0]: (data, _Entry(*row)) for row in index.tolist() if row[0] not in self._checked}
                self._found.update(fresh)

    def find(self, digest: str) -> CachedImage | None:
        """The cached pixels of an image, read-only; None if they are missing or damaged."""
        key = bytes.fromhex(digest)
        found = self._found.get(key)
        if found is None:
            return None
        data, entry = found
        payload = data[entry.offset : entry.offset + entry.bytes]
        if key not in self._checked:
            if zlib.crc32(payload) != entry.crc:
                self._found.pop(key, None)
                return None
            self._checked.add(key)
        shape = (entry.height, entry.width, entry.channels)
        return CachedImage(np.frombuffer(payload, np.uint8).reshape(shape), (entry.full_height, entry.full_width))

    def add(self, digest: str, kept: CachedImage) -> None:
        """Write the pixels of an image."""
        payload = np.ascontiguousarray(kept.pixels).data.cast("B")
        with self._lock:
            self._room = disk_room() if self._room is None else self._room
            if len(payload) <= self._room:
                try:
                    self._writer = self._writer or _Writer(self._folder, self._settings)
                    self._room -= self._writer.write(bytes.fromhex(digest), payload, kept)
                except OSError:  # a full or read-only disk costs time, no more
                    self._room = 0

    def seal(self) -> None:
        """Write added images for good, unless other processes have written all of them meanwhile."""
        with self._lock:
            writer, self._writer = self._writer, None
            self.refresh()
            if writer is None:
                return
            new = any(key not in self._found for key in writer.digests)
            try:
                writer.finish() if new else writer.abandon()
            except OSError:  # cleared away meanwhile, or the disk is full
                writer.abandon()
                self._room = 0
            self.refresh()


class _Writer:
    """A segment in the making: a temporary file."""

    def __init__(self, folder: Path, settings: dict[str, object]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        _remove_orphans(folder)
        if not (folder / SETTINGS_FILE).exists():
            data = json.dumps(settings).encode()
            write_atomic(folder / SETTINGS_FILE, data, seal(data))
        self._name = f"{time.time_ns():x}-{secrets.token_hex(4)}"
        self._path = folder / f".{self._name}.tmp"
        self._file = open(self._path, "xb")  # noqa: SIM115  # closed by finish or abandon
        self._rows: list[tuple[Any, ...]] = []
        self._end = 0
        self.digests: set[bytes] = set()

    def write(self, key: bytes, payload: bytes | memoryview, kept: CachedImage) -> int:
        """Append one image; gives the bytes written, 0 if it was written before."""
        if key in self.digests:
            return 0
        self._file.write(payload)
        self._rows.append((key, self._end, len(payload), zlib.crc32(payload), *kept.pixels.shape, *kept.shape))
        self._end += len(payload)
        self.digests.add(key)
        return len(payload) + ENTRY.itemsize

    def finish(self) -> None:
        """Write the index, sync, and give the file its name."""
        index = np.array(self._rows, ENTRY).tobytes()
        self._file.write(index + seal(index))
        self._file.flush()
        os.fsync(self._file.fileno())
        os.rename(self._path, self._path.with_name(self._name + SUFFIX))
        self._file.close()
        sync_folder(self._path.parent)

    def abandon(self) -> None:
        """Remove the file."""
        with suppress(OSError):  # what is still in the buffer may not fit the disk
            self._file.close()
        with suppress(OSError):
            self._path.unlink(missing_ok=True)


def _remove_orphans(folder: Path) -> None:
    """Remove the temporary files of processes that have died: nothing was written to them for an hour."""
    for path in folder.glob(".*.tmp"):
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > ORPHAN_SECONDS:
                path.unlink()


def _open_segment(path: Path) -> tuple[memoryview, np.ndarray[Any, np.dtype[np.void]]]:
    """A segment's bytes, and its index; empty where it is no whole segment."""
    try:
        with open(path, "rb") as file:
            data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        return data, np.frombuffer(unseal(data), ENTRY)
    except (OSError, ValueError):  # an empty file cannot be mapped
        return memoryview(b""), np.empty(0, ENTRY)


def _stats(paths: Iterable[Path]) -> list[os.stat_result]:
    """The stat results of files, without those that another process renames or removes meanwhile."""
    found = []
    for path in paths:
        with suppress(OSError):
            found.append(path.stat())
    return found


def list_cache() -> list[CacheEntry]:
    """The entries of the cache: each form of pixels, last used first, then what the other folders hold."""
    forms = [_form_entry(folder) for folder in pixel_folder().glob("*") if folder.is_dir()]
    entries = sorted(forms, key=lambda entry: (-entry.used, entry.name))
    for name, about in OTHER_FOLDERS.items():
        found = _stats((cache_folder() / name).glob("*.*"))
        if found:
            taken, used = sum(f.st_size for f in found), max(f.st_mtime for f in found)
            entries.append(CacheEntry(name, about, None, taken, used))
    return entries


def _form_entry(folder: Path) -> CacheEntry:
    files = [path for path in folder.glob("*") if path.is_file()]
    images = sum(len(_open_segment(path)[1]) for path in files if path.suffix == SUFFIX)
    try:
        about = _in_words(json.loads(bytes(unseal((folder / SETTINGS_FILE).read_bytes()))))
    except (OSError, ValueError, TypeError, KeyError):
        about = "unknown"
    found = _stats(files)
    taken, used = sum(f.st_size for f in found), max((f.st_mtime for f in found), default=0.0)
    return CacheEntry(folder.name, about, images, taken, used)


def _in_words(settings: dict[str, Any]) -> str:
    color = "gray" if settings["channels"] == 1 else f"{settings['channels']} channels"
    if "kept_side" in settings:
        return f"short side {settings['kept_side']}, {color}"
    height, width = settings["size"]
    return f"{height}×{width} {settings['resize_mode']}, {color}"


def clear_cache(name: str = "") -> int:
    """Remove one entry of the list by its name, or all of it; gives the bytes that became free."""
    entries = [entry for entry in list_cache() if name in ("", entry.name)]
    before = sum(entry.bytes for entry in entries)
    for entry in entries:
        folder = cache_folder() / entry.name if entry.images is None else pixel_folder() / entry.name
        shutil.rmtree(folder, ignore_errors=True)  # Windows keeps what a run has open
    left = {entry.name: entry.bytes for entry in list_cache()}
    return before - sum(left.get(entry.name, 0) for entry in entries)

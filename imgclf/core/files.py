"""The one way to save, also with a checksum, and text that is safe to print or to open in a spreadsheet."""

from __future__ import annotations

import csv
import errno
import io
import os
import re
import secrets
import tempfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

FULL = (errno.ENOSPC, errno.EDQUOT)
SEAL = re.compile(rb"\nimgclf ([0-9a-f]{16}) ([0-9a-f]{8})\n")  # the bytes before it, and their CRC-32
SEAL_BYTES = 34
PICTURES = (".png", ".jpg", ".jpeg", ".pdf", ".svg")  # how the name of a picture may end
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "'")


@contextmanager
def atomic_file(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A file to write whose content gets to `path` when it is whole: a crash at any moment leaves the old or the new.

    A temporary file in the same folder is written, flushed to the disk and renamed, and the folder is flushed as well.
    The file's mode follows the umask. An `OSError` of the system's calls names `path`.
    """
    target = Path(path)
    if not target.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, "no such folder", str(target.parent))
    temporary = target.with_name(f".{target.name[:100]}.{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
        sync_folder(target.parent)
    except BaseException as error:
        with suppress(OSError):  # what went wrong first is what is told
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename in (None, str(temporary), temporary):
            raise OSError(error.errno, error.strerror or str(error), str(target)) from error
        raise


def write_atomic(path: str | os.PathLike[str], *parts: bytes | memoryview) -> None:
    """Write the parts to `path` through `atomic_file`; the `OSError` of a full disk says how many bytes there are."""
    try:
        with atomic_file(path) as file:
            file.writelines(parts)
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise OSError(error.errno, f"{error.strerror}, {sum(map(len, parts)):,} bytes are needed", str(path)) from error


def seal(data: bytes | memoryview) -> bytes:
    """What follows `data`, bytes, where damage must not be taken for data: their number and CRC-32, on a line."""
    return b"\nimgclf %016x %08x\n" % (len(data), zlib.crc32(data))


def unseal(data: bytes | memoryview) -> memoryview:
    """The bytes before the seal that ends `data`, as many as it counts. Raises `ValueError` where they don't fit it."""
    found = SEAL.fullmatch(data[-SEAL_BYTES:])
    if found is None:
        raise ValueError("it ends without a checksum")
    begin = len(data) - SEAL_BYTES - int(found[1], 16)
    content = memoryview(data)[max(0, begin) : len(data) - SEAL_BYTES]
    if begin < 0 or zlib.crc32(content) != int(found[2], 16):
        raise ValueError("its checksum does not match its content")
    return content


def require_writable(path: str | os.PathLike[str]) -> None:
    """Raise `OSError` where no file can be written to `path`. Nothing is left there; missing folders stay missing."""
    target = Path(path).absolute()
    with suppress(FileNotFoundError, NotADirectoryError):
        target.lstat()  # which knows names that are too long
    there = next(folder for folder in target.parents if os.path.lexists(folder))
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(there)) from error


def sync_folder(folder: Path) -> None:
    """Make the names in a folder as durable as the files are."""
    if os.name == "nt":  # Windows can't open a folder, and its rename is durable without
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write text as UTF-8 through `write_atomic`; bytes of file names that are no UTF-8 come out as they were."""
    write_atomic(path, text.encode("utf-8", "surrogateescape"))


def read_text(path: str | os.PathLike[str]) -> str:
    """The counterpart of `write_text`."""
    return Path(path).read_bytes().decode("utf-8-sig", "surrogateescape")


def csv_text(rows: Iterable[Sequence[object]]) -> str:
    """Rows as CSV; a text cell that a spreadsheet would take for a formula gets a leading apostrophe."""
    buffer = io.StringIO()
    plain = csv.writer(buffer, lineterminator="\n")
    quoted = csv.writer(buffer, lineterminator="\n", quoting=csv.QUOTE_ALL)
    for row in rows:
        cells = [csv_safe(cell) if isinstance(cell, str) else cell for cell in row]
        # Before Python 3.13 the writer leaves a lone carriage return unquoted, and a reader ends the row there.
        writer = quoted if any(isinstance(cell, str) and "\r" in cell for cell in cells) else plain
        writer.writerow(cells)
    return buffer.getvalue()


def csv_safe(cell: str) -> str:
    """`cell` with a leading apostrophe where a spreadsheet would run it; `csv_plain` undoes it."""
    return "'" + cell if cell.startswith(FORMULA_STARTS) else cell


def csv_plain(cell: str) -> str:
    """The cell that `csv_safe` was given."""
    return cell[1:] if cell.startswith("'") and cell[1:].startswith(FORMULA_STARTS) else cell


def cache_folder() -> Path:
    """Where imgclf keeps what can be made again at any time: `IMGCLF_CACHE`, else `imgclf` in the user's cache folder.

    The folder may not exist yet.
    """
    if own := os.environ.get("IMGCLF_CACHE"):
        return Path(own)
    if shared := os.environ.get("XDG_CACHE_HOME"):
        return Path(shared) / "imgclf"
    try:
        return Path.home() / ".cache" / "imgclf"
    except RuntimeError:  # a user without a home
        return Path(tempfile.gettempdir()) / "imgclf"

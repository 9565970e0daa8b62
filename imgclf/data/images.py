"""The only reader of pixels: every image that imgclf ever sees comes through `read_image`.

Files are opened by an allow-list of formats, none of which starts a program or is a document. The orientation that a
camera noted is applied exactly once, transparency lies over white, and what cannot be decoded raises `BadImage` with
the reason; it is never replaced.
"""

from __future__ import annotations

import os
import stat
import struct
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from io import BufferedReader, BytesIO
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageFile

from imgclf.core.config import DataConfig, Levels
from imgclf.core.errors import DataError
from imgclf.core.text import printable
from imgclf.data.dataset import AtLeast, Draft, Pixels, Sides
from imgclf.data.jpeg import (
    SWAPS_SIDES,
    Decoded,
    DeepColor,
    Jpeg,
    decode_jpeg,
    deep_color,
    exact_values,
    find_jpeg,
    is_deep_color,
    levels_of,
    to_uint8,
    upright,
)

MAX_PIXELS = DataConfig.max_pixels
LOOK = 16  # hexadecimal digits of a look
CHANGED = "has changed since it was checked"

# The common formats come first: Pillow loads the others only when one of them is asked for.
_EXTENSIONS = {
    "JPEG": ("jpg", "jpeg", "jpe", "jfif", "mpo"),
    "PNG": ("png", "apng"),
    "GIF": ("gif",),
    "BMP": ("bmp",),
    "DIB": ("dib",),
    "PPM": ("ppm", "pgm", "pbm", "pnm", "pfm"),
    "WEBP": ("webp",),
    "TIFF": ("tif", "tiff"),
    "AVIF": ("avif", "avifs"),
    "JPEG2000": ("jp2", "j2k", "j2c", "jpc", "jpf", "jpx"),
    "DDS": ("dds",),
    "ICO": ("ico",),
    "PCX": ("pcx",),
    "QOI": ("qoi",),
    "SGI": ("sgi", "rgb", "rgba", "bw"),
    "XBM": ("xbm",),
    "TGA": ("tga",),
}
_SUFFIXES = frozenset(f".{extension}" for extensions in _EXTENSIONS.values() for extension in extensions)
# TGA has no magic number: Pillow would take almost any file for one, so the name has to say it.
_BY_MAGIC = tuple(name for name in _EXTENSIONS if name != "TGA")
# Too short a magic number to tell an image among files that do not even have an extension.
_WEAK_MAGIC = ("PPM", "DIB", "PCX", "XBM")
_CHECK_SIDE = 32
Found = Callable[[Levels], None] | None
_DEEP = "16-bit color"
# Of the pixels that are allowed: these decoders take 16 to 25 bytes for each, or 1 GiB beside those of such an image.
_SHARES = {"WEBP": 0.8, "JPEG2000": 0.5, _DEEP: 0.4}
_TILE_WIDTH, _TILE_LENGTH = 322, 323
_PNG_START = b"\x89PNG\r\n\x1a\n"


class BadImage(DataError):
    """An image that can't be read: `reason` is one short line, and the message names the file where there is one."""

    def __init__(self, reason: str, path: str = "") -> None:
        self.reason = reason
        self.path = path
        super().__init__(f"{printable(path)}: {reason}" if path else reason)

    def __reduce__(self) -> tuple[type[BadImage], tuple[str, str]]:  # it crosses from worker processes
        return type(self), (self.reason, self.path)


@dataclass(frozen=True)
class ImageFacts:
    """What is known of an image: its sides in pixels as displayed, and the format ("JPEG").

    `look` is a short digest of some of its pixels: images with equal pixels look alike, JPEGs among themselves and
    images of all other formats among themselves. `levels` are those between which the values of an image of more than
    8 bits lie. `vanishes` says that over white, where it is transparent, nothing of it is left.

    Who keeps it adds the `sha256` of the file's bytes, the `reason` why an image can't be used (else ""), the `stamp`
    that tells whether the file is still the same, and a digest of the `pixels` where another file may hold the same.
    """

    width: int = 0
    height: int = 0
    format: str = ""
    look: str = ""
    vanishes: bool = False
    sha256: str = ""
    reason: str = ""
    stamp: str = ""
    pixels: str = ""
    levels: Levels | None = None

    @classmethod
    def from_row(cls, row: Iterable[Any]) -> ImageFacts:
        """The facts that `astuple` and JSON made a row of. Raises `TypeError` where it is none."""
        *plain, levels = row
        return cls(*[*plain, levels and Levels(*levels)])


def is_image_name(name: str) -> bool:
    """Whether the extension, in any case, belongs to a format that is read."""
    return os.path.splitext(name)[1].lower() in _SUFFIXES


def has_image_magic(path: str | os.PathLike[str]) -> bool:
    """Whether a file starts like one of the formats that are read; for files without an extension."""
    try:
        with open_regular(path) as file:
            prefix = file.read(16)
    except BadImage:
        return False
    return any(_accepts(name, prefix) for name in _BY_MAGIC if name not in _WEAK_MAGIC)


def read_image(
    source: str | os.PathLike[str] | bytes,
    *,
    at_least: AtLeast = None,
    max_pixels: int = MAX_PIXELS,
    levels: tuple[Levels, ...] = (),
    found: Found = None,
) -> Pixels:
    """The pixels of an image file, or of its bytes, as uint8 of shape (height, width, channels).

    Channels are 1 for gray images and 3 (RGB) for all others. The orientation in EXIF is applied; palettes are
    resolved, transparency is composited over white, CMYK becomes RGB; of an animation the first frame is taken.
    Of images of more than 8 bits, those of a kind for which there are `levels` are scaled by these, and others by rules
    that look at the one image only:

    - 16 bits (`I;16`, and color in PNG and TIFF): value / 257, rounded, so that the mean keeps its place;
    - 32-bit integers (`I`): the same where all values lie in 0…65535, else minimum … maximum become 0 … 255;
    - floats (`F`): × 255 where all lie in 0…1, unchanged where all lie in 0…255, else minimum … maximum become
      0 … 255; values that are not finite count as 0.

    `at_least` (height, width) as displayed lets a JPEG be decoded at 1/2, 1/4 or 1/8 of its size, as long as neither
    side falls below it; a `Draft` is asked with the (height, width) in its header, and may let its colors be
    doubled where they would be smoothed. `found` is told where the values of an image of more than 8 bits lie. More
    than `max_pixels` are refused from the header. Raises `BadImage`.
    """
    if isinstance(source, bytes):
        return read_open(BytesIO(source), "", at_least, max_pixels, levels, found)
    with open_regular(source) as file:
        return read_open(file, os.fspath(source), at_least, max_pixels, levels, found)


def read_open(
    file: BinaryIO,
    path: str,
    at_least: AtLeast = None,
    max_pixels: int = MAX_PIXELS,
    levels: tuple[Levels, ...] = (),
    found: Found = None,
) -> Pixels:
    """The pixels of an image file that is open, by the rules of `read_image`; `path` is what it is called."""
    try:
        read = _read(file, os.path.splitext(path)[1], at_least, max_pixels)
        return _displayed(read.image, read.orientation, levels, found)
    except BadImage as error:
        raise BadImage(error.reason, path) from error.__cause__


def image_pixels(image: Image.Image, levels: tuple[Levels, ...] = (), found: Found = None) -> Pixels:
    """The pixels of a Pillow image that is open already, by the rules of `read_image`. Raises `BadImage`.

    The orientation that the image notes is applied, as `ImageOps.exif_transpose` does. Pillow keeps that note in what
    `convert`, `copy`, `resize` and `crop` give, and in what `rotate` and `transpose` give as well. Of colors with 16
    bits it holds 8.
    """
    with _quiet_pillow(), _as_bad_image():
        image.load()
        return _displayed(image, _orientation(image), levels, found)


class _Read(NamedTuple):
    """A decoded image: its format, its (height, width) as displayed, what was decoded, and how that is to be turned."""

    kind: str
    sides: Sides
    image: Pixels | Decoded
    orientation: int


def _read(file: BinaryIO, suffix: str, at_least: AtLeast, max_pixels: int) -> _Read:
    """Decode an image: by libjpeg-turbo alone (to an array) a JPEG without damage, by Pillow everything else."""
    with _as_bad_image():
        jpeg = find_jpeg(file)
    if jpeg is not None:
        file, sides, orientation = BytesIO(jpeg.data), (jpeg.height, jpeg.width), _jpeg_orientation(jpeg, max_pixels)
        needed = _as_stored(sides, orientation, at_least)
        pixels = decode_jpeg(jpeg, needed, smooth=not isinstance(at_least, Draft) or at_least.smooth)
        if pixels is not None:  # else there is damage, which Pillow is to judge
            return _Read("JPEG", _as_displayed(sides, orientation), pixels, orientation)
    with _quiet_pillow():
        with _as_bad_image():
            image = _opened(file, suffix, max_pixels)
        kind, sides, needed = _format(image), (image.height, image.width), None
        if kind == "JPEG":
            needed = _as_stored(sides, _orientation(image), at_least)
        with _as_bad_image():
            decoded, orientation = _decode(image, needed, max_pixels)
        return _Read(kind, _as_displayed(sides, orientation), decoded, orientation)


def _displayed(
    image: Pixels | Decoded, orientation: int, levels: tuple[Levels, ...] = (), found: Found = None
) -> Pixels:
    """The pixels of a decoded image as it is displayed, uint8 (height, width, 1 or 3)."""
    if isinstance(image, np.ndarray):
        return upright(image, orientation)
    with _quiet_pillow(), _as_bad_image():
        if found is not None and (own := levels_of(image)) is not None:
            found(own)
        return upright(to_uint8(image, levels), orientation)


def check_image(data: bytes | BinaryIO, suffix: str = "", max_pixels: int = MAX_PIXELS) -> ImageFacts:
    """Decode an image completely, at a small scale where its format allows, and say what it is; or raise `BadImage`.

    `read_image` comes to the same verdict. `suffix` (".tga") matters only for the one format that can't be known by
    its content.
    """
    file = BytesIO(data) if isinstance(data, bytes) else data
    kind, (height, width), image, orientation = _read(file, suffix, (_CHECK_SIDE, _CHECK_SIDE), max_pixels)
    if isinstance(image, np.ndarray):
        return ImageFacts(width, height, kind, _digest(upright(image, orientation), LOOK))
    with _quiet_pillow(), _as_bad_image():
        # Whether pixels can be converted does not depend on how many, and to pick some before is quicker.
        some = image if orientation > 1 or isinstance(image, DeepColor) else _some(image)
        look, levels, vanishes = _look(_displayed(some, orientation)), levels_of(image), _vanishes(image)
    return ImageFacts(width, height, kind, look, vanishes, levels=levels)


def _vanishes(image: Decoded) -> bool:
    """Whether an image with transparency is all white when it lies on white, as a white drawing is."""
    if isinstance(image, DeepColor):
        return image.alpha is not None and bool((to_uint8(image) == 255).all())
    return image.has_transparency_data and all(bool((to_uint8(part) == 255).all()) for part in (_some(image), image))


def digest_pixels(data: bytes, suffix: str = "", max_pixels: int = MAX_PIXELS) -> str:
    """A digest (48 hexadecimal digits) of an image's sides and pixels as displayed, whatever the format of the file.

    Gray that is stored as color is gray; of more than 8 bits all count. The first 16 digits are the `look` that
    `check_image` gives these pixels in a format other than JPEG. Raises `BadImage`.
    """
    read = _read(BytesIO(data), suffix, None, max_pixels)
    pixels, image = _displayed(read.image, read.orientation), read.image
    if isinstance(image, DeepColor) or (isinstance(image, Image.Image) and image.mode[0] in "IF"):
        # Two of more than 8 bits may differ, and be the same in 8.
        return _look(pixels) + _hashed(image.size[::-1], exact_values(image), 2 * LOOK)
    return _look(pixels) + _digest(pixels, 2 * LOOK)


def _some(image: Image.Image) -> Image.Image:
    """At most 32×32 pixels of an image, evenly spaced."""
    sides = (min(image.width, _CHECK_SIDE), min(image.height, _CHECK_SIDE))
    return image if sides == image.size else image.resize(sides, Image.Resampling.NEAREST)


def _look(pixels: Pixels) -> str:
    if max(pixels.shape) > _CHECK_SIDE:
        image = Image.fromarray(pixels if pixels.shape[2] > 1 else pixels[:, :, 0])
        pixels = to_uint8(_some(image))
    return _digest(pixels, LOOK)


def _digest(values: NDArray[Any], digits: int) -> str:
    if values.ndim == 3 and _is_gray(values[:1]) and _is_gray(values):
        values = values[:, :, 0]
    return _hashed(values.shape, [values], digits)


def _hashed(shape: tuple[int, ...], parts: Iterable[NDArray[Any]], digits: int) -> str:
    digest = blake2b(repr(shape).encode(), digest_size=digits // 2)
    for part in parts:
        digest.update(np.ascontiguousarray(part).data)
    return digest.hexdigest()


def _is_gray(values: NDArray[Any]) -> bool:
    return all(np.array_equal(values[:, :, 0], values[:, :, i]) for i in range(1, values.shape[2]))


def open_regular(path: str | os.PathLike[str]) -> BufferedReader:
    """Open a regular file for reading; a pipe, a socket or a device is never opened. Raises `BadImage`."""
    try:
        mode = os.stat(path).st_mode
        if not stat.S_ISREG(mode):
            raise BadImage(f"{file_kind(mode)}, not a regular file", os.fspath(path))
        # Without waiting, for the case that a pipe has taken the file's place since it was looked at.
        return open(path, "rb", opener=lambda name, flags: os.open(name, flags | getattr(os, "O_NONBLOCK", 0)))
    except FileNotFoundError:
        reason = "a broken link" if os.path.islink(path) else "no such file"
        raise BadImage(reason, os.fspath(path)) from None
    except (OSError, ValueError) as error:
        text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise BadImage(f"cannot be opened: {text.lower()}", os.fspath(path)) from None


def file_stamp(found: os.stat_result) -> str:
    """What tells whether a file is the one that was seen before: another one has another stamp.

    Who changes a file can set its time back, but not that of its inode's last change.
    """
    return f"{found.st_size} {found.st_mtime_ns} {found.st_ctime_ns} {found.st_ino}"


def file_kind(mode: int) -> str:
    """What a `st_mode` describes, in words: "a regular file", "a pipe", …."""
    kinds = {
        stat.S_IFREG: "a regular file",
        stat.S_IFDIR: "a folder",
        stat.S_IFIFO: "a pipe",
        stat.S_IFSOCK: "a socket",
        stat.S_IFLNK: "a link",
    }
    return kinds.get(stat.S_IFMT(mode), "a device")


def _jpeg_orientation(jpeg: Jpeg, max_pixels: int) -> int:
    """Pillow reads the header too only where something in it could turn the image."""
    _check_size((jpeg.width, jpeg.height), max_pixels)
    if not jpeg.may_turn:
        return 1
    with _quiet_pillow(), _as_bad_image():
        return _orientation(_opened(BytesIO(jpeg.data), "", max_pixels))


def _as_stored(sides: Sides, orientation: int, at_least: AtLeast) -> Sides | None:
    """What is needed at least of the (height, width) in a file, before its orientation is applied."""
    needed = at_least.needed(_as_displayed(sides, orientation)) if isinstance(at_least, Draft) else at_least
    return needed and _as_displayed(needed, orientation)  # the way back is the same


def _as_displayed(sides: Sides, orientation: int) -> Sides:
    return (sides[1], sides[0]) if orientation in SWAPS_SIDES else sides


def _opened(file: BinaryIO, suffix: str, max_pixels: int) -> ImageFile.ImageFile:
    """An image whose header is read; of a PNG the checksums too, because its decoder passes over them."""
    if not _peek(file, 1):
        raise BadImage("empty file")
    image = _identify(file, suffix, max_pixels)
    if image.format == "PNG":
        with _as_bad_image("damaged PNG"):
            image.verify()
        image = _identify(file, suffix, max_pixels)
    return image


def _peek(file: BinaryIO, count: int) -> bytes:
    file.seek(0)
    return file.read(count)


def _accepts(name: str, prefix: bytes) -> bool:
    if name not in Image.OPEN:
        Image.init()
    if name not in Image.OPEN:  # not built into this Pillow
        return False
    _, accept = Image.OPEN[name]
    return accept is None or accept(prefix.ljust(16, b"\0")) is True  # a shorter one makes some readers fail


def _identify(file: BinaryIO, suffix: str, max_pixels: int) -> ImageFile.ImageFile:
    """Open an image without decoding it.

    `Image.open` would do, but for its own limit on pixels: it warns at 89 megapixels whatever ours is, and its setting
    belongs to the whole program.
    """
    Image.preinit()
    prefix = _peek(file, 16)
    reason = "not an image of a known format"
    for name in (*_BY_MAGIC, "TGA") if suffix.lower() == ".tga" else _BY_MAGIC:
        if not _accepts(name, prefix):
            continue
        for size in _icon_sizes(file) if name == "ICO" else ():
            _check_size(size, max_pixels)
        file.seek(0)
        try:
            image: ImageFile.ImageFile = Image.OPEN[name][0](file, "")
        except (SyntaxError, IndexError, TypeError) as error:  # how Pillow's readers say "not mine"
            reason = f"damaged {name} header: {_one_line(error)}"
            continue
        _check_size(image.size, max_pixels, name)
        if name == "TIFF":
            tags = image.tag_v2  # type: ignore[attr-defined]
            _check_size((tags.get(_TILE_WIDTH, 0), tags.get(_TILE_LENGTH, 0)), max_pixels)  # decoded whole
        return image
    raise BadImage(reason)


def _icon_sizes(file: BinaryIO) -> Iterator[tuple[int, int]]:
    """The sizes of the PNGs in an icon, one of which is decoded as soon as it is opened."""
    for i in range(int.from_bytes(_peek(file, 6)[4:], "little")):
        file.seek(6 + 16 * i + 12)  # where its entry says where it lies
        file.seek(int.from_bytes(file.read(4), "little"))
        start = file.read(24)
        if start.startswith(_PNG_START) and len(start) == 24:
            yield struct.unpack(">II", start[16:])


def _check_size(size: tuple[int, int], max_pixels: int, kind: str = "") -> None:
    width, height = size
    most = int(max_pixels * _SHARES.get(kind, 1))
    if width * height > most:
        found, limit = width * height / 1e6, most / 1e6
        of_kind = f" for {kind}" if kind in _SHARES else ""
        raise BadImage(
            f"{width}×{height} are {found:.4g} megapixels, more than the limit of {limit:g}{of_kind} (--max-pixels)"
        )


def _decode(image: ImageFile.ImageFile, needed: Sides | None, max_pixels: int) -> tuple[Decoded, int]:
    """Decode, with all bits, and say which orientation is still to be applied.

    `needed` is the (height, width) that a JPEG must keep. No other image is asked for its orientation before it is
    decoded: a PNG would be decoded to answer, and its errors would be lost.
    """
    if needed is not None and _format(image) == "JPEG":
        image.draft(None, (max(1, needed[1]), max(1, needed[0])))
    file = image.fp if is_deep_color(image) else None
    if file is not None:
        _check_size(image.size, max_pixels, _DEEP)
    with _as_bad_image(f"damaged {_format(image)}"):
        image.load()
    _check_size(image.size, max_pixels)  # an icon's header may promise less than it holds
    deep = None if file is None else deep_color(image, file)  # Pillow has judged whether there is damage
    return image if deep is None else deep, _orientation(image)


def _format(image: Image.Image) -> str:
    return "JPEG" if image.format == "MPO" else str(image.format)


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation that is still to be applied, 1 to 8."""
    if image.format == "TIFF":  # Pillow's decoder has turned it already
        return 1
    try:
        exif = image.getexif()
        if image.format == "AVIF":  # its boxes rule, and Pillow gives them as EXIF; XMP would turn it a second time
            exif = Image.Exif()
            exif.load(image.info.get("exif", b""))
        found = exif.get(ExifTags.Base.Orientation, 1)
    except Exception:  # broken EXIF leaves an image as it is stored, as in every viewer
        return 1
    return found if isinstance(found, int) and 1 <= found <= 8 else 1


def _one_line(error: BaseException) -> str:
    text = "it is truncated" if struct.error in (type(error), type(error.__cause__)) else str(error)
    return printable(" ".join(text.split())) or type(error).__name__


@contextmanager
def _as_bad_image(verdict: str = "cannot be decoded") -> Iterator[None]:
    """Whatever Pillow raises becomes `BadImage`: seven families of exceptions are known, and more may come."""
    try:
        yield
    except BadImage:
        raise
    except Exception as error:
        raise BadImage(f"{verdict}: {_one_line(error)}") from error


_quiet_lock = threading.Lock()
_quiet_count = 0
_quiet_filters: warnings.catch_warnings[None] | None = None


@contextmanager
def _quiet_pillow() -> Iterator[None]:
    """Keep Pillow's own warnings quiet while an image is read: what they warn of is either harmless or checked here.

    Warnings that were turned into errors would make a good image with bad EXIF a bad one. Filters belong to the whole
    process, so only the first of several threads sets them and only the last one puts them back.
    """
    global _quiet_count, _quiet_filters
    with _quiet_lock:
        if _quiet_count == 0:
            _quiet_filters = warnings.catch_warnings()
            _quiet_filters.__enter__()
            warnings.filterwarnings("ignore", module=r"PIL\.")
        _quiet_count += 1
    try:
        yield
    finally:
        with _quiet_lock:
            _quiet_count -= 1
            if _quiet_count == 0 and _quiet_filters is not None:
                _quiet_filters.__exit__(None, None, None)
                _quiet_filters = None

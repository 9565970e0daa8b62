"""From what a decoder gives to uint8 pixels: JPEGs straight from libjpeg-turbo, every mode of Pillow by a rule.

Pillow and simplejpeg use the same decoder with the same settings (accurate DCT and, unless a draft will do, smooth
upsampling of the colors), so their pixels agree; simplejpeg does without the copies and works outside of the
interpreter's lock. Of color with 16 bits a channel Pillow keeps the upper byte: OpenCV reads the lower one as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import IO, Any, BinaryIO, NamedTuple, TypeVar, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageFile

from imgclf.core.config import DEPTHS, Levels
from imgclf.data.dataset import Pixels, Sides

_JPEG_START = b"\xff\xd8\xff"
_MAX_BYTES = 2**28  # what is larger is not read into memory at once
_SCALES = (8, 4, 2, 1)
_ORIENTING = (b"Exif\0", b"ns.adobe.com/xap")  # what begins the metadata that may hold an orientation
SWAPS_SIDES = (5, 6, 7, 8)  # the EXIF orientations that turn an image by a quarter
BAND = 2**20  # pixels that are converted at once
_TOPS = {"integer": (255, 1023, 4095, 16383, 65535), "float": (1, 255)}
_TAIL = 1e-3  # of the pixels, at either end
_MEASURED = 2**20  # pixels, about
_BITS_PER_SAMPLE = 258
_FULL = 65535  # of 16 bits
_CHUNKS_OF_PIXELS = (b"IHDR", b"tRNS", b"IDAT", b"IEND")


class Jpeg(NamedTuple):
    """The bytes of a JPEG in YCbCr or gray and what its header says: sides as stored, 1 or 3 channels.

    `may_turn` says that it holds metadata of the kind that may note an orientation.
    """

    data: bytes
    height: int
    width: int
    channels: int
    may_turn: bool


@dataclass(frozen=True)
class DeepColor:
    """A color image of 16 bits a channel: RGB (height, width, 3) and, where any of it is transparent, its opacity."""

    color: NDArray[np.uint16]
    alpha: NDArray[np.uint16] | None

    @property
    def size(self) -> tuple[int, int]:
        """(width, height), as Pillow has it."""
        return self.color.shape[1], self.color.shape[0]

    def crop(self, box: tuple[int, int, int, int]) -> DeepColor:
        """What lies in (left, top, right, bottom), as Pillow has it, without a copy."""
        part = slice(box[1], box[3]), slice(box[0], box[2])
        return DeepColor(self.color[part], None if self.alpha is None else self.alpha[part])


Decoded = Image.Image | DeepColor
AnyDecoded = TypeVar("AnyDecoded", bound=Decoded)


def find_jpeg(file: BinaryIO) -> Jpeg | None:
    """The JPEG that a file is, where libjpeg-turbo alone can decode it; None is for Pillow to judge."""
    import simplejpeg

    file.seek(0)
    if file.read(len(_JPEG_START)) != _JPEG_START or file.seek(0, 2) > _MAX_BYTES:
        return None
    file.seek(0)
    data = file.read()
    try:
        height, width, space, _ = simplejpeg.decode_jpeg_header(data)
    except (ValueError, KeyError):  # damaged; a color space or a subsampling without a name
        return None
    channels = {"YCbCr": 3, "Gray": 1}.get(space)
    may_turn = any(start in data for start in _ORIENTING)
    return Jpeg(data, height, width, channels, may_turn) if channels else None


def decode_jpeg(jpeg: Jpeg, at_least: Sides | None = None, *, smooth: bool = True) -> Pixels | None:
    """The pixels as stored, uint8 (height, width, 1 or 3), or None where there is any damage, however small.

    With `at_least` (height, width, as stored) at 1/2, 1/4 or 1/8 of the size, the smallest that keeps both sides.
    Colors that are stored at half the size are doubled where they are not to be `smooth`, which saves 8 % of the time.
    """
    import simplejpeg

    scale = _scale((jpeg.height, jpeg.width), at_least) if at_least else 1
    sides = {"min_height": -(-jpeg.height // scale), "min_width": -(-jpeg.width // scale)} if scale > 1 else {}
    try:
        space = "RGB" if jpeg.channels == 3 else "GRAY"
        return np.asarray(simplejpeg.decode_jpeg(jpeg.data, space, fastupsample=not smooth, **sides))
    except ValueError:
        return None


def _scale(sides: Sides, at_least: Sides) -> int:
    """The largest of 1, 2, 4, 8 that leaves both sides what they need; the rule of Pillow's `draft`."""
    possible = min(side // max(1, least) for side, least in zip(sides, at_least, strict=True))
    return next((scale for scale in _SCALES if scale <= possible), 1)


def upright(pixels: Pixels, orientation: int) -> Pixels:
    """Turned and mirrored as an EXIF orientation (1 to 8) wants it; contiguous, and the caller's own."""
    if orientation in SWAPS_SIDES:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.require(pixels, requirements=("C", "W"))


def is_deep_color(image: ImageFile.ImageFile) -> bool:
    """Whether this is a PNG or TIFF, not decoded yet, of whose colors Pillow would keep 8 of 16 bits."""
    if image.mode not in ("RGB", "RGBA"):
        return False
    if image.format == "TIFF":
        return 16 in image.tag_v2.get(_BITS_PER_SAMPLE, ())  # type: ignore[attr-defined]
    return image.format == "PNG" and any(";16" in str(tile.args) for tile in image.tile)


def deep_color(image: Image.Image, file: IO[bytes]) -> DeepColor | None:
    """All bits of a color image that Pillow has decoded from a file.

    None where OpenCV can't, or where it gives other pixels: the upper bytes must be those that Pillow has kept, which
    vouches for the order of channels, the orientation and the kind of transparency.
    """
    if file.seek(0, 2) > _MAX_BYTES + 8 * image.width * image.height:  # there is more in it than the image
        return None
    file.seek(0)
    found = _by_opencv(_only_pixels(file.read()) if image.format == "PNG" else file.read())
    transparent = image.has_transparency_data
    if found is None or found.dtype != np.uint16 or found.shape[:2] != (image.height, image.width):
        return None
    if found.ndim != 3 or found.shape[2] < (4 if transparent else 3):
        return None
    values = found.view(np.uint16)
    deep = DeepColor(values[..., 2::-1], values[..., 3:] if transparent else None)
    if not all(_same_upper_bytes(part, band) for (_, part), (_, band) in zip(bands(deep), bands(image), strict=True)):
        return None
    opaque = deep.alpha is not None and bool((deep.alpha == _FULL).all())
    return DeepColor(deep.color, None) if opaque else deep


def _by_opencv(data: bytes) -> NDArray[Any] | None:
    """What OpenCV decodes, as it is stored (BGR); it is kept from writing to the standard error meanwhile."""
    import cv2

    log = cv2.utils.logging
    before = log.setLogLevel(log.LOG_LEVEL_SILENT)
    try:
        return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:
        return None
    finally:
        if before != log.LOG_LEVEL_SILENT:  # else another thread may be at it, and puts back what was before
            log.setLogLevel(before)


def _only_pixels(png: bytes) -> bytes:
    """A PNG without the chunks that say nothing of its pixels: libpng writes what it dislikes of them to stderr."""
    at, kept = 8, [png[:8]]
    while at + 12 <= len(png):
        end = at + 12 + int.from_bytes(png[at : at + 4])
        if png[at + 4 : at + 8] in _CHUNKS_OF_PIXELS:
            kept.append(png[at:end])
        at = end
    return b"".join(kept)


def _same_upper_bytes(deep: DeepColor, image: Image.Image) -> bool:
    values = np.dstack((deep.color, deep.alpha)) if deep.alpha is not None and image.mode == "RGBA" else deep.color
    return np.array_equal(values >> 8, np.asarray(image))


def exact_values(image: Decoded) -> Iterator[NDArray[np.float64]]:
    """Every value of an image of more than 8 bits, one band after the other; of gray that is stored as color once."""
    if isinstance(image, Image.Image):
        yield from (np.asarray(band, np.float64) for _, band in bands(image))
        return
    gray = all(bool((band.color == band.color[..., :1]).all()) for _, band in bands(image))
    for _, band in bands(image):
        yield (band.color[..., 0] if gray else band.color).astype(np.float64)
        if band.alpha is not None:
            yield band.alpha.astype(np.float64)


def levels_of(image: Decoded) -> Levels | None:
    """Where the values of a decoded image of more than 8 bits lie, None for any other.

    A thousandth of the pixels at either end is left aside: sensors have dead and hot ones.
    """
    kind = _depth(image)
    if kind is None:
        return None
    width, height = image.size
    step = width * height // _MEASURED | 1  # odd, so that it does not keep to one column
    parts = [_visible(band, slice(-rows.start * width % step, None, step)) for rows, band in bands(image)]
    values = np.concatenate(parts)
    values = values[np.isfinite(values)]
    if not values.size:
        return None
    low, high = np.quantile(values, (_TAIL, 1 - _TAIL), method="nearest")
    return Levels(kind, float(low), float(high))


def _visible(image: Decoded, some: slice) -> NDArray[Any]:
    """The values of some pixels, but for those that are fully transparent: nothing is known to be meant by these."""
    if isinstance(image, Image.Image):
        return np.asarray(image).ravel()[some].copy()
    color = image.color.reshape(-1, 3)[some]
    return (color if image.alpha is None else color[image.alpha.ravel()[some] > 0]).ravel()


def common_levels(found: Iterable[Levels | None]) -> tuple[Levels, ...]:
    """The levels for all images of a set, one for each kind that is `found` in it.

    They are those of a usual depth (0 to 255, or to the largest number of 10, 12, 14 or 16 bits; of fractions 0 to 1 or
    to 255) where the values fill at least a quarter of it, else the lowest and the highest value.
    """
    there = [levels for levels in found if levels is not None]
    return tuple(
        _usual(kind, min(one.low for one in of_kind), max(one.high for one in of_kind))
        for kind in DEPTHS
        if (of_kind := [one for one in there if one.kind == kind])
    )


def is_far(found: Levels, levels: tuple[Levels, ...]) -> bool:
    """Whether values lie as far again beyond the levels of their kind as these reach, or no levels of it are known."""
    known = next((one for one in levels if one.kind == found.kind), None)
    if known is None:
        return True
    span = known.high - known.low
    return found.high > known.high + span or found.low < known.low - span


def _usual(kind: str, low: float, high: float) -> Levels:
    top = next((top for top in _TOPS[kind] if high <= top), None)
    fills = top is not None and low >= 0 and 4 * (high - low) >= top
    return Levels(kind, 0.0, float(top)) if top is not None and fills else Levels(kind, low, high)


def _depth(image: Decoded) -> str | None:
    """The kind of an image of more than 8 bits, None for any other."""
    if isinstance(image, DeepColor):
        return "integer"
    return {"I": "integer", "F": "float"}.get(image.mode.partition(";")[0])


def to_uint8(image: Decoded, levels: tuple[Levels, ...] = ()) -> Pixels:
    """The pixels of a decoded image as uint8 (height, width, 1 or 3); see `images.read_image` for the rules."""
    kind = _depth(image)
    known = next((one for one in levels if one.kind == kind), None)
    if isinstance(image, DeepColor):
        common = known or Levels("integer", 0, _FULL)
        return _in_bands(image, 3, lambda band: _deep_over_white(band, common))
    if kind is not None:
        own = known or _levels_alone(image)
        return _in_bands(image, 1, lambda band: _scaled(band, own))
    if image.has_transparency_data:
        gray = image.mode in ("1", "L", "LA", "La")
        return _in_bands(image, 1 if gray else 3, lambda band: _over_white(band, "LA" if gray else "RGBA"))
    if image.mode == "LAB":
        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        to_rgb = ImageCms.buildTransform(lab, srgb, "LAB", "RGB")
        return _in_bands(image, 3, lambda band: np.asarray(ImageCms.applyTransform(band, to_rgb)))
    if image.mode in ("1", "L"):
        return _in_bands(image, 1, lambda band: np.asarray(band.convert("L"))[:, :, None])
    return _in_bands(image, 3, lambda band: np.asarray(band if band.mode == "RGB" else band.convert("RGB")))


def bands(image: AnyDecoded) -> Iterator[tuple[slice, AnyDecoded]]:
    """Some rows of an image after the other: all at once, a large one would take its memory several times over."""
    width, height = image.size
    rows = max(1, BAND // width)
    for top in range(0, height, rows):
        bottom = min(height, top + rows)
        band = image if bottom - top == height else image.crop((0, top, width, bottom))
        yield slice(top, bottom), cast(AnyDecoded, band)


def _in_bands(image: AnyDecoded, channels: int, convert: Callable[[AnyDecoded], Pixels]) -> Pixels:
    """What `convert` makes of each band: uint8 (height, width, channels)."""
    width, height = image.size
    if width * height <= BAND:
        return convert(image)
    pixels: Pixels = np.empty((height, width, channels), np.uint8)
    for rows, band in bands(image):
        pixels[rows] = convert(band)
    return pixels


def _over_white(image: Image.Image, mode: str) -> Pixels:
    values = np.asarray(image.convert(mode)).astype(np.uint16)
    color, alpha = values[..., :-1], values[..., -1:]
    return ((color * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)


def _levels_alone(image: Image.Image) -> Levels:
    """The levels of an image of which no others of its kind are known."""
    if image.mode.startswith("I;16"):
        return Levels("integer", 0, _FULL)
    ends = [end for _, band in bands(image) for values in [_finite(band)] for end in (values.min(), values.max())]
    low, high = float(min(ends)), float(max(ends))
    kind, tops = ("integer", (_FULL,)) if image.mode == "I" else ("float", _TOPS["float"])
    top = next((top for top in tops if low >= 0 and high <= top), None)
    return Levels(kind, low, high) if top is None else Levels(kind, 0, top)


def _scaled(image: Image.Image, levels: Levels) -> Pixels:
    scaled: Pixels = np.rint(_stretched(_finite(image), levels)).astype(np.uint8)[:, :, None]
    key = image.info.get("transparency")
    if isinstance(key, int):  # a 16-bit gray PNG may name one value as transparent
        scaled[np.asarray(image) == key] = 255
    return scaled


def _deep_over_white(image: DeepColor, levels: Levels) -> Pixels:
    values = _stretched(image.color.astype(np.float64), levels)
    if image.alpha is not None:
        values = 255 + (values - 255) * (image.alpha / _FULL)
    return np.rint(values).astype(np.uint8)


def _stretched(values: NDArray[np.float64], levels: Levels) -> NDArray[np.float64]:
    scale = 255 / (levels.high - levels.low) if levels.high > levels.low else 0.0
    return (values.clip(levels.low, levels.high) - levels.low) * scale


def _finite(image: Image.Image) -> NDArray[np.float64]:
    return np.nan_to_num(np.asarray(image).astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)

"""A look at images: their size, their brightness and, of some, a picture small enough to go into a page by hundreds."""

from __future__ import annotations

import base64
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from io import BytesIO

import numpy as np
from PIL import Image

from imgclf.data.dataset import Draft, Pixels, Sides, Source
from imgclf.data.images import BadImage
from imgclf.report.view import Look
from imgclf.runtime.device import cores

SIDE = 144  # pixels of the longer side
TINY = 48  # up to here an image is kept as it is, pixel by pixel
QUALITY = 72
LUMA = np.array((0.299, 0.587, 0.114))


def look_at(
    source: Source,
    images: Sequence[tuple[str, str]],
    pictured: Collection[str],
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Look]:
    """The size and the brightness of images by ref, and small pictures of some.

    Images that can't be read, or whose content has changed, are left out.

    Args:
        source: Where the images are.
        images: Their refs, each with the sha256 (hex) of its content, or "" where that is unknown.
        pictured: The refs of the images to make a picture of.
        progress: Is told (images done, images in all).
    """
    looks: dict[str, Look] = {}
    with ThreadPoolExecutor(min(8, cores())) as pool:
        found = pool.map(lambda image: _look(source, *image, picture=image[0] in pictured), images)
        for done, ((ref, _), look) in enumerate(zip(images, found, strict=True), 1):
            if look is not None:
                looks[ref] = look
            if progress is not None:
                progress(done, len(images))
    return looks


def within(looks: Mapping[str, Look], order: Iterable[str], budget: int) -> dict[str, Look]:
    """The looks with only as many pictures as the budget allows.

    Args:
        looks: The looks by ref.
        order: Refs, the most important first; all others lose their picture.
        budget: Characters of all pictures together, at most.
    """
    kept = {ref: replace(look, picture="") for ref, look in looks.items()}
    for ref in dict.fromkeys(order):
        if ref in looks and len(looks[ref].picture) <= budget:
            budget -= len(looks[ref].picture)
            kept[ref] = looks[ref]
    return kept


def picture_of(pixels: Pixels) -> tuple[str, bool]:
    """An image (height, width, channels) as a data URI, and whether it is tiny: kept as it is, without loss."""
    image = Image.fromarray(np.ascontiguousarray(pixels[..., :3] if pixels.shape[2] > 2 else pixels[..., 0]))
    tiny, buffer = max(image.size) <= TINY, BytesIO()
    if tiny:
        image.save(buffer, "PNG")
    else:
        image.thumbnail((SIDE, SIDE), Image.Resampling.BICUBIC)
        image.save(buffer, "JPEG", quality=QUALITY)
    kind = "png" if tiny else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}", tiny


def _look(source: Source, ref: str, content: str, *, picture: bool) -> Look | None:
    own: list[Sides] = []

    def enough(sides: Sides) -> Sides:
        own.append(sides)
        height, width = sides
        scale = min(1.0, SIDE / max(sides))
        return max(1, int(height * scale)), max(1, int(width * scale))

    try:
        if content and source.reader.digest(ref) != content:
            return None
        pixels = source.open(ref, Draft(enough, smooth=True))
    except (BadImage, OSError, KeyError, IndexError, ValueError):  # missing or changed
        return None
    height, width = own[0] if own else pixels.shape[:2]
    shown, tiny = picture_of(pixels) if picture else ("", False)
    colors = pixels.mean(axis=(0, 1), dtype=np.float64)
    brightness = float(colors @ LUMA if len(colors) == len(LUMA) else colors.mean())
    return Look((height, width), brightness, shown, tiny)
